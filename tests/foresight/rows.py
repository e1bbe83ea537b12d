"""A published row as a model, a recipe and what was reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specc.compiler.elaborate import elaborate
from specc.compiler.foresight.model import Model
from specc.compiler.foresight.recipe import Recipe, Recompute
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.spec.hardware import Format
from specc.spec.spec import load

Row = Mapping[str, Any]
MODELS = Path(__file__).parent / "models"
DEVICES = {
    "A100": "a100-80gb", "A100 SXM": "a100-80gb", "H100": "h100-sxm", "H800": "h800-sxm", "H200": "h200-sxm",
    "B200": "b200-sxm", "GB200": "gb200", "MI300X": "mi300x",
}  # fmt: skip
# Whose tables were made with which generation of software.
SOFTWARE = {
    "llm-foundry": "fsdp-2023", "pytorch-fsdp-blog": "torch-eager", "torchtitan": "torch-eager",
    "korthikanti": "megatron-2022", "megatron-sc21": "megatron-2022", "zero-bubble": "megatron-2023",
    "nemo-24.07": "megatron-2024", "dgxc-benchmarking": "megatron-2024", "megatron-bridge": "megatron-2024",
    "nanotron-playbook": "nanotron", "nanotron-scripts": "nanotron", "megatron-moe-zoo": "megatron-2024",
    "megatron-h100": "megatron-2024",
}  # fmt: skip
RECOMPUTE: tuple[tuple[str, Recompute], ...] = (
    ("full", "full"), ("selective op", "half-products"), ("selective la", "half-layers"), ("selective", "attention"),
)  # fmt: skip
SCHEDULES = {"ZB-2p": "zb-2p", "ZB-2p*": "zb-2p", "ZB-1p": "zb-h1", "ZB-V": "zb-v", "1F1B": "1f1b"}
EFA = ("nanotron-playbook", "nanotron-scripts")  # a cluster of Amazon's
DROPOUT = ("korthikanti", "korthikanti-mem", "megatron-sc21", "zero-bubble")  # Megatron-LM as it was
VOCABULARY = 50304  # where a table does not say: GPT-2's, as Megatron pads it


@dataclass(frozen=True)
class Case:
    """A row: what to predict, and the seconds of a step and the GiB of a device that were reported.

    Tables that say GB print what torch counts in GiB: theirs are taken as such."""

    row: Row
    model: str
    dims: tuple[tuple[str, int], ...]
    seq: int
    recipe: Recipe
    device: str
    software: str
    seconds: float | None
    gib: float | None

    @property
    def name(self) -> str:
        return str(self.row["id"])


def case_of(row: Row) -> Case | str:
    """What to predict; for a row that cannot be predicted the reason."""
    model, hardware, p = row["model"], row["hardware"], row["parallel"]
    if row["kind"] != "measured" or not (row["prediction_ready"] or row["memory_ready"]) or not p["microbatch"]:
        return "sizes, plan or speed are not all known"
    if model.get("task") not in (None, "pretrain") or "video" in model["name"]:
        return "no pre-training of a language model"
    if hardware["gpu"] not in DEVICES or row["group"] not in SOFTWARE or "nvfp4" in (p["precision"] or "").lower():
        return "a device, software or number format that specc has no row for"
    kind, dims = _model(row)
    seconds = _seconds(row) if row["prediction_ready"] else None
    reported = row["reported"]
    gib = (reported["peak_memory_gib"] or reported.get("peak_memory_gb")) if row["memory_ready"] else None
    if any(v is None for v in dims.values()) or (seconds is None and gib is None):
        return "sizes, plan or speed are not all known"
    return Case(row, kind, tuple(dims.items()), model["seq"], _recipe(row), _device(row), _software(row), seconds, gib)


def model_of(case: Case) -> Model:
    """The model with the row's sizes."""
    sets = [f"model.dims.{k}={v}" for k, v in case.dims]
    whole = elaborate(load(MODELS / f"{case.model}.yaml", sets), None, "causal_lm")
    program = fuse_linear_cross_entropy(prune(whole, []))
    return Model(program, lambda sequences: {"B": sequences, "S": case.seq})


def _model(row: Row) -> tuple[str, dict[str, int]]:
    model = row["model"]
    heads, hidden = model["heads"], model["hidden"]
    dims = {"D": hidden, "L": model["layers"], "H": heads, "V": model["vocab"] or VOCABULARY}
    if model["moe"] is None:
        own = {"K": model["kv_heads"] or heads, "E": model["head_dim"] or hidden // heads, "F": model["ffn"]}
        plain = "dropped" if row["group"] in DROPOUT else "plain"
        return "llama" if model["gated_mlp"] else plain, dims | own
    moe = model["moe"]
    own = {"E": moe["experts"], "FE": moe["moe_ffn"] or model["ffn"], "T": moe["topk"]}
    return "experts", dims | own | {"K": model["kv_heads"], "N": model["head_dim"] or hidden // heads}


def _recipe(row: Row) -> Recipe:
    p, devices = row["parallel"], row["hardware"]["count"]
    tp, pp, cp = (p[k] or 1 for k in ("tp", "pp", "cp"))
    dp = max(1, devices // (tp * pp * cp))
    fsdp = p["fsdp"] or 0
    zero = p["zero"] if p["zero"] is not None else 3 if fsdp > 1 else 0 if dp == 1 else 1
    chunks = p["vpp"] or 1
    said = p["schedule"] or ""
    schedule = SCHEDULES.get(said, "interleaved") if said else "interleaved"
    if chunks == 1 and schedule == "interleaved":
        schedule = "1f1b"
    sequence = p["sp"] if p["sp"] is not None else (tp > 1 and row["group"] != "megatron-sc21")
    shards = (fsdp if fsdp > 1 else dp) * cp
    return Recipe(
        dp=dp, shards=shards, pp=pp, chunks=chunks, cp=cp, ep=p["ep"] or 1, tp=tp, zero=zero,
        microbatch=p["microbatch"], microbatches=round((p["global_batch"] or 1) / dp / p["microbatch"]) or 1,
        schedule=schedule, recompute="full" if _software(row) == "xla" else _recompute(p["recompute"]),
        sequence_parallel=bool(sequence) if tp > 1 else None,
        format=_format(p["precision"]),
    )  # fmt: skip


def _recompute(said: str | None) -> Recompute:
    return next((word for start, word in RECOMPUTE if said and said.startswith(start)), "none")


def _format(said: str | None) -> Format:
    return "fp8" if said and any(word in said.lower() for word in ("fp8", "float8")) else "bf16"


def _device(row: Row) -> str:
    """Memory tells variants apart: 40 GB of an A100; the H100 with more than 80 GB has slow memory and 500 W."""
    hardware = row["hardware"]
    name, memory = DEVICES[hardware["gpu"]], hardware["mem_gib"] or 80
    if row["group"] in EFA:
        return "h100-efa"
    if name == "a100-80gb" and memory == 40:
        return "a100-40gb"
    return "h100-sxm-500w" if name == "h100-sxm" and memory > 80 else name


def _software(row: Row) -> str:
    if "maxtext" in row["source"] or "paxml" in row["source"]:
        return "xla"
    if row["group"] == "torchtitan" and (row["parallel"]["compile"] or row["parallel"].get("async_tp") is not None):
        compiled = "torch-compile-2025" if "_2025" in row["source"] else "torch-compile"
        return "torch-async-tp" if row["parallel"].get("async_tp") else compiled
    return SOFTWARE[row["group"]]


def _seconds(row: Row) -> float | None:
    """A step's seconds as reported, or from the speed; the tables of SC21 count the forward that is done again."""
    reported, derived, gpus = row["reported"], row["derived"], row["hardware"]["count"]
    if reported["step_time_s"]:
        return float(reported["step_time_s"])
    tokens = row["parallel"]["global_batch"] * row["model"]["seq"]
    speed = reported["tokens_per_s_per_gpu"] or derived.get("tokens_per_s_per_gpu")
    speed = speed or derived.get("tokens_per_s_per_gpu_from_mfu")
    if not speed and row["group"] == "megatron-sc21":
        m = row["model"]
        per_token = 96 * m["layers"] * m["hidden"] ** 2
        per_token *= 1 + m["seq"] / 6 / m["hidden"] + m["vocab"] / 16 / m["layers"] / m["hidden"]
        speed = reported["tflops_per_gpu"] * 1e12 / per_token
    return tokens / speed / gpus if speed else None
