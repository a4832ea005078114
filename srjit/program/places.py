"""Values of a program where they stand, followed through calls, loops and branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax.extend import core as jex_core
from jax.extend.core import primitives as jex_primitives

from srjit import _compat
from srjit.program.values import Path

# What is the same values as the operand in the same position, wherever they then stand.
_PASSING = {
    "copy", "copy_p", "name", "optimization_barrier", "pvary", "pcast", "sharding_constraint",
    "reshard", "reshape", "transpose", "squeeze", "expand_dims",
}  # fmt: skip


class JaxprScope:
    """A jaxpr where it stands: what makes its variables, and what its inputs are outside."""

    def __init__(self, jaxpr: Any, path: Path, given: Sequence[Place | int]) -> None:
        self.path = path
        self.outvars = jaxpr.outvars
        self.given = dict(zip(jaxpr.invars, given, strict=True))
        self.made = {
            v: (i, eqn, position)
            for i, eqn in enumerate(jaxpr.eqns)
            for position, v in enumerate(eqn.outvars)
        }
        self._inner: dict[Path, JaxprScope] = {}

    def inner(self, jaxpr: Any, step: Path, operands: Sequence[Any]) -> JaxprScope:
        """The scope of a jaxpr of an equation of this one."""
        if step not in self._inner:
            given = [Place(self, v) for v in operands]
            jaxpr, _ = _compat.open_jaxpr(jaxpr)
            self._inner[step] = JaxprScope(jaxpr, (*self.path, *step), given)
        return self._inner[step]


@dataclasses.dataclass(frozen=True)
class Place:
    """A variable of a scope, or a literal."""

    scope: JaxprScope
    var: Any

    @property
    def is_literal(self) -> bool:
        """Whether it is a literal, of which JAX has some that cannot be hashed."""
        return isinstance(self.var, jex_core.Literal)

    @property
    def made(self) -> tuple[int, Any, int]:
        """The equation that makes it: (index, equation, position of the result), or (-1, None, 0).

        An input of a jaxpr, a constant and a literal are made by none.
        """
        if self.is_literal:
            return -1, None, 0
        return self.scope.made.get(self.var, (-1, None, 0))

    @property
    def path(self) -> Path:
        """Of the equation that makes it."""
        return (*self.scope.path, self.made[0])

    @property
    def outside(self) -> Place | int | None:
        """What an input of a jaxpr is outside; the number of an input of the program."""
        return None if self.is_literal else self.scope.given.get(self.var)

    @property
    def same(self) -> list[Place]:
        """The values, one or the other of which it only passes on; none if it is made here."""
        index, eqn, position = self.made
        if eqn is None:
            return [self.outside] if isinstance(self.outside, Place) else []
        if _passes(eqn):
            return [Place(self.scope, eqn.invars[position])]
        enter = _ENTER.get(eqn.primitive)
        return [] if enter is None else list(enter(self.scope, index, eqn, position))

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


def _passes(eqn: Any) -> bool:
    if eqn.primitive.name == "convert_element_type":
        return eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype
    return eqn.primitive.name in _PASSING


def _called(scope: JaxprScope, index: int, eqn: Any, position: int) -> Iterator[Place]:
    # A scan's body takes and returns, in the same positions, what the scan does.
    inner = scope.inner(_compat.called_jaxpr(eqn), (index,), eqn.invars)
    yield Place(inner, inner.outvars[position])


def _looped(scope: JaxprScope, index: int, eqn: Any, position: int) -> Iterator[Place]:
    operands = eqn.invars[eqn.params["cond_nconsts"] :]
    inner = scope.inner(eqn.params["body_jaxpr"], (index, "body"), operands)
    yield Place(inner, inner.outvars[position])


def _branched(scope: JaxprScope, index: int, eqn: Any, position: int) -> Iterator[Place]:
    for i, branch in enumerate(eqn.params["branches"]):
        inner = scope.inner(branch, (index, i), eqn.invars[1:])
        yield Place(inner, inner.outvars[position])


_ENTER: dict[Any, Callable[[JaxprScope, int, Any, int], Iterator[Place]]] = {
    jex_primitives.jit_p: _called,
    jex_primitives.remat_p: _called,
    jex_primitives.closed_call_p: _called,
    jex_primitives.scan_p: _called,
    jex_primitives.while_p: _looped,
    jex_primitives.cond_p: _branched,
    _compat.shard_map_p: _called,
}
