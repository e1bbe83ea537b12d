"""What a preference stage makes of a model: its cross-entropy over `labels` gives way to a loss of pairs of answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from specc.compiler.elaborate.ambient import expanded
from specc.compiler.elaborate.args import op_args
from specc.compiler.elaborate.block import enter, leave
from specc.compiler.elaborate.library import objective_block
from specc.compiler.elaborate.scope import Frame, Path, StepFailed
from specc.compiler.elaborate.step import operands
from specc.compiler.elaborate.unit import Value
from specc.compiler.program import Program
from specc.compiler.types import Dim, TensorType
from specc.spec.errors import Diagnostic
from specc.spec.model import Step
from specc.spec.objective import LOG_PROBS, REFERENCE, Preference

LABELS, DOC = "labels", "doc"
METRICS = ("reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected")  # scalars beside the loss
NO_PAIRS = "S321"


@dataclass
class PairLoss:
    """The loss under construction: takes the place of steps `cross_entropy` over the model's input `labels`."""

    asked: Preference
    watched: dict[str, str] = field(default_factory=dict)  # values by name: the metrics, and what a reference says

    def __call__(self, frame: Frame, step: Step, at: Path) -> list[Value] | None:
        """The loss, or None for a cross-entropy over something else."""
        logits, labels = operands(frame, frame.ctx.ops[step.op], step, at)
        if logits is None or labels is None or labels.name != LABELS or frame.own_unit is not None:
            return None
        if self.watched:
            frame.fail(NO_PAIRS, "the model has a second cross_entropy over 'labels'", at)
        doc = self.document(frame, at)
        answers = Dim("answers", 2 * self.asked.pairs)
        ins = {"logits": logits, "labels": labels, "doc": doc}
        sums, lengths = block(frame, "log_probs", ins, {"answers": answers}, at)
        reference = self.reference(frame, sums, at) if self.asked.has_reference else None
        made = block(frame, "preference", {"sums": sums, "lengths": lengths}, arguments(self.asked), at, reference)
        self.watched |= zip(METRICS, (v.name for v in made[1:]), strict=True)
        if reference is not None:
            self.watched[LOG_PROBS] = sums.name
        return made[:1]

    def document(self, frame: Frame, at: Path) -> Value:
        """The attribute that keeps the answers of a row apart."""
        if DOC not in frame.ctx.model.inputs:
            hint = "attributes: {doc: 'int[B S]'}, and masks that read it: 'mask: objective'"
            frame.fail(NO_PAIRS, "a row has several answers, and the model has no attribute 'doc' of them", at, hint)
        return frame.captured(DOC, frame.ctx.model.inputs[DOC])

    def reference(self, frame: Frame, sums: Value, at: Path) -> Value:
        """What the reference says of the same answers: an input of bits, since floats come in the compute type."""
        if REFERENCE in frame.ctx.model.inputs:
            frame.fail(NO_PAIRS, f"the model has an input '{REFERENCE}', which a preference stage adds", at)
        bits = TensorType(sums.type.dims, "int")
        frame.ctx.model.inputs[REFERENCE] = bits
        frame.ctx.model.types[REFERENCE] = bits
        return frame.emit("from_bits", [REFERENCE, sums.name], (sums.type,), {}, REFERENCE)[0]


def attend(frame: Frame, step: Step, at: Path) -> None:
    """Tokens along the dim of `doc` look at each other by a mask that reads it on both sides."""
    here = (*at, step.op)
    q, k, *_ = operands(frame, frame.ctx.ops[step.op], step, at)
    doc = frame.ctx.model.inputs.get(DOC)
    if doc is None or q is None or k is None or not all(x.type.dims[-3:-2] == doc.dims[-1:] for x in (q, k)):
        return
    mask = op_args(frame, frame.ctx.ops[step.op], step.args, here)["mask"]
    tree = None if mask is None else expanded(frame, str(mask), (*here, "mask"))
    if tree is None or not {"q.doc", "k.doc"} <= {e.value for e in tree.walk() if e.op == "attr"}:
        text = "an answer sees the others of its row: the mask of this attention does not read 'doc'"
        frame.fail(NO_PAIRS, text, here, "mask: objective")


def block(
    frame: Frame, name: str, ins: dict[str, Value], args: dict[str, object], at: Path, reference: Value | None = None
) -> list[Value]:
    """The results of one of the objective's blocks."""
    found, locate = objective_block(name)
    if reference is not None:
        frame.values[REFERENCE] = reference
        args = {**args, REFERENCE: REFERENCE}
    inner = enter(frame, found, locate, (), name, args, ins, name, at)
    return leave(inner, found, ())


def left_aside(program: Program) -> list[str]:
    """Settings of a model's cross-entropy over `labels` that a preference stage does not have, of its own program."""
    steps = (e for body in program.bodies.values() for e in body.eqns if e.op == "cross_entropy" and LABELS in e.ins)
    return sorted({n for e in steps for n in ("z_loss", "label_smoothing") if e.attrs.get(n)})


def arguments(asked: Preference) -> dict[str, object]:
    return {
        "pairs": Dim("pairs", asked.pairs), "beta": asked.scale, "gamma": asked.head_start,
        "smoothing": asked.label_smoothing, "nll": asked.likelihood, "average": asked.by_token,
        "logistic": asked.loss in ("dpo", "cpo", "simpo"), "ipo": asked.loss == "ipo", "hinge": asked.loss == "hinge",
        "orpo": asked.loss == "orpo",
    }  # fmt: skip


def check_found(frame: Frame, loss: PairLoss, outputs: Collection[str]) -> None:
    """Raises StepFailed if the model has no step that the loss could stand for, or outputs of names that it adds."""
    if not loss.watched:
        text = "a preference stage needs a step `cross_entropy` over the model's input 'labels', outside of repeats"
        raise StepFailed(Diagnostic(NO_PAIRS, text, frame.locate((*frame.at, "loss")) or frame.locate(frame.at)))
    if both := sorted(loss.watched.keys() & set(outputs)):
        text = f"the model has an output '{both[0]}', which a preference stage adds"
        frame.fail(NO_PAIRS, text, (*frame.at, "outputs"))
