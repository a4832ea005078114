"""Values of a program with their provenance, the scopes where they stand, and products of them.

A value carries:

  labels    what flows into it: parameters, captured arrays, data, results of the backward pass
  token     equal for values that are equal by construction: the same operation on the same inputs
  origin    the same, seen as a tensor of a network: before casts, transposes, reshapes and shards
  varies    mesh axes over which it differs, inside a shard_map; a copy on every device does not,
            whatever its type says
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from srjit.program.protocols import Equation

E = TypeVar("E", contravariant=True)
Path = tuple[Any, ...]
PARAMETER, CAPTURED, DATA = "parameter", "captured", "data"
CONSTANT = "constant"  # a captured array beside parameters, which may be weights
COUNTER = "counter"  # of an input: integers and keys beside parameters, which say nothing
BACKWARD = "backward"
SOURCES = frozenset({PARAMETER, CAPTURED, CONSTANT, DATA})


class Value(NamedTuple):
    """See the module's docstring."""

    labels: frozenset[str]
    token: int
    origin: int
    varies: frozenset[str] = frozenset()

    @property
    def sources(self) -> frozenset[str]:
        """The labels that tell where it comes from."""
        return self.labels & SOURCES


class Scope(NamedTuple):
    """The place of an equation.

    Attributes:
      path: indices of the equations that enclose it, and its own.
      names, transforms: names on its full name stack.
      loops: (length or None, reversed) of each enclosing loop, outermost first.
      ruled: whether it is inside a function with a derivative rule of its own.
      manual: the manual axes of enclosing shard_maps whose types do not tell what varies.
      record: whether its products are listed; not while a loop's labels are still being found.
    """

    path: Path = ()
    names: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()
    loops: tuple[tuple[int | None, bool], ...] = ()
    ruled: bool = False
    manual: frozenset[str] = frozenset()
    record: bool = True

    def at(self, index: Any, names: tuple[str, ...], transforms: tuple[str, ...]) -> Scope:
        """The scope of the equation with that index in this one, by its own name stack."""
        return Scope(
            (*self.path, index),
            self.names + names,
            self.transforms + transforms,
            self.loops,
            self.ruled,
            self.manual,
            self.record,
        )

    def inside(self, *step: Any, loop: tuple[int | None, bool] | None = None) -> Scope:
        """The scope of a jaxpr of this equation: a branch of it, or the body of a loop."""
        if not step and not loop:
            return self
        loops = (*self.loops, loop) if loop else self.loops
        return self._replace(path=(*self.path, *step), loops=loops)

    @property
    def phase(self) -> str:
        """``forward``, ``recompute`` or ``backward``, as the typed name stack tells."""
        if "transpose" not in self.transforms:
            return "forward"
        return "recompute" if "rematted_computation" in self.names else "backward"


@dataclasses.dataclass(frozen=True)
class Occurrence:
    """One product, where it stands in the program, and the provenance of its operands.

    ``is_turned``: whether its result is a matrix of which only the transpose is read.
    """

    scope: Scope
    eqn: Equation
    lhs: Value
    rhs: Value
    extras: tuple[Value, ...]
    out: Value
    location: str
    is_turned: bool = False

    @property
    def path(self) -> Path:
        """Its place."""
        return self.scope.path

    @property
    def operands(self) -> tuple[Value, Value]:
        """Both operands' provenance."""
        return self.lhs, self.rhs

    @property
    def derivatives(self) -> tuple[str, ...]:
        """The differentiating transformations around it, outermost first."""
        return tuple(t for t in self.scope.transforms if t in ("jvp", "transpose"))


@dataclasses.dataclass(frozen=True)
class Opaque:
    """An equation that may multiply matrices where srjit does not look (a Pallas kernel, ...).

    ``flops``: multiplications and additions of one execution, as far as they are known.
    """

    scope: Scope
    eqn: Equation
    location: str
    why: str
    flops: int

    @property
    def name(self) -> str:
        """The name of the primitive or the operation."""
        return self.eqn.primitive.name


class SourceInfo(Protocol[E]):
    """Reads off equations what users wrote them for: scopes, lines of code."""

    def name_stack(self, eqn: E) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the scopes, and of the transformations, on an equation's own name stack."""
        ...

    def location(self, eqn: E) -> str:
        """file:line of the user's code."""
        ...

    def opaque(self, eqn: E) -> str:
        """Why an equation may multiply matrices where srjit does not look; nothing if not."""
        ...

    def flops(self, eqn: E) -> int:
        """Multiplications and additions of an equation that is left alone, as far as known."""
        ...


def visible(names: Sequence[str]) -> list[str]:
    """Scope names for people: without markers of ours, of transformations and of einsum."""
    return [
        n
        for n in names
        if not n.startswith("srjit.") and n != "rematted_computation" and "->" not in n
    ]
