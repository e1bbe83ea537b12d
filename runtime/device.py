"""Where this process computes: on the CPU, or on a GPU of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from specc.runtime import gloo
from specc.runtime.errors import RunError

ASKED = "SPECC_DEVICE"  # `auto` (a GPU where there is one), `cpu` or `cuda`; ranks have it from who starts them
CHOICES = ("auto", "cpu", "cuda")
CPU = torch.device("cpu")
ON_CPU = {ASKED: "cpu"}  # the environment of ranks that measure or compare processes of this machine


def ask(device: str | None) -> None:
    """Where this process and the ranks that it starts will compute, if anything is said."""
    if device is not None:
        os.environ[ASKED] = device


def here(environment: Mapping[str, str] = os.environ) -> torch.device:
    """This rank's device, made the current one. Raises RunError if there is no GPU for it.

    Not to be called where ranks are forked from: a process that has seen a GPU cannot hand it to its children."""
    asked = environment.get(ASKED, "auto")
    if asked not in CHOICES:
        raise RunError(f"{ASKED} is '{asked}'; it may be {', '.join(CHOICES)}")
    gpus = torch.cuda.device_count() if asked != "cpu" else 0
    if asked == "cuda" and not gpus:
        raise RunError("torch sees no GPU here (`specc doctor` says more); --device cpu runs without one")
    if not gpus:
        return CPU
    place = int(environment.get("LOCAL_RANK", environment.get("RANK", "0")))
    if place >= gpus:
        text = f"rank {place} of this machine has no GPU of its own: there are {gpus}"
        raise RunError(f"{text}; --device cpu runs without")
    device = torch.device("cuda", place)
    torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # fp32 is fp32
    return device


def backend(device: torch.device) -> str:
    """What ranks talk with: on GPUs also for tensors of the host."""
    return gloo.NAME if device.type == "cpu" else f"cpu:{gloo.NAME},cuda:nccl"


def forget_peak(device: torch.device) -> None:
    """Count the most bytes that the device holds anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was told, so that a clock may be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
