"""Seconds of a kernel on a device, by its shape."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specc.compiler.foresight.recipe import ITEMSIZE
from specc.compiler.foresight.work import Kernel
from specc.spec.hardware import Device, Format, Software

# The tiles of products that libraries have, and the share of the largest one's rate that each reaches.
TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.93), (128, 64, 0.8), (64, 128, 0.8), (64, 64, 0.65))
BLOCK = 128  # of queries and keys: those on the diagonal are worked on whole
SCORES = (16, 22)  # bytes that an attention which is not fused moves for each score, forward and backward
BACKWARD = 2.5  # products of a fused attention's backward over those of its forward
WIDE, NARROW = 128, 64  # head dims: from the first on a fused attention reaches all that it does
AT_NARROW = 0.6  # the share of that at the second, where the device's row has none: a guess
QUANTISE = 4  # bytes for each number that is brought to fp8: read, and written as it is and transposed


@dataclass(frozen=True)
class Both:
    """Seconds forward and backward; `weight` is the part of the backward that gives the weights' gradient."""

    forward: float = 0.0
    backward: float = 0.0
    weight: float = 0.0

    def __add__(self, other: Both) -> Both:
        return Both(self.forward + other.forward, self.backward + other.backward, self.weight + other.weight)


def seconds(kernel: Kernel, device: Device, software: Software, form: Format) -> Both:
    """A kernel's time, and that of its gradient."""
    if kernel.kind == "product":
        return _product(kernel, device, software, form)
    if kernel.kind == "loss":
        logits = stream(kernel.m * kernel.n * software.logits / 2, device)
        made = _product(kernel, device, software, min_format(form))
        return made + Both(logits, logits + (made.forward if kernel.again else 0.0))
    if kernel.kind == "attention":
        return _attention(kernel, device, software, min_format(form))
    once = stream(kernel.nbytes * software.passes, device)
    return Both(once, 2 * once)


def min_format(form: Format) -> Format:
    """The format of what stays out of fp8: the head and attention."""
    return "bf16" if form == "fp8" else form


def stream(nbytes: float, device: Device) -> float:
    return nbytes / (device.bandwidth * 1e9 * device.stream) + device.launch * 1e-6


def product(m: float, n: float, k: float, groups: int, device: Device, form: Format) -> float:
    """Seconds of `groups` products [m k] x [k n]: whole waves of the best tile, or what memory takes."""
    rate = device.peak[form] * 1e12 * device.product[form] / device.units
    tiles = (_waves(m, n, groups, device.units, a, b) * 2 * a * b / share for a, b, share in TILES)
    moved = groups * (m * k + k * n + m * n) * ITEMSIZE[form]
    work = min(tiles) * (k + device.depth) / rate
    return max(work, moved / (device.bandwidth * 1e9 * device.stream)) + device.launch * 1e-6


def _waves(m: float, n: float, groups: int, units: int, a: int, b: int) -> float:
    """Tiles of the busiest processor; beyond some waves the last one is spread."""
    tiles = groups * math.ceil(m / a) * math.ceil(n / b) / units
    return math.ceil(tiles) if tiles < 4 else tiles + 0.5


def _product(kernel: Kernel, device: Device, software: Software, form: Format) -> Both:
    m, n, k, g = kernel.m, kernel.n, kernel.k, kernel.groups
    forward, inputs = product(m, n, k, g, device, form), product(m, k, n, g, device, form)
    weight = 0.0 if kernel.frozen else product(k, n, m, g, device, form)
    if form != "fp8":
        return Both(forward, inputs + weight, weight)
    moved = software.quantise * QUANTISE * g / (device.bandwidth * 1e9 * device.stream)
    return Both(forward + m * k * moved, inputs + weight + m * n * moved, weight)


def _attention(kernel: Kernel, device: Device, software: Software, form: Format) -> Both:
    """`flops` are both products on all scores."""
    if software.attention == "unfused":
        rate = device.peak[form] * 1e12 * device.product[form] * kernel.k / (kernel.k + device.depth)
        scores = kernel.m * kernel.n
        each = [stream(scores * b, device) for b in SCORES]
        return Both(kernel.flops / rate + each[0], 2 * kernel.flops / rate + each[1])
    causal = min(1.0, kernel.causal + BLOCK / kernel.n / 2) if kernel.causal < 1 else 1.0
    share = device.narrow.get(software.attention, AT_NARROW)
    reached = share + (1 - share) * (kernel.k - NARROW) / (WIDE - NARROW) if kernel.k < WIDE else 1.0
    flops = kernel.flops * causal / (device.peak[form] * 1e12 * reached)
    forward, backward = device.attention[software.attention]
    return Both(flops / forward, BACKWARD * flops / backward)
