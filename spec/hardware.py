"""Tables of hardware and of training software: what a file of them may say. The units stand at each field."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from specc.spec.node import Node

Format = Literal["fp8", "bf16", "fp32", "fp64"]
Share = Annotated[float, Field(ge=0, le=1)]


class Link(Node):
    """One way of devices to each other."""

    bandwidth: PositiveFloat = Field(description="GB/s that a device sends, as collectives reach it")
    latency: NonNegativeFloat = Field(description="microseconds before the first byte arrives")
    pair: Share = Field(1.0, description="share of the bandwidth that a message to one other device reaches")


class Device(Node):
    """A device by its data sheet, and what shares of that are reached."""

    peak: dict[Format, PositiveFloat] = Field(description="TFLOP/s of dense products")
    bandwidth: PositiveFloat = Field(description="GB/s of its memory")
    memory: PositiveFloat = Field(description="GiB")
    units: PositiveInt = Field(description="processors that the tiles of a kernel spread over")
    node: PositiveInt = Field(description="devices that near links join")
    near: str = Field(description="the link within a node")
    far: str = Field(description="the link between nodes")
    host: str | None = Field(None, description="the link to the host's memory; none where that is the device's own")
    host_memory: PositiveFloat | None = Field(None, description="GiB of the host's memory for each device of a node")
    product: dict[Format, Share] = Field(description="share of the peak that a large product reaches")
    attention: dict[str, tuple[Share, Share]] = Field(
        description="share of the peak of an attention kernel's forward and backward, long sequences, head dim 128"
    )
    narrow: dict[str, Annotated[float, Field(gt=0.5, le=1)]] = Field(
        {}, description="share of that which an attention kernel reaches at head dim 64"
    )
    depth: NonNegativeFloat = Field(
        192, description="what a product takes beyond its inner dim, in numbers of that: first loads and last stores"
    )
    stream: Share = Field(description="share of the bandwidth that row-wise kernels reach")
    launch: PositiveFloat = Field(description="microseconds before a kernel begins")


class Software(Node):
    """A generation of training software: which kernels it has, and what it does at the same time."""

    attention: str = Field(description="its attention kernel")
    passes: PositiveFloat = Field(description="traffic of row-wise work over that of one kernel an op")
    logits: PositiveFloat = Field(description="bytes that the loss reads and writes for each logit")
    host: NonNegativeFloat = Field(description="microseconds in which the host starts an op, forward")
    hidden_tensor: Share = Field(description="share of tensor parallel collectives beside products")
    hidden_data: Share = Field(description="share of what data parallelism sends beside work, as far as there is work")
    hidden_context: Share = Field(description="share of what context parallelism sends beside attention")
    reduce: PositiveInt = Field(4, description="bytes of a gradient on its way to be summed")
    bucket: NonNegativeFloat = Field(
        0.0, description="millions of numbers whose gradients are summed at once without ZeRO; 0: all of a rank's"
    )
    sums_whole: bool = Field(
        False,
        description="whether ZeRO 1 sums all gradients on all ranks, beside nothing, and puts gathered weights in place"
        " by a kernel for each rank and parameter",
    )
    experts: NonNegativeFloat = Field(
        0.0, description="microseconds in which a layer of experts waits forward, until the host knows the rows of each"
    )
    weights: PositiveInt = Field(2, description="bytes of a weight between steps, beside what `moments` counts")
    gradients: PositiveInt = Field(4, description="bytes of a gradient that waits for the optimizer")
    adds: NonNegativeFloat = Field(
        0.0, description="bytes moved for each number where a kernel adds a microbatch's gradient to their sum"
    )
    updates: PositiveFloat = Field(30, description="bytes that an update by AdamW reads and writes for each number")
    clips: NonNegativeFloat = Field(
        0.0, description="bytes moved once a step for each number that a rank has a gradient of, whoever updates it"
    )
    moments: PositiveInt = Field(12, description="bytes of the optimizer's state of a number, master weight included")
    logits_alive: PositiveFloat = Field(10, description="bytes at once for each logit of the loss")
    scores: PositiveFloat = Field(5, description="bytes that an attention which is not fused keeps for each score")
    fused: bool = Field(True, description="whether a formula is one kernel, which keeps nothing between its steps")
    keeps_gathered: bool = Field(
        False, description="whether what tensor parallelism gathers for products is kept so until their backward"
    )
    stages: Literal["even", "passed"] = Field(
        "even",
        description="how calls are shared out among the stages of a pipeline: so that the heaviest stage is as light as"
        " can be, or so that each takes calls until it has passed its share of the FLOPs of products",
    )
    merged: bool = Field(True, description="whether products of one operand are one: queries, keys and values")
    gathers_fp8: bool = Field(False, description="whether ZeRO-3 gathers the weights of fp8 products in fp8")
    zero_over_context: bool = Field(True, description="whether ZeRO splits over the ranks of context parallelism too")
    quantise: PositiveFloat = Field(1.0, description="passes over the operands of an fp8 product")


class Hardware(Node):
    """All rows, by name."""

    devices: dict[str, Device] = {}
    links: dict[str, Link] = {}
    software: dict[str, Software] = {}


class HardwareFile(Node):
    """A file of rows. `like: NAME` takes all that a row does not say from another."""

    devices: dict[str, dict[str, Any]] = {}
    links: dict[str, dict[str, Any]] = {}
    software: dict[str, dict[str, Any]] = {}
