"""What waits in the host's memory: values that calls save, until their backward (arXiv:1602.08124), and the optimizer's
moments, until the update of their parameter (arXiv:2101.06840). The link to the host carries both ways at once."""

from __future__ import annotations

from specc.compiler.foresight.calls import Cluster
from specc.compiler.foresight.recipe import Recipe

MOMENTS = 8  # bytes of the two fp32 moments of AdamW
BESIDE = 2  # calls whose values are on the device too: one's leave, another's come


def saved_left(saved: float, most: float, recipe: Recipe) -> float:
    """Bytes that stay on the device, of those that calls save and what the largest of them saves."""
    return min(saved, (1 - recipe.on_host) * saved + BESIDE * most) if recipe.on_host else saved


def moments_left(moments: float, recipe: Recipe) -> float:
    """Bytes of a number's optimizer state that stay on the device: master weights do."""
    return max(0.0, moments - MOMENTS) if recipe.moments_on_host else moments


def values_wait(saved: float, forward: float, backward: float, recipe: Recipe, cluster: Cluster) -> float:
    """Seconds that a microbatch waits for what it saves to leave beside its forward and to come beside its backward."""
    if not recipe.on_host or cluster.host is None:
        return 0.0
    way = recipe.on_host * saved / (cluster.host.bandwidth * 1e9)
    return max(0.0, way - forward) + max(0.0, way - backward)


def moments_wait(nbytes: float, update: float, recipe: Recipe, cluster: Cluster) -> float:
    """Seconds that the optimizer waits for its moments beyond its own: they come and go while others are updated."""
    if not recipe.moments_on_host or cluster.host is None:
        return 0.0
    return max(0.0, nbytes / (cluster.host.bandwidth * 1e9) - update)
