"""The table of commands and their options: the whole command line as data."""

from __future__ import annotations

from argparse import ArgumentTypeError
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any


@dataclass(frozen=True)
class Option:
    """An argument of `ArgumentParser.add_argument`: its flags (or its name) and its settings."""

    flags: tuple[str, ...]
    help: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Command:
    """A command: what runs it, as "module:function" (imported when it is called), and its options."""

    help: str
    function: str
    options: tuple[Option, ...]


def option(*flags: str, help: str, **settings: Any) -> Option:
    return Option(flags, help, settings)


def positive(text: str) -> int:
    """A whole number from 1."""
    return _whole(text, 1)


def count(text: str) -> int:
    """A whole number from 0."""
    return _whole(text, 0)


def seed(text: str) -> int:
    """A whole number that a generator of torch takes."""
    return _whole(text, 0, 2**64 - 1)


def share(text: str) -> float:
    """A number in (0, 1]."""
    found = _real(text)
    if not 0 < found <= 1:
        raise ArgumentTypeError(f"'{text}' is not a number above 0 and up to 1")
    return found


def amount(text: str) -> float:
    """A finite number from 0."""
    found = _real(text)
    if not 0 <= found < inf:
        raise ArgumentTypeError(f"'{text}' is not a number from 0")
    return found


def _whole(text: str, least: int, most: int | None = None) -> int:
    try:
        found = int(text)
    except ValueError:
        found = least - 1
    if found < least or (most is not None and found > most):
        to = "" if most is None else f" to {most}"
        raise ArgumentTypeError(f"'{text}' is not a whole number from {least}{to}")
    return found


def _real(text: str) -> float:
    """The number that is written there; what is no number lies in no interval."""
    try:
        return float(text)
    except ValueError:
        return nan


SPEC = option("spec", metavar="SPEC", help="a spec file (YAML)")
SPECS = option("specs", metavar="SPEC", nargs="+", help="spec files (YAML)")
TARGET = option("target", metavar="BUILD|SPEC", help="a build directory, or a spec that is built first")
SET = option(
    "--set", metavar="PATH=VALUE", action="append", default=[], dest="overrides",
    help="override a value of the spec, such as model.dims.L=4 (may be repeated)",
)  # fmt: skip
STAGE = option("--stage", metavar="NAME", help="only this stage")
JSON = option("--json", action="store_true", help="print JSON on standard output")
BUILD_OUT = option("-o", "--out", metavar="DIR", help="where a spec's build goes (default: build/NAME)")
ALLOW_OPS = option("--allow-ops", action="store_true", help="trust the Python files under the spec's 'ops:', run them")
DEVICE = option(
    "--device", choices=("auto", "cpu", "cuda"),
    help="where to compute (default: what SPECC_DEVICE says, or auto: a GPU for each process where torch sees any)",
)  # fmt: skip
EMIT = ("tree", "program", "spec", "graphs", "schedule")

JOBS = {
    "slurm": "a batch script of Slurm (the default)",
    "k8s": "a Job of Kubernetes with its service",
    "skypilot": "a task of SkyPilot",
}

COMMANDS: dict[str, Command] = {
    "check": Command(
        "check specs: names, shapes, stages; nothing is built",
        "specc.runtime.commands.check:run",
        (SPECS, SET, JSON),
    ),
    "show": Command(
        "show a spec's model, its program, or a build's graphs and schedule",
        "specc.runtime.commands.show:run",
        (
            TARGET,
            SET,
            STAGE,
            option("--emit", choices=EMIT, default="tree", help="what to show (default: tree)"),
            option("--block", metavar="NAME", help="only this block"),
            JSON,
        ),
    ),
    "build": Command(
        "compile a spec to a build directory",
        "specc.runtime.commands.build:run",
        (SPEC, SET, BUILD_OUT, ALLOW_OPS, JSON),
    ),
    "run": Command(
        "run the stages of a build: what is done is skipped, what is half done goes on",
        "specc.runtime.commands.run:run",
        (
            TARGET,
            SET,
            BUILD_OUT,
            ALLOW_OPS,
            STAGE,
            option("--nproc", metavar="N", type=positive, help="processes on this machine (default: the build's mesh)"),
            DEVICE,
            option(
                "--max-restarts",
                metavar="K",
                type=count,
                help="start again K times from the last checkpoint, if a process dies or hangs (default: 3; "
                "counted anew after a checkpoint; a build for one process is not restarted unless this is given)",
            ),
            JSON,
        ),
    ),
    "sample": Command(
        "write text with a trained model",
        "specc.runtime.commands.sample:run",
        (
            option("target", metavar="BUILD", help="a build directory whose stage was run"),
            option("--stage", metavar="NAME", help="the stage whose weights to take (default: the last)"),
            option(
                "--prompt",
                metavar="TEXT",
                action="append",
                default=[],
                dest="prompts",
                help="what to go on from (may be repeated; default: the prompts of the stage)",
            ),
            option("--raw", action="store_true", help="do not put prompts into the chat template of a stage of chats"),
            option("--tokens", metavar="N", type=positive, default=64, help="new tokens at most (default: 64)"),
            option("--temperature", metavar="T", type=amount, default=0.8, help="0: the likeliest (default: 0.8)"),
            option("--top-k", metavar="K", type=positive, default=0, help="draw from the K likeliest (default: all)"),
            option("--top-p", metavar="P", type=share, default=1.0, help="draw from the likeliest that hold P"),
            option("--seed", metavar="N", type=seed, default=0, help="seed of the draws (default: 0)"),
            JSON,
        ),
    ),
    "export": Command(
        "write a trained model as a folder that transformers loads: model.safetensors, config.json, tokenizer.json",
        "specc.runtime.commands.export:run",
        (
            option("target", metavar="BUILD", help="a build directory whose stage was run"),
            option("-o", "--out", metavar="DIR", required=True, help="the folder to write"),
            option("--stage", metavar="NAME", help="the stage whose weights to take (default: the last)"),
            option("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the weights (default: fp32)"),
            option("--names", metavar="TABLE", help="the name table (default: the one that fits the model)"),
            option("--adapter", action="store_true", help="the adapters of 'lora:' alone, as PEFT loads them"),
        ),
    ),
    "report": Command(
        "write one self-contained HTML page about a build and its runs",
        "specc.runtime.commands.report:run",
        (
            option("target", metavar="BUILD", help="a build directory"),
            option("-o", "--out", metavar="FILE", help="where the page goes (default: BUILD/report.html)"),
            option("--json", action="store_true", help="print the page's data on standard output"),
        ),
    ),
    "explain": Command(
        "explain an error code; or why a step or a parameter lies where it does on the mesh, and what else would cost",
        "specc.runtime.commands.explain:run",
        (
            option("code", metavar="CODE|SPEC", nargs="?", help="a code such as S102 (default: list all); or a spec"),
            option("path", metavar="PATH", nargs="?", help="a step or parameter, such as layers.attention.q"),
            SET,
            STAGE,
        ),
    ),
    "plan": Command(
        "search for the fastest plan of a spec on a cluster, with predicted times and memory, and why others lose",
        "specc.runtime.commands.plan:run",
        (
            SPEC,
            SET,
            STAGE,
            option("--cluster", metavar="NxDEVICE", help="the devices, such as 64xh100-sxm (default: plan.cluster)"),
            option(
                "--pin",
                metavar="NAME=VALUE",
                action="append",
                default=[],
                dest="pins",
                help="only plans with this: tp=8, zero=1, microbatch=2, schedule=1f1b, recompute=full (repeatable)",
            ),
            option("--top", metavar="N", type=positive, default=5, help="plans to show (default: 5)"),
            option("--software", metavar="NAME", default="specc", help="what runs it (default: specc)"),
            option("--hardware", metavar="FILE", help="devices, links and software of your own (YAML)"),
            JSON,
        ),
    ),
    "tune": Command(
        "measure a build's graphs on this machine; without one its processor and links, for `specc plan --hardware`",
        "specc.runtime.commands.tune:run",
        (
            option("build", metavar="BUILD", nargs="?", help="a build directory (default: measure the machine)"),
            DEVICE,
            option("--ranks", metavar="N", type=positive, default=2, help="processes that measure (default: 2)"),
            option("--name", metavar="NAME", default="here", help="the device's name in the file (default: here)"),
            option("-o", "--out", metavar="FILE", default="hardware.yaml", help="the file (default: hardware.yaml)"),
        ),
    ),
    "verify": Command(
        "run a step of a spec in small on real processes, and compare loss and gradients with one process",
        "specc.runtime.commands.verify:run",
        (
            SPEC,
            SET,
            ALLOW_OPS,
            STAGE,
            option("--ranks", metavar="N", type=positive, default=4, help="processes at most (default: 4)"),
            JSON,
        ),
    ),
    "profile": Command(
        "run a few steps on drawn inputs: seconds of each action and bytes alive, predicted beside measured",
        "specc.runtime.commands.profile:run",
        (
            TARGET,
            SET,
            BUILD_OUT,
            ALLOW_OPS,
            STAGE,
            DEVICE,
            option("--steps", metavar="N", type=positive, default=3, help="steps that count (default: 3)"),
            option("--trace", metavar="FILE", help="write all spans as Chrome's trace events"),
            JSON,
        ),
    ),
    "diff": Command(
        "say what differs between two builds: what was written, what moved on the mesh, memory, work, what is sent",
        "specc.runtime.commands.diff:run",
        (
            option("a", metavar="BUILD", help="a build directory"),
            option("b", metavar="BUILD", help="another one"),
        ),
    ),
    "launch": Command(
        "write a job file that runs a build on a cluster, around torchrun; nothing is submitted",
        "specc.runtime.commands.launch:run",
        (
            option("target", metavar="BUILD", help="a build directory, on a disk that all machines see"),
            *(
                option(f"--{kind}", dest="kinds", action="append_const", const=kind, help=told)
                for kind, told in JOBS.items()
            ),
            option("--per-node", metavar="N", type=positive, default=8, help="ranks of a machine (default: 8)"),
            option("--name", metavar="NAME", help="the job's name (default: the build's)"),
            option("--accelerator", metavar="NAME", help="its GPUs, such as H100 (default: the plan's device)"),
            option("--hours", metavar="N", type=positive, default=24, help="its time at most, in Slurm (default: 24)"),
            option("--image", metavar="IMAGE", default="specc:latest", help="the container, in Kubernetes"),
            option("--claim", metavar="NAME", default="specc", help="the disk with the build, in Kubernetes"),
            option("-o", "--out", metavar="FILE", help="write it to a file (default: standard output)"),
        ),
    ),
    "schema": Command(
        "print the JSON Schema of specs, for completion in editors",
        "specc.runtime.commands.schema:run",
        (option("-o", "--out", metavar="FILE", help="write it to a file"),),
    ),
    "new": Command(
        "write a commented starter spec",
        "specc.runtime.commands.new:run",
        (
            option("name", metavar="NAME", nargs="?", help="name of the spec; NAME.yaml is written"),
            option("--from", metavar="MODEL", dest="model", help="a model (default: llama, or that of the checkpoint)"),
            option("--checkpoint", metavar="DIR", help="start from this folder, in Hugging Face's layout"),
            option("-o", "--out", metavar="FILE", help="where the spec goes (default: NAME.yaml)"),
            option("--list", action="store_true", help="list the models that --from knows"),
        ),
    ),
    "ops": Command(
        "list the ops that steps may name, or describe one",
        "specc.runtime.commands.ops:run",
        (
            option("name", metavar="OP", nargs="?", help="describe this op"),
            option("--markdown", action="store_true", help="print the page docs/ops.md"),
            JSON,
        ),
    ),
    "doctor": Command(
        "say what is installed, and what works on this machine",
        "specc.runtime.commands.doctor:run",
        (JSON,),
    ),
}
