"""Which device a rank computes on, and that a step of a rank with a GPU makes nothing elsewhere: with tensors that have
a device and no memory, which any machine can have, and which refuse to meet those of another device."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from specc.compiler.build import lower
from specc.compiler.graphs import from_json, to_json
from specc.compiler.schedule.actions import one_rank
from specc.runtime import built, device, gloo
from specc.runtime.boxed import boxed
from specc.runtime.errors import RunError
from specc.runtime.executor import Compiled, Executor, StepResult
from tests.grid.models import TRACERS, inputs_of

assert built.flash_attention is not None  # registers ops that graphs on GPUs call
CUDA = torch.device("cuda", 0)


def step(name: str, graphs_on: torch.device, tensors_on: torch.device) -> StepResult:
    """A step of a tracer without memory, with its graphs as they are loaded for a device."""
    tracer = TRACERS[name]
    program = tracer.program()
    graphs, calls = lower(program, tracer.sizes, torch.float32)
    bodies: dict[str, Compiled] = {}
    for body, g in graphs.items():
        part = {n: boxed(from_json(to_json(gm), graphs_on)) for n, gm in g.parts().items()}
        bodies[body] = Compiled(
            part["fwd"], part.get("bwd"), None, None, g.n_outs, g.in_grads, g.param_grads, g.out_grads
        )  # fmt: skip
    actions = one_rank(len(calls), 2, {i for i, c in enumerate(calls) if graphs[c.body].bwd is not None})
    trainable = frozenset(n for n, p in program.params.items() if p.trainable)
    run = Executor(calls, bodies, actions, program.loss, {}, trainable, torch.float32)
    inputs = inputs_of(program, tracer.sizes, torch.float32, 0)
    with FakeTensorMode():
        params = {n: torch.empty(p.type.shape(tracer.sizes), device=tensors_on) for n, p in program.params.items()}
        batch = {n: torch.empty(x.shape, dtype=x.dtype, device=tensors_on) for n, x in inputs.items()}
        return run.step(params, [batch, batch], [0.5, 0.5])


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
@pytest.mark.parametrize("name", ["llama", "deepseek_v2", "t5", "cogvlm_expert", "sd3"])
def test_a_step_on_a_gpu_stays_there(name: str) -> None:
    made = step(name, CUDA, CUDA)
    assert {x.device for x in [*made.losses, *made.grads.values()]} == {CUDA}
    assert made.grads


@pytest.mark.parametrize("name", ["llama", "deepseek_v2", "t5", "cogvlm_expert", "sd3"])
def test_no_op_of_the_cpu_alone_is_loaded_for_a_gpu(name: str) -> None:
    tracer = TRACERS[name]
    graphs, _ = lower(tracer.program(), tracer.sizes, torch.float32)
    texts = [to_json(gm) for g in graphs.values() for gm in g.parts().values()]
    targets = {str(n.target) for text in texts for n in from_json(text, CUDA).graph.nodes if n.op == "call_function"}
    assert not {t for t in targets if "_for_cpu" in t or "mkldnn" in t}


@pytest.mark.parametrize(("is_causal", "is_masked"), [(True, False), (False, True), (False, False)])
def test_attention_of_any_device_is_that_of_the_cpu_and_lies_as_it_does(is_causal: bool, is_masked: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(2, 40, 3, 16, generator=draw).transpose(1, 2) for _ in range(4))
    mask = torch.randn(2, 1, 40, 40, generator=draw) if is_masked else None
    theirs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    ours = torch.ops.specc.flash_attention.default, torch.ops.specc.flash_attention_backward.default
    out, sums = theirs(q, k, v, 0.0, is_causal, attn_mask=mask)
    found, place = ours[0](q, k, v, 0.0, is_causal, attn_mask=mask)
    assert (place.shape, place.stride()) == (sums.shape, sums.stride())
    expected = [out, *back(grad, q, k, v, out, sums, 0.0, is_causal, attn_mask=mask)]
    given = [found, *ours[1](grad, q, k, v, found, place, 0.0, is_causal, attn_mask=mask)]
    for x, y in zip(expected, given, strict=True):
        assert x.stride() == y.stride()
        torch.testing.assert_close(x, y)


def test_graphs_of_another_device_are_found_out() -> None:
    kind = getattr(fake_tensor, "FakeTensorDeviceMismatchError", RuntimeError)  # torch 2.11 has no name for it
    with pytest.raises(kind, match=r"devices,? c"):
        step("llama", device.CPU, CUDA)


def test_without_a_gpu_ranks_compute_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device.here({}) == device.CPU
    assert device.backend(device.CPU) == gloo.NAME
    with pytest.raises(RunError, match="torch sees no GPU"):
        device.here({device.ASKED: "cuda"})
    with pytest.raises(RunError, match="it may be auto, cpu, cuda"):
        device.here({device.ASKED: "tpu"})


def test_each_rank_of_a_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert device.here({"RANK": "9", "LOCAL_RANK": "1"}) == torch.device("cuda", 1)
    assert device.here({"RANK": "1", device.ASKED: "cpu"}) == device.CPU
    with pytest.raises(RunError, match="rank 2 of this machine has no GPU of its own"):
        device.here({"LOCAL_RANK": "2"})
