"""The `stages:` section: what is trained on what, with which optimizer, for how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from specc.spec.data import DataSpec, TokenizerSpec
from specc.spec.image import Denoising, ImageSpec
from specc.spec.node import Node
from specc.spec.objective import BlankInfilling, MaskedLM, Preference, Sft, SpanCorruption
from specc.spec.optimizer import Optimizer, OptimizerSpec

SUFFIX = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Kind = Literal["pretrain", "sft", "preference"]
Objective = Literal["causal_lm", "masked_lm", "span_corruption", "blank_infilling", "images", "denoising"]
OF_IMAGES = ("images", "denoising")  # objectives whose samples are pictures
CAPTION = ("tokens", "labels", "doc", "pos")  # fields [B S] of their captions
MOST_MICROBATCHES = 1 << 16  # of a step, each of which is a row of the schedule for every call


class Schedule(Node):
    kind: Literal["cosine", "linear", "wsd", "inverse_sqrt", "constant"] = "cosine"
    warmup: float = Field(0.05, ge=0, description="steps, or a share of all steps if below 1")
    final: float = Field(0.1, ge=0, le=1, description="share of the learning rate at the end")
    decay: float = Field(0.2, ge=0, le=1, description="wsd: share of the steps that decay")

    def lengths(self, steps: int) -> tuple[int, float]:
        """Steps of the warmup, and those of the decay of `wsd`."""
        return int(self.warmup * steps if self.warmup < 1 else self.warmup), self.decay * steps


class Budget(Node):
    steps: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)

    @field_validator("tokens", mode="before")
    @classmethod
    def _count(cls, raw: object) -> object:
        """`20M` is 20,000,000."""
        if isinstance(raw, str) and raw[-1:].upper() in SUFFIX:
            try:
                return int(float(raw[:-1]) * SUFFIX[raw[-1].upper()])
            except ValueError:
                return raw
        return raw

    @model_validator(mode="after")
    def _one_of(self) -> Budget:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("a budget has either 'steps' or 'tokens'")
        return self


class Batch(Node):
    sequences: int = Field(16, ge=1, description="sequences a step")
    microbatch: int | None = Field(None, ge=1, description="sequences at a time; default: all")

    @property
    def size(self) -> int:
        """Sequences at a time."""
        return self.microbatch or self.sequences

    @property
    def microbatches(self) -> int:
        """Microbatches a step."""
        return self.sequences // self.size

    @model_validator(mode="after")
    def _divides(self) -> Batch:
        if self.microbatch and self.sequences % self.microbatch:
            raise ValueError("'sequences' is a multiple of 'microbatch'")
        if self.microbatches > MOST_MICROBATCHES:
            raise ValueError(f"a step has {self.microbatches:,} microbatches, more than {MOST_MICROBATCHES:,}")
        return self


class Eval(Node):
    every: int = Field(100, ge=1, description="steps between looks at the held-out rows")
    batches: int = Field(8, ge=1, description="held-out rows, in batches of `batch.sequences`; at most all there are")


class Sample(Node):
    prompts: list[str] = []
    every: int = Field(0, ge=0, description="steps between samples; 0: at the end alone")
    tokens: int = Field(64, ge=1)
    temperature: float = Field(0.8, ge=0)


class Checkpoint(Node):
    every: int = Field(100, ge=1)
    keep: int = Field(2, ge=1)
    keep_every: int | None = Field(None, ge=1)


class Weights(Node):
    """A published checkpoint to start from: a folder with config.json and model.safetensors (or its shards)."""

    path: str = Field(min_length=1, description="the folder, in Hugging Face's layout")
    names: str | None = Field(None, description="a name table, such as 'llama'; default: by the config's model_type")


class StageSpec(Node):
    """One stage of training."""

    kind: Kind = "pretrain"
    from_: str | None = Field(None, alias="from")
    weights: Weights | None = None
    model: str | None = None
    objective: Objective = "causal_lm"
    masked_lm: MaskedLM = MaskedLM()
    span_corruption: SpanCorruption = SpanCorruption()
    blank_infilling: BlankInfilling = BlankInfilling()
    sft: Sft = Sft()
    denoising: Denoising | None = None
    preference: Preference = Preference()
    data: DataSpec
    tokenizer: TokenizerSpec | None = None
    optimizer: OptimizerSpec = Optimizer()
    schedule: Schedule = Schedule()
    budget: Budget
    batch: Batch = Batch()
    eval: Eval = Eval()
    sample: Sample = Sample()
    checkpoint: Checkpoint = Checkpoint()
    ema: float | None = Field(None, gt=0, lt=1)
    template: str = CHATML
    seed: int = Field(0, ge=0, lt=1 << 32)

    @property
    def has_chats(self) -> bool:
        """Whether its documents go through the chat template."""
        return self.kind != "pretrain"

    @property
    def asked(self) -> Preference | None:
        """What the loss of the model gives way to, if anything."""
        return self.preference if self.kind == "preference" else None

    @property
    def parents(self) -> list[str]:
        """The stages whose weights it reads."""
        reference = self.asked.reference if self.asked else None
        return list(dict.fromkeys(name for name in (self.from_, reference) if name is not None))

    @model_validator(mode="after")
    def _one_start(self) -> StageSpec:
        if self.from_ is not None and self.weights is not None:
            raise ValueError("a stage starts either from another stage ('from') or from a checkpoint ('weights')")
        return self

    @model_validator(mode="after")
    def _objective(self) -> StageSpec:
        if self.kind != "pretrain" and self.objective != "causal_lm":
            raise ValueError(f"{'an' if self.kind == 'sft' else 'a'} {self.kind} stage has the objective 'causal_lm'")
        for name, default in (("sft", Sft()), ("preference", Preference())):
            if self.kind != name and getattr(self, name) != default:
                raise ValueError(f"'{name}' has no effect on a stage of another kind")
        for name in ("masked_lm", "span_corruption", "blank_infilling"):
            if name != self.objective and getattr(self, name) != type(getattr(self, name))():
                raise ValueError(f"'{name}' has no effect on the objective '{self.objective}'")
        if self.denoising is not None and self.objective != "denoising":
            raise ValueError(f"'denoising' has no effect on the objective '{self.objective}'")
        if self.objective == "span_corruption":
            self.span_corruption.check(self.data.seq_len)
        elif self.objective == "blank_infilling" and self.data.seq_len < 8:
            raise ValueError("blank_infilling needs a data.seq_len of at least 8")
        return self

    @model_validator(mode="after")
    def _pictures(self) -> StageSpec:
        sources = [*self.data.sources, *self.data.held_out]
        if not self.of_images:
            columns = [s.image or s.label for s in sources]
            if self.data.image is not None or any(columns) or any(s.format in ("image", "tar") for s in sources):
                raise ValueError(f"the samples of the objective '{self.objective}' are texts, without pictures")
            return self
        if any(s.path is None or s.format == "text" for s in sources):
            raise ValueError(f"the objective '{self.objective}' wants pictures: sources with a 'path' to them")
        if self.budget.steps is None:
            raise ValueError("a stage of images has a budget of 'steps'")
        return self

    @model_validator(mode="after")
    def _decays_behind_the_warmup(self) -> StageSpec:
        steps, (warm, decays) = self.steps(), self.schedule.lengths(self.steps())
        if self.schedule.kind == "wsd" and warm + decays > steps:
            raise ValueError(f"the warmup ({warm:g} steps) and the decay ({decays:g}) take more than all {steps} steps")
        return self

    @property
    def of_images(self) -> bool:
        """Whether its samples are pictures."""
        return self.objective in OF_IMAGES

    @property
    def pictures(self) -> ImageSpec:
        """How pictures become tensors."""
        return self.data.image or ImageSpec()

    @property
    def unit(self) -> str:
        """What samples are counted in: tokens or images."""
        return "image" if self.of_images else "token"

    @property
    def units(self) -> int:
        """Tokens or images of a step."""
        return self.batch.sequences * (1 if self.of_images else self.data.seq_len)

    def lengths(self) -> dict[str, int]:
        """Tokens of a row of the inputs, by the first letters of their names; '' is for all others."""
        if self.objective == "span_corruption":
            return {"enc_": self.data.seq_len, "": self.span_corruption.decoder_len(self.data.seq_len)}
        return {"": self.data.seq_len}

    def steps(self) -> int:
        if self.budget.steps is not None:
            return self.budget.steps
        assert self.budget.tokens is not None
        return max(1, self.budget.tokens // (self.batch.sequences * self.data.seq_len))
