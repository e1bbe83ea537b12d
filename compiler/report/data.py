"""What a report shows, as plain data: the schema of `report.json`. Bytes, seconds, FLOPs and counts; no markup."""

from __future__ import annotations

from typing import Literal, TypedDict


class Figure(TypedDict):
    """A number for the head of the page."""

    label: str
    value: str
    note: str


class Value(TypedDict):
    """A tensor: its name, its named dims as `B S D`, its kind of number, and its name outside, if any."""

    name: str
    dims: str
    dtype: str
    by: str


class Step(TypedDict):
    """One equation, or a group of them if it has `steps`. FLOPs are of the forward pass, for one token."""

    name: str
    op: str
    detail: str
    ins: list[str]
    outs: list[Value]
    params: int
    trained: int
    flops: float
    steps: list[Step]


class Block(TypedDict):
    """A unique block and how often it is called; figures are of one call."""

    name: str
    times: int
    ins: list[Value]
    outs: list[Value]
    params: int
    trained: int
    flops: float
    steps: list[Step]


class Model(TypedDict):
    """An architecture: its blocks in the order of their first call."""

    name: str
    doc: str
    dims: dict[str, int]
    inputs: list[Value]
    blocks: list[Block]
    params: int
    trained: int
    flops: float


class Compiled(TypedDict):
    """How the graphs of a block are run. `nodes` counts operators, `saved` bytes kept for the backward pass."""

    stage: str
    block: str
    times: int
    forward: int
    backward: int
    saved: int
    how: str


class Share(TypedDict):
    """A category of memory."""

    category: str
    bytes: int


class Memory(TypedDict):
    """Memory of a stage on one device: what adds up to the peak, the device's limit, and what was measured."""

    stage: str
    shares: list[Share]
    limit: int | None
    measured: int | None


class Action(TypedDict):
    """One action of a schedule: where it begins, its work, by which it is drawn wide, and the bytes that live after
    it."""

    kind: str
    label: str
    microbatch: int
    start: float
    work: float
    live: int


class Schedule(TypedDict):
    """The actions of each rank for one step of a stage; `note` says what the widths mean."""

    stage: str
    note: str
    ranks: list[list[Action]]


class Series(TypedDict):
    """A curve: `x` is the step."""

    name: str
    x: list[float]
    y: list[float]


class Sample(TypedDict):
    """What the model wrote at a step, behind its prompt."""

    step: int
    prompt: str
    text: str


Status = Literal["done", "partial", "waiting"]


class Stage(TypedDict):
    """A stage with what its run has shown so far. `entropy` is the corpus' unigram entropy, nats per token."""

    name: str
    kind: str
    after: list[str]
    status: Status
    key: str
    steps: int
    steps_done: int
    tokens: int  # or images, as `unit` says
    unit: str
    seconds: float
    entropy: float | None
    series: list[Series]
    samples: list[Sample]
    notes: list[str]


class Cover(TypedDict):
    """What the kernels of a block replace: ops that run and bytes moved with ATen alone and with kernels, forward and
    backward; row-wise ops in no kernel by why."""

    stage: str
    block: str
    ops: list[int]
    bytes: list[int]
    left: dict[str, int]


class Kernel(TypedDict):
    """A generated file: where it comes from, what runs in its stead, and the most that one of its kernels takes on the
    GPUs that it was compiled for (registers of a thread, bytes spilled, bytes shared)."""

    name: str
    places: list[str]
    used: str
    targets: list[str]
    registers: int
    spilled: int
    shared: int


class File(TypedDict):
    """A file of the build with its SHA-256."""

    path: str
    sha256: str
    bytes: int


class Report(TypedDict):
    """The whole page. `key` is the hash of the build's manifest."""

    name: str
    doc: str
    version: str
    key: str
    figures: list[Figure]
    stages: list[Stage]
    models: list[Model]
    memory: list[Memory]
    schedules: list[Schedule]
    compiled: list[Compiled]
    covers: list[Cover]
    kernels: list[Kernel]
    files: list[File]
