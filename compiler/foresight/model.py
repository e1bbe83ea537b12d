"""A model whose bodies are placed once for each way to split them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from specc.compiler.foresight.recipe import Recipe
from specc.compiler.foresight.work import BodyWork, grown, work_of
from specc.compiler.ops.row import Op
from specc.compiler.placement.options import Options
from specc.compiler.placement.place import place
from specc.compiler.placement.types import Axis, Mesh
from specc.compiler.program import Program
from specc.spec.errors import SpecError
from specc.spec.optimizer import ADAMW, OptimizerSpec

Key = tuple[int, int, int, bool | None]


@dataclass
class Model:
    """`sizes(sequences)` gives the open dims of a microbatch; `own` are the rows of the user's ops.

    `itemsize` are the bytes of a number in compute. What is known of a split is its work, or why there is none."""

    program: Program
    sizes: Callable[[int], Mapping[str, int]]
    own: Mapping[str, Op] | None = None
    itemsize: int = 2
    optimizer: OptimizerSpec = ADAMW
    known: dict[Key, dict[str, BodyWork] | SpecError] = field(default_factory=dict)
    larger: dict[tuple[Key, int], dict[str, BodyWork]] = field(default_factory=dict)  # for more sequences

    @property
    def calls(self) -> list[str]:
        """The bodies in the order of their calls."""
        return [c.body for c in self.program.calls]

    @cached_property
    def layers(self) -> int:
        """Calls of the block that is called most."""
        return max(Counter(self.calls).values())

    def works(self, recipe: Recipe) -> dict[str, BodyWork]:
        """What each body takes on a rank, from one sequence a rank. Raises SpecError where it cannot be split so."""
        key = (recipe.tp, recipe.cp, recipe.ep, recipe.sequence_parallel)
        if key not in self.known:
            self.known[key] = self._placed(recipe)
        found = self.known[key]
        if isinstance(found, SpecError):
            raise found
        size = recipe.microbatch
        if (key, size) not in self.larger:
            self.larger[key, size] = {name: grown(work, size) for name, work in found.items()}
        return self.larger[key, size]

    def _placed(self, recipe: Recipe) -> dict[str, BodyWork] | SpecError:
        options = Options(itemsize=self.itemsize, sequence_parallel=recipe.sequence_parallel)
        try:
            placed = place(self.program, mesh_of(recipe), self.sizes(recipe.ep), options, self.own)
        except SpecError as why:
            return why
        return work_of(placed, self.itemsize, self.optimizer)


def mesh_of(recipe: Recipe) -> Mesh:
    """What splits a body. Pipeline and data parallelism do not: they take some of the calls, and some sequences."""
    axes = (Axis("ep", recipe.ep, "experts"), Axis("cp", recipe.cp, "sequence"), Axis("tp", recipe.tp))
    return Mesh(tuple(a for a in axes if a.size > 1))
