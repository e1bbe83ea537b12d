"""The losses of pairs of answers, and their gradients, against plain torch in fp64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from specc.compiler.elaborate import elaborate_model
from specc.compiler.kernels.cut import cut
from specc.compiler.lower.log_prob import LinearLogProb, whole_terms
from specc.compiler.lower.placed_ops import own_entries
from specc.compiler.lower.run import run_program
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.compiler.program import Program
from specc.spec.errors import SpecError
from specc.spec.model import ModelSpec
from specc.spec.objective import Preference
from specc.spec.spec import library_model
from tests.parity.case import executor

SIZES = {"D": 16, "L": 1, "H": 2, "K": 1, "F": 24, "V": 40}
ROWS, TOKENS = 2, 24
SAMPLES: tuple[dict[str, Any], ...] = (
    {"loss": "dpo"}, {"loss": "dpo", "beta": 0.5, "label_smoothing": 0.2}, {"loss": "dpo", "nll": 0.7},
    {"loss": "dpo", "average": True}, {"loss": "ipo", "beta": 0.3}, {"loss": "ipo", "average": True},
    {"loss": "hinge", "beta": 0.4}, {"loss": "simpo", "beta": 1.5, "gamma": 0.6}, {"loss": "orpo", "beta": 0.2},
    {"loss": "cpo"}, {"loss": "cpo", "label_smoothing": 0.1},
)  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """Rows [B S] of whole answers, of each the first and last token, and what the reference says of it."""

    tokens: Tensor
    labels: Tensor
    doc: Tensor
    pos: Tensor
    pairs: list[list[tuple[int, int, int]]]  # row, begin, end: of the chosen and of the rejected answer
    reference: Tensor

    def inputs(self, names: Mapping[str, object]) -> dict[str, Tensor]:
        made = {**vars(self), "reference": self.reference.view(torch.int64)}
        return {n: made[n] for n in names}


def batch(pairs: int) -> Batch:
    """Row 0 is full of pairs, row 1 lacks the last one if there are several."""
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, SIZES["V"], (ROWS, TOKENS), generator=draw)
    labels, doc = torch.full_like(tokens, -100), torch.full_like(tokens, -1)
    pos, found = torch.zeros_like(tokens), []
    for row in range(ROWS):
        start = 0
        for n in range(pairs if row == 0 or pairs == 1 else pairs - 1):
            spans = []
            for side, (length, prompt) in enumerate(((7, 2), (5, 2))):
                here = slice(start, start + length)
                doc[row, here], pos[row, here] = 2 * n + side, torch.arange(length)
                answer = slice(start + prompt - 1, start + length - 1)
                labels[row, answer] = tokens[row, start + prompt : start + length]
                spans.append((row, start, start + length))
                start += length
            found.append(spans)
    reference = torch.randn(ROWS, 2 * pairs, generator=draw, dtype=torch.float64) - 9
    return Batch(tokens, labels, doc, pos, found, reference)


def model(**changes: Any) -> ModelSpec:
    return library_model("llama", **SIZES).model_copy(update=changes)


def program(asked: Preference, spec: ModelSpec | None = None) -> Program:
    whole = elaborate_model(spec or model(), "m", asked=asked)
    return prune(whole, whole.watched)


def weights(p: Program) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return {
        n: torch.randn(x.type.shape({}), generator=draw, dtype=torch.float64) * 0.3 + (len(x.type.dims) == 1)
        for n, x in p.params.items()
    }


def log_probs(params: Mapping[str, Tensor], b: Batch) -> list[list[Tensor]]:
    """Of each pair's answers, alone in a row, the log-probabilities of the labelled tokens: logits by the model
    without its loss."""
    logits = prune(elaborate_model(model(), "m"), ["logits"], loss=False)
    found = []
    for pair in b.pairs:
        sides = []
        for row, begin, end in pair:
            ids, labels = b.tokens[row, begin:end], b.labels[row, begin:end]
            alone = {"tokens": ids, "doc": torch.zeros_like(ids), "pos": torch.arange(len(ids))}
            inputs = {n: alone[n][None] for n in logits.inputs}
            said = run_program(logits, inputs, params, {"B": 1, "S": len(ids)})["logits"][0].log_softmax(-1)
            sides.append(torch.stack([said[t, y] for t, y in enumerate(labels.tolist()) if y != -100]))
        found.append(sides)
    return found


def expected(asked: Preference, params: Mapping[str, Tensor], b: Batch) -> Tensor:
    """The mean over pairs by the papers' formulas."""
    losses = []
    for pair, (chosen, rejected) in zip(b.pairs, log_probs(params, b), strict=True):
        row = pair[0][0]
        at = int(b.doc[row, pair[0][1]])
        ref_w, ref_l = b.reference[row, at], b.reference[row, at + 1]
        pi_w, pi_l = chosen.sum(), rejected.sum()
        if asked.by_token:
            pi_w, pi_l, ref_w, ref_l = chosen.mean(), rejected.mean(), ref_w / len(chosen), ref_l / len(rejected)
        ratio = (pi_w - pi_l) - (ref_w - ref_l if asked.has_reference else 0)
        odds = [x.mean() - torch.log1p(-x.mean().exp()) for x in (chosen, rejected)]
        losses.append(of_pair(asked, ratio, odds[0] - odds[1]) - asked.likelihood * chosen.mean())
    return torch.stack(losses).mean()


def of_pair(asked: Preference, ratio: Tensor, log_odds: Tensor) -> Tensor:
    beta, eps = asked.scale, asked.label_smoothing
    match asked.loss:
        case "dpo" | "cpo":
            return -(1 - eps) * F.logsigmoid(beta * ratio) - eps * F.logsigmoid(-beta * ratio)
        case "ipo":
            return (ratio - 1 / (2 * beta)) ** 2
        case "hinge":
            return torch.relu(1 - beta * ratio)
        case "simpo":
            return -F.logsigmoid(beta * ratio - asked.head_start)
        case "orpo":
            return -beta * F.logsigmoid(log_odds)


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("settings", SAMPLES, ids=lambda s: "-".join(map(str, s.values())))
def test_losses_and_gradients_are_those_of_the_papers(settings: dict[str, Any], fused: bool, pairs: int) -> None:
    asked, b = Preference(**settings, pairs=pairs), batch(pairs)
    p = fuse_linear_cross_entropy(program(asked)) if fused else program(asked)
    ops = {e.op for body in p.bodies.values() for e in body.eqns}
    assert ("linear_log_prob" in ops, "cross_entropy" in ops) == (fused, False)
    params = {n: x.requires_grad_() for n, x in weights(p).items()}
    want = expected(asked, params, b)
    grads = torch.autograd.grad(want, list(params.values()))
    inputs = b.inputs(p.inputs)
    result = executor(p, inputs, torch.float64).step({n: x.detach() for n, x in params.items()}, [inputs], [1.0])
    torch.testing.assert_close(result.losses[0], want.detach(), rtol=1e-12, atol=1e-12)
    for name, grad in zip(params, grads, strict=True):
        torch.testing.assert_close(result.grads[name], grad, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_where_every_logit_is_far_below_zero(ranks: int) -> None:
    """log Z is about -118, and one row has no gradient: its own exp(-log Z) is more than fp32 holds. Ranks have their
    words of the vocabulary, and log Z of all."""
    draw = torch.Generator().manual_seed(2)
    x, weight = 1 + torch.rand(4, 8, generator=draw), torch.rand(8, 6, generator=draw) - 11
    labels, d = torch.tensor([1, 5, 3, -100]), torch.tensor([0.5, 0.0, -2.0, 0.0])
    a, b = (t.double().requires_grad_() for t in (x, weight))
    said = (a @ b).log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    want = torch.autograd.grad((said * d.double() * (labels >= 0)).sum(), (a, b))
    assert float((a @ b).detach().logsumexp(-1).max()) < -89
    size, of_x, of_weight = 6 // ranks, [], []
    for words in torch.arange(6).split(size):

        def terms(logits: Tensor, some: Tensor) -> Tensor:
            return whole_terms(x[: len(logits)] @ weight, some)

        p, q = x.clone().requires_grad_(), weight[:, words].clone().requires_grad_()
        own = partial(own_entries, places=words)
        found = LinearLogProb.apply(p, q, None, labels, terms, own, (True, True, False))
        grads = torch.autograd.grad(found, (p, q), d)
        of_x.append(grads[0])
        of_weight.append(grads[1])
    torch.testing.assert_close(torch.stack(of_x).sum(0).double(), want[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(of_weight, 1).double(), want[1], rtol=1e-4, atol=1e-4)


def test_metrics_are_those_of_the_pairs() -> None:
    asked, b = Preference(beta=0.5, pairs=2), batch(2)
    p = program(asked)
    params, inputs = weights(p), b.inputs(p.inputs)
    found = executor(p, inputs, torch.float64).forward(params, inputs)
    said = torch.tensor([[float(x.sum()) for x in sides] for sides in log_probs(params, b)], dtype=torch.float64)
    reference = torch.cat([b.reference[0].reshape(2, 2), b.reference[1, :2][None]])
    rewards = 0.5 * (said - reference)
    want = {
        "reward_chosen": rewards[:, 0].mean(), "reward_rejected": rewards[:, 1].mean(),
        "reward_margin": (rewards[:, 0] - rewards[:, 1]).mean(),
        "reward_accuracy": (rewards[:, 0] > rewards[:, 1]).double().mean(),
    }  # fmt: skip
    for name, value in want.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-9, atol=1e-9, msg=name)
    torch.testing.assert_close(found["log_probs"][0], said[:2].reshape(-1), rtol=1e-12, atol=1e-12)


def test_a_policy_that_is_its_reference_has_the_loss_log_2() -> None:
    p, b = program(Preference(pairs=2)), batch(2)
    params, inputs = weights(p), b.inputs(p.inputs)
    run = executor(p, inputs, torch.float64)
    said = run.forward(params, inputs)["log_probs"]
    found = run.forward(params, replace(b, reference=said).inputs(p.inputs))
    assert float(found["loss"]) == float(torch.tensor(2.0, dtype=torch.float64).log())
    assert float(found["reward_accuracy"]) == 0.5


def test_other_terms_of_the_loss_stay() -> None:
    spec = library_model("mixtral", **{**SIZES, "EXPERTS": 4})
    whole = elaborate_model(spec, "m", asked=Preference(loss="simpo"))
    assert "reference" not in whole.inputs
    assert any("moe" in e.path for body in prune(whole, []).bodies.values() for e in body.eqns)
    assert whole.loss not in whole.outputs.values()
    head = whole.bodies["head"]
    assert "balance" in str(next(e for e in head.eqns if whole.loss in e.outs))


def test_kernels_in_bf16_leave_the_formulas_of_pairs_which_are_fp32() -> None:
    """A kernel's operands in memory are of the compute type."""
    head = fuse_linear_cross_entropy(program(Preference(pairs=2))).bodies["head"]
    found = cut(head, {"B": 2, "S": 8}, torch.bfloat16)
    assert [name.rpartition("_")[0] for name in found.made] == ["rms_norm"]
    assert set(found.left.values()) >= {"it computes in fp32"}
    assert any(name.startswith("expr") for name in cut(head, {"B": 2, "S": 8}, torch.float32).made)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_answers_of_many_tokens_are_counted_exactly_in_bf16(loss: str, fused: bool) -> None:
    """bf16 holds no 301. Where every word is as likely, an answer of n tokens has -n log V, and -log V by token."""
    lengths = (301, 263)
    n, log_v = torch.tensor([lengths], dtype=torch.float64), math.log(SIZES["V"])
    tokens = torch.randint(0, SIZES["V"], (1, 600), generator=torch.Generator().manual_seed(5))
    doc = torch.tensor([[0] * (1 + lengths[0]) + [1] * (600 - 1 - lengths[0])])
    labels = tokens.where(torch.arange(600) < 302 + lengths[1], -100)
    labels[0, 0] = -100
    p = program(Preference(loss=loss, beta=1.0, gamma=0.0 if loss == "simpo" else None))
    p = fuse_linear_cross_entropy(p) if fused else p
    params = {name: x.to(torch.bfloat16) for name, x in weights(p).items()}
    params["head.weight"].zero_()
    b = Batch(tokens, labels, doc, torch.arange(600)[None], [], torch.zeros(1, 2, dtype=torch.float64))
    inputs = b.inputs(p.inputs)
    found = executor(p, inputs, torch.bfloat16).forward(params, inputs)
    want = torch.ones(1, 2) if loss == "simpo" else n
    said = torch.stack([found["reward_chosen"], found["reward_rejected"]])[None].double()
    torch.testing.assert_close(said, -want.double() * log_v, rtol=1e-6, atol=0.0)
    if loss == "dpo":
        torch.testing.assert_close(found["log_probs"].double(), -n * log_v, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("changes", [{}, {"masks": {"objective": "causal & window(4) & q.doc == k.doc"}}])
def test_masks_that_read_doc_are_enough(changes: dict[str, Any]) -> None:
    assert program(Preference(), model(**changes)).watched


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": None, "steps": model().steps[:-1]}, "cross_entropy"),
        ({"attributes": {"pos": "int[B S]"}, "masks": {"objective": "causal"}}, "no attribute 'doc'"),
        ({"inputs": {**model().inputs, "reference": "int[B S]"}}, "has an input 'reference'"),
        ({"outputs": {"log_probs": "logits"}}, "has an output 'log_probs'"),
        ({"outputs": {"reward_margin": "logits"}}, "has an output 'reward_margin'"),
        *(({"masks": {"objective": mask}}, "does not read 'doc'") for mask in ("causal", "causal & k.doc >= 0")),
    ],
)
def test_models_that_have_no_pairs_are_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        program(Preference(), model(**changes))
    assert {d.code for d in caught.value.diagnostics} == {"S321"}
