"""The `optimizer:` section of a stage: one class for each kind, with the settings that it has."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from specc.spec.node import Node

Beta = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, description="times the learning rate: the share of a weight that goes in a step")]
Clip = Annotated[
    float | None, Field(gt=0, description="largest norm of all gradients together; null: no bound"),
]  # fmt: skip
NoDecay = Annotated[list[str], Field(description="patterns; one-dimensional parameters and biases never decay")]
KIND = "kind"  # pydantic's name of the mistake below


class ParamGroup(Node):
    """Settings of the parameters that a pattern matches; the first group that matches counts."""

    match: str = Field(description="pattern of parameter paths, such as 'embed.*'")
    lr_scale: float = Field(1.0, ge=0, description="times the learning rate")
    weight_decay: float | None = Field(None, ge=0, description="default: as all others")


Groups = Annotated[list[ParamGroup], Field(description="parameters that learn at another rate or decay")]


class Optimizer(Node):
    """AdamW (arXiv:1711.05101), the kind of an optimizer that names none."""

    kind: Literal["adamw"] = "adamw"
    lr: Rate = 3e-4
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: Decay = 0.1
    clip: Clip = 1.0
    no_decay: NoDecay = []
    groups: Groups = []


ADAMW = Optimizer()


class Muon(Node):
    """Muon (Jordan et al. 2024) for the matrices of hidden layers, AdamW for all other parameters.

    A `kind` without a default is written wherever the spec is, and tells an editor which settings there are."""

    kind: Literal["muon"]
    lr: Rate = 3e-4
    momentum: Beta = 0.95
    nesterov: bool = True
    steps: int = Field(5, ge=1, le=20, description="iterations of Newton and Schulz")
    adjust_lr: Literal["match_rms_adamw", "original"] = Field(
        "match_rms_adamw",
        description="factor of the rate: 0.2 sqrt(max(in, out)), so that rates and decays of AdamW fit, or sqrt(max(1, "
        "out / in))",
    )
    adamw: list[str] = Field([], description="patterns of matrices that AdamW updates too")
    adamw_lr: Annotated[float | None, Field(gt=0, description="rate of what AdamW updates; default: lr")] = None
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: Decay = 0.1
    clip: Clip = 1.0
    no_decay: NoDecay = []
    groups: Groups = []

    @model_validator(mode="after")
    def _looks_ahead(self) -> Muon:
        _check_nesterov(self.nesterov, self.momentum)
        return self


class Lion(Node):
    """Lion (arXiv:2302.06675): the sign of a mean of gradients. Rates a third to a tenth of AdamW's, decays larger by
    as much."""

    kind: Literal["lion"]
    lr: Rate = 1e-4
    betas: tuple[Beta, Beta] = (0.9, 0.99)
    weight_decay: Decay = 0.3
    clip: Clip = 1.0
    no_decay: NoDecay = []
    groups: Groups = []


class SGD(Node):
    """Gradient descent with momentum (Sutskever et al. 2013); decay is apart from gradients, as with the others."""

    kind: Literal["sgd"]
    lr: Rate = 0.1
    momentum: Beta = 0.9
    nesterov: bool = False
    weight_decay: Decay = 0.0
    clip: Clip = 1.0
    no_decay: NoDecay = []
    groups: Groups = []

    @model_validator(mode="after")
    def _looks_ahead(self) -> SGD:
        _check_nesterov(self.nesterov, self.momentum)
        return self


def _check_nesterov(nesterov: bool, momentum: float) -> None:
    if nesterov and not momentum:
        raise ValueError("'nesterov' looks ahead along the momentum, and there is none: 'momentum' above 0")


def _kind(value: Any) -> Any:
    """What tells the kinds apart; what is no mapping is told by that of no kind."""
    return value.get("kind", "adamw") if isinstance(value, dict) else getattr(value, "kind", "adamw")


OptimizerSpec = Annotated[
    Annotated[Optimizer, Tag("adamw")]
    | Annotated[Muon, Tag("muon")]
    | Annotated[Lion, Tag("lion")]
    | Annotated[SGD, Tag("sgd")],
    Discriminator(
        _kind, custom_error_type=KIND, custom_error_message="should be 'adamw', 'muon', 'lion' or 'sgd'"
    ),
]  # fmt: skip


def patterns(spec: OptimizerSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The patterns of an optimizer's section, with their places in it."""
    yield from ((("no_decay", i), p) for i, p in enumerate(spec.no_decay))
    yield from ((("groups", i, "match"), g.match) for i, g in enumerate(spec.groups))
    if isinstance(spec, Muon):
        yield from ((("adamw", i), p) for i, p in enumerate(spec.adamw))
