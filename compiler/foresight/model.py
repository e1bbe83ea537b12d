"""A model whose bodies are placed once for each way to split them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from specc.compiler.foresight.recipe import Recipe
from specc.compiler.foresight.work import BodyWork, work_of
from specc.compiler.ops.row import Op
from specc.compiler.placement.options import Options
from specc.compiler.placement.place import place
from specc.compiler.placement.types import Axis, Mesh
from specc.compiler.program import Program

Key = tuple[int, int, int, bool | None, int]


@dataclass
class Model:
    """`sizes(sequences)` gives the open dims of a microbatch; `own` are the rows of the user's ops.

    `itemsize` are the bytes of a number in compute."""

    program: Program
    sizes: Callable[[int], Mapping[str, int]]
    own: Mapping[str, Op] | None = None
    itemsize: int = 2
    known: dict[Key, dict[str, BodyWork]] = field(default_factory=dict)

    @property
    def calls(self) -> list[str]:
        """The bodies in the order of their calls."""
        return [c.body for c in self.program.calls]

    def works(self, recipe: Recipe) -> Mapping[str, BodyWork]:
        """What each body takes on a rank. Raises SpecError where it cannot be split so."""
        key = (recipe.tp, recipe.cp, recipe.ep, recipe.sequence_parallel, recipe.microbatch)
        if key not in self.known:
            options = Options(itemsize=self.itemsize, sequence_parallel=recipe.sequence_parallel)
            sizes = self.sizes(recipe.microbatch * recipe.ep)
            self.known[key] = work_of(place(self.program, mesh_of(recipe), sizes, options, self.own), self.itemsize)
        return self.known[key]


def mesh_of(recipe: Recipe) -> Mesh:
    """What splits a body. Pipeline and data parallelism do not: they take some of the calls, and some sequences."""
    axes = (Axis("ep", recipe.ep, "experts"), Axis("cp", recipe.cp, "sequence"), Axis("tp", recipe.tp))
    return Mesh(tuple(a for a in axes if a.size > 1))
