"""Ops by what they cost: products have FLOPs, views cost nothing."""

from __future__ import annotations

PRODUCTS = ("linear", "routed_linear", "grouped_linear", "einsum", "conv")
VIEWS = ("rearrange", "mask", "expand", "dropout")  # no kernel of their own: dropout goes with what it is added to
