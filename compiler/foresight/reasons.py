"""Why other plans lose: for each choice that the best plan did not take, the best that can be had with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from specc.compiler.foresight.recipe import Recipe
from specc.compiler.foresight.search import Asked, Found, Plan
from specc.compiler.foresight.step import forecast

FEW = 3
CHOICES = ("tp", "cp", "ep", "pp", "zero", "microbatch", "schedule", "recompute", "on_host", "moments_on_host")


@dataclass(frozen=True)
class Reason:
    """The fastest plan with a choice, or the smallest where none fits: `over` are the bytes that it lacks."""

    choice: str
    plan: Plan
    slower: float  # of the step's seconds, over those of the best plan
    over: float


def reasons(found: Found, asked: Asked) -> Iterator[Reason]:
    """One for each value of each choice that some plan has and the best plan has not."""
    best = found.fit[0]
    for choice in CHOICES:
        every = [p for p in (*found.fit, *found.over) if choice != "schedule" or p.recipe.pp > 1]
        for value in sorted({getattr(p.recipe, choice) for p in every} - {getattr(best.recipe, choice)}):
            plan = _closely([p for p in every if getattr(p.recipe, choice) == value], asked)
            slower = plan.forecast.seconds / best.forecast.seconds - 1
            name = f"{choice.replace('_', ' ')} {value}"
            yield Reason(name, plan, slower, max(0.0, plan.forecast.nbytes - asked.capacity))


def _closely(plans: Sequence[Plan], asked: Asked) -> Plan:
    """The first of the plans that fits if looked at exactly; the last of the first few if none of these does."""
    for rough in plans[:FEW]:
        plan = Plan(rough.recipe, forecast(asked.model, rough.recipe, asked.cluster))
        if plan.forecast.nbytes <= asked.capacity:
            break
    return plan


def mesh_text(recipe: Recipe) -> str:
    """The axes as a plan names them: ranks of expert parallelism are not counted with dp."""
    sizes = {"pp": recipe.pp, "dp": recipe.dp // recipe.ep, "cp": recipe.cp, "ep": recipe.ep, "tp": recipe.tp}
    return ", ".join(f"{axis}: {n}" for axis, n in sizes.items() if n > 1) or "dp: 1"


def offload_text(recipe: Recipe) -> str:
    """What waits in the host's memory, as a plan says it."""
    parts = {"activations": f"{recipe.on_host:g}", "optimizer": str(recipe.moments_on_host).lower()}
    return ", ".join(f"{key}: {value}" for key, value in parts.items() if value not in ("0", "false"))
