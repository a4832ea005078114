"""Values of a program where they stand, followed through calls, loops and branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from srjit.program.control_flow import Region, flow_of
from srjit.program.protocols import Equation, Program, Variable, is_literal, keeps_dtype
from srjit.program.values import Path

# These return what they take; lowering drops all but the barrier.
IDENTITIES = {"copy", "copy_p", "name", "optimization_barrier", "pvary"}
# These return the same values, wherever they then stand.
_PASSING = IDENTITIES | {
    "pcast", "sharding_constraint", "reshard", "reshape", "transpose", "squeeze", "expand_dims",
}  # fmt: skip


class JaxprScope:
    """A jaxpr where it stands: what makes its variables, and what its inputs are outside."""

    def __init__(self, jaxpr: Program, path: Path, given: Sequence[Place | int]) -> None:
        self.path = path
        self.outvars = jaxpr.outvars
        self.given = dict(zip(jaxpr.invars, given, strict=True))
        self.made = {
            v: (i, eqn, position)
            for i, eqn in enumerate(jaxpr.eqns)
            for position, v in enumerate(eqn.outvars)
        }
        self.eqns = jaxpr.eqns
        self._regions: dict[int, tuple[Region, ...]] = {}
        self._inner: dict[Path, JaxprScope] = {}

    def regions(self, index: int) -> tuple[Region, ...]:
        """The regions of one of its equations."""
        if index not in self._regions:
            flow = flow_of(self.eqns[index])
            self._regions[index] = flow.regions if flow else ()
        return self._regions[index]

    def inner(self, index: int, region: Region) -> JaxprScope:
        """The scope of a region of one of its equations."""
        step = (index, *region.step)
        if step not in self._inner:
            given = [Place(self, v) for v in region.given(self.eqns[index].invars)]
            self._inner[step] = JaxprScope(region.program, (*self.path, *step), given)
        return self._inner[step]


@dataclasses.dataclass(frozen=True)
class Place:
    """A variable of a scope, or a literal."""

    scope: JaxprScope
    var: Variable

    @property
    def is_literal(self) -> bool:
        """True if it is a literal."""
        return is_literal(self.var)

    @property
    def made(self) -> tuple[int, Equation | None, int]:
        """The equation that makes it: (index, equation, position of the result), or (-1, None, 0).

        An input of a jaxpr, a constant and a literal are made by none.
        """
        if self.is_literal:
            return -1, None, 0
        return self.scope.made.get(self.var, (-1, None, 0))

    @property
    def path(self) -> Path:
        """The path of the equation that makes it."""
        return (*self.scope.path, self.made[0])

    @property
    def outside(self) -> Place | int | None:
        """The value outside that an input of a jaxpr is; the number of an input of the program."""
        return None if self.is_literal else self.scope.given.get(self.var)

    @property
    def same(self) -> list[Place]:
        """The values, one or the other of which it only passes on; none if it is made here."""
        index, eqn, position = self.made
        if eqn is None:
            return [self.outside] if isinstance(self.outside, Place) else []
        if eqn.primitive.name in _PASSING or keeps_dtype(eqn):
            return [Place(self.scope, eqn.invars[position])]
        return [
            Place(inner, inner.outvars[i])
            for region in self.scope.regions(index)
            for i, output in enumerate(region.outputs)
            if output.result == position
            for inner in [self.scope.inner(index, region)]
        ]

    @property
    def operands(self) -> list[Place]:
        """The operands of what makes it."""
        eqn = self.made[1]
        return [] if eqn is None else [Place(self.scope, v) for v in eqn.invars]

    @property
    def operation(self) -> str:
        """The name of what makes it; empty for inputs, constants and literals."""
        eqn = self.made[1]
        return "" if eqn is None else eqn.primitive.name
