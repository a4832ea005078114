"""Programs that are shaped as jaxprs: what provenance, roles and plans are computed from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from srjit._mlir import ir
from srjit.products.kinds import KINDS
from srjit.program import protocols
from srjit.program.control_flow import programs_of
from srjit.program.stablehlo import products
from srjit.program.stablehlo.loops import Loop
from srjit.program.stablehlo.names import Locations, Names


@dataclasses.dataclass(frozen=True)
class Aval:
    """Shape and dtype of a value; ``dtype`` is a NumPy dtype, or MLIR's text for others.

    Dimensions that are not known are -1.
    """

    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(eq=False, slots=True)
class Var:
    """A value of a program."""

    aval: Aval


@dataclasses.dataclass(frozen=True)
class Primitive:
    """Stands for an operation that is no JAX primitive."""

    name: str
    multiple_results: bool = True


@dataclasses.dataclass(eq=False)
class Equation:
    """One operation; the attributes that provenance reads of a jaxpr's equations.

    Attributes:
      op: the operation that it was read from.
      opaque: why srjit leaves alone what it multiplies, if it does.
      flops: of that, multiplications and additions, as far as they are known.
      loop: of scans and whiles, how ``op`` counts.
    """

    primitive: Any
    invars: Sequence[Var]
    outvars: Sequence[Var]
    params: dict[str, Any]
    op: Any
    names: Names
    effects: bool = False
    opaque: str = ""
    flops: int = 0
    loop: Loop | None = None


@dataclasses.dataclass(eq=False)
class Program:
    """A function or a region, with the attributes that provenance reads of a jaxpr."""

    invars: list[Var]
    outvars: list[Var]
    eqns: list[Equation]
    constvars: list[Var]
    consts: list[Any]


class ModuleSourceInfo:
    """Source info of modules, for provenance."""

    def __init__(self, locations: Locations) -> None:
        self.locations = locations

    @staticmethod
    def name_stack(eqn: Equation) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Scopes, and transformations."""
        return eqn.names.scopes, eqn.names.transforms

    def location(self, eqn: Equation) -> str:
        """file:line."""
        return self.locations.line_of(eqn.op.location)

    @staticmethod
    def opaque(eqn: Equation) -> str:
        """Why what an equation may multiply is left alone; nothing if it multiplies nothing."""
        return eqn.opaque

    @staticmethod
    def flops(eqn: Equation) -> int:
        """Multiplications and additions of what is left alone."""
        return eqn.flops


def aval_of(kind: ir.Type) -> Aval:
    """Shape and dtype of the values of a type; its text in place of a dtype if JAX has none."""
    if not isinstance(kind, ir.RankedTensorType):
        return Aval((), str(kind))
    if not kind.has_static_shape:
        dims = (-1 if kind.is_dynamic_dim(d) else n for d, n in enumerate(kind.shape))
        return Aval(tuple(dims), str(kind))
    return Aval(tuple(kind.shape), products.dtype_of(kind.element_type))


def read_equation(eqn: protocols.Equation) -> Equation:
    """An equation that is known to be read from a module."""
    assert isinstance(eqn, Equation)
    return eqn


def read_program(program: protocols.Program) -> Program:
    """A program that is known to be read from a module."""
    assert isinstance(program, Program)
    return program


def multiplies(program: protocols.Program) -> bool:
    """True if any matrix multiplication stands in a program, however deep."""
    return any(
        read_equation(eqn).opaque
        or eqn.primitive.name in KINDS
        or any(multiplies(p) for p in programs_of(eqn))
        for eqn in program.eqns
    )
