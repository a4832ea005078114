"""What an evaluation shows of the values that it rounds stochastically."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from srjit.numerics.blocks import aligned
from srjit.numerics.encode import encode
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key
from srjit.numerics.rounding import working_dtype
from srjit.planning.plan import ProgramPlan
from srjit.planning.planned_site import Operand
from srjit.planning.site import WrittenKind
from srjit.program.values import Path
from srjit.report.label import CAST, UPDATE, Label
from srjit.targets.operand import quantize_operand
from srjit.targets.target import Demand, Target


class Rounding(Protocol):
    """Something that a program rounds element by element; equal ones are the same, run again."""

    @property
    def label(self) -> Label:
        """What it is called."""
        ...

    @property
    def bits(self) -> int:
        """How many bits of noise an element gets where it runs."""
        ...

    def unrounded(self, x: jax.Array, before: Any) -> tuple[jax.Array, jax.Array]:
        """What of ``x`` is rounded, and the scale of each element."""
        ...

    def rounded(self, words: jax.Array, x: jax.Array, before: Any) -> jax.Array:
        """One draw, under two key words: codes times their scales."""
        ...


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """One quantization of a program.

    Attributes:
      draw: what its noise comes from, which tells quantizers apart: a recomputed one has that of
        what it recomputes.
      operand: of the first site that reads its codes.
      spec: how it quantizes.
      demand: the same, with what the program knows of the operand.
      target: what quantizes it.
      bits: see ``Rounding``.
    """

    draw: tuple[int, int]
    operand: Operand = dataclasses.field(compare=False)
    spec: Quantization
    demand: Demand = dataclasses.field(compare=False)
    target: Target = dataclasses.field(compare=False)
    bits: int

    @property
    def label(self) -> Label:
        """See ``Rounding``."""
        return Label.of(self.operand, self.spec)

    def unrounded(self, x: jax.Array, before: Any) -> tuple[jax.Array, jax.Array]:
        """See ``Rounding``: x or its Hadamard transform."""
        spec = dataclasses.replace(self.spec, rounding="none")
        demand = dataclasses.replace(self.demand, spec=spec)
        values = quantize_operand(x, demand, None, self.target, before).values
        spec = dataclasses.replace(self.spec, rounding="nearest")
        q = encode(x, spec, None, before=before, subnormal=False)
        ones = dataclasses.replace(q, codes=jnp.ones_like(q.codes))
        return values, ones.dequantize(working_dtype(x.dtype))

    def rounded(self, words: jax.Array, x: jax.Array, before: Any) -> jax.Array:
        """See ``Rounding``."""
        q = quantize_operand(x, self.demand, (words[0], words[1]), self.target, before)
        values = q.merged.astype(working_dtype(x.dtype))
        return values if q.scale is None else values * aligned(q.scale, values.ndim)


@dataclasses.dataclass(frozen=True)
class Writer:
    """One write-back of a program, or cast of a gradient.

    Attributes:
      number: among all that the program writes.
      path, kind: of what is written.
      dtype: that is written.
      run: (key words, x in float32 or float64) -> x in ``dtype``, as the program does it.
      bits: see ``Rounding``.
    """

    number: int
    path: str
    kind: WrittenKind
    dtype: str
    run: Callable[[Key, jax.Array], jax.Array] = dataclasses.field(compare=False)
    bits: int

    @property
    def label(self) -> Label:
        """See ``Rounding``."""
        return Label(
            site=self.number,
            path=self.path,
            role=CAST if self.kind == "gradient" else UPDATE,
            operand="",
            kind=self.kind,
            format=self.dtype,
        )

    def unrounded(self, x: jax.Array, before: Any) -> tuple[jax.Array, jax.Array]:
        """See ``Rounding``."""
        del before
        return x, jnp.ones((), x.dtype)

    def rounded(self, words: jax.Array, x: jax.Array, before: Any) -> jax.Array:
        """See ``Rounding``."""
        del before
        return self.run((words[0], words[1]), x).astype(x.dtype)


# Called while a program is traced, at each thing that it rounds stochastically: with what tells its
# executions apart (trips of the loops around it, shards), the operand, the key, and the largest
# amax of earlier steps for a delayed scale.
Observer = Callable[[Rounding, Sequence[Any], jax.Array, Key, "jax.Array | None"], None]


@dataclasses.dataclass(frozen=True)
class Shown:
    """What an evaluation shows of itself.

    Attributes:
      observer: sees everything that is rounded stochastically.
      measured: the operands whose figures are measured: a name for each, under which its figures
        leave the evaluation.
    """

    observer: Observer | None = None
    measured: Mapping[Operand, str] = dataclasses.field(default_factory=dict[Operand, str])

    @classmethod
    def of(cls, plan: ProgramPlan, observer: Observer | None, kinds: Sequence[str]) -> Shown:
        """What is shown of a planned program: to an observer, and figures of operands by kind."""
        quantized = (o for site in plan.rewritten.values() for o in site.quantized)
        measured = {
            o: f"watched: {o.row.site.number}, {o.name}" for o in quantized if o.kind in kinds
        }
        return cls(observer, measured)

    def inside(self, plan: ProgramPlan, scope: Path) -> list[str]:
        """Names of what is measured inside the scope at a path."""
        return [
            self.measured[operand]
            for path, site in plan.rewritten.items()
            if path[: len(scope)] == scope
            for operand in site.operands
            if operand in self.measured
        ]

    def lengths(self, plan: ProgramPlan) -> dict[str, tuple[int, ...]]:
        """By the name of what is measured, the lengths of the loops around it."""
        return {
            self.measured[operand]: site.lengths
            for site in plan.rewritten.values()
            for operand in site.operands
            if operand in self.measured
        }


NOTHING = Shown()
