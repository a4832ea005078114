"""Programs as both doors read them: a jaxpr, or a function of a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard


class Aval(Protocol):
    """Shape and dtype of a value."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions."""
        ...

    @property
    def dtype(self) -> Any:
        """A NumPy dtype, one of JAX's own, or the text of a type that JAX has no arrays of."""
        ...

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        ...

    @property
    def size(self) -> int:
        """Number of elements."""
        ...


class Variable(Protocol):
    """A value of a program, or a literal."""

    @property
    def aval(self) -> Aval:
        """Its shape and dtype."""
        ...


class Literal(Variable, Protocol):
    """A constant that stands where it is read, in jaxprs."""

    @property
    def val(self) -> Any:
        """An array or a number."""
        ...


def is_literal(v: Variable) -> TypeGuard[Literal]:
    """True if a variable is a literal, of which JAX has some that cannot be hashed."""
    return hasattr(v, "val")


def keeps_dtype(eqn: Equation) -> bool:
    """True if an equation is a conversion that leaves everything but weak types as it is."""
    if eqn.primitive.name != "convert_element_type":
        return False
    return eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype


class Primitive(Protocol):
    """The kind of an equation: a primitive of JAX, or an operation that is none."""

    @property
    def name(self) -> str:
        """Its name in a printed program."""
        ...

    @property
    def multiple_results(self) -> bool:
        """True if it returns a list."""
        ...


class Equation(Protocol):
    """One step of a program."""

    @property
    def primitive(self) -> Primitive:
        """Its kind."""
        ...

    @property
    def invars(self) -> Sequence[Variable]:
        """The values that it reads."""
        ...

    @property
    def outvars(self) -> Sequence[Variable]:
        """The values that it makes."""
        ...

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of its primitive."""
        ...

    @property
    def effects(self) -> Any:
        """True, or not empty, if it does more than compute its results."""
        ...


class Program(Protocol):
    """A jaxpr, or a function or a region of a module."""

    @property
    def invars(self) -> Sequence[Variable]:
        """Its inputs."""
        ...

    @property
    def outvars(self) -> Sequence[Variable]:
        """Its outputs."""
        ...

    @property
    def eqns(self) -> Sequence[Equation]:
        """Its steps, in order."""
        ...

    @property
    def constvars(self) -> Sequence[Variable]:
        """Variables of the values that it holds."""
        ...
