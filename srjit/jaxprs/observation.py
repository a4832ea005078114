"""Shows an observer the values that an evaluation rounds, and a watch their figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from srjit.numerics.blocks import aligned
from srjit.numerics.encode import encode
from srjit.numerics.random_bits import Key
from srjit.numerics.rounding import NOISE_BITS, working_dtype
from srjit.planning.plan import ProgramPlan
from srjit.planning.planned_site import Operand, PlannedSite
from srjit.planning.write_backs import Write
from srjit.program.values import Path
from srjit.report.label import Label
from srjit.targets.operand import quantize_operand
from srjit.targets.target import Demand, Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounding:
    """Something that a program rounds element by element.

    Attributes:
      identity: equal for the same rounding, run again, as in a recomputation.
      label: what it is called.
      bits: how many bits of noise an element gets where it runs.
      unrounded: (x, *given) -> what of x is rounded, and the scale of each element.
      rounded: (key words, x, *given) -> one draw: codes times their scales.
    """

    identity: Hashable
    label: Label = dataclasses.field(compare=False)
    bits: int = dataclasses.field(compare=False)
    unrounded: Callable[..., tuple[jax.Array, jax.Array]] = dataclasses.field(compare=False)
    rounded: Callable[..., jax.Array] = dataclasses.field(compare=False)


def rounding_of(operand: Operand, demand: Demand, target: Target) -> Rounding:
    """A quantization, of the first site that reads its codes.

    Args:
      operand: the site's.
      demand: the quantization, as the program asks for it.
      target: where the program runs.
    """
    spec, draw = demand.spec, operand.draw

    def unrounded(x: jax.Array, before: Any, groups: Any) -> tuple[jax.Array, jax.Array]:
        # x, or its Hadamard transform.
        exact = dataclasses.replace(demand, spec=dataclasses.replace(spec, rounding="none"))
        values = quantize_operand(x, exact, None, target, before, groups=groups).values
        nearest = dataclasses.replace(spec, rounding="nearest")
        q = encode(x, nearest, None, before=before, subnormal=False, groups=groups)
        ones = dataclasses.replace(q, codes=jnp.ones_like(q.codes))
        return values, ones.dequantize(working_dtype(x.dtype))

    def rounded(words: jax.Array, x: jax.Array, before: Any, groups: Any) -> jax.Array:
        q = quantize_operand(x, demand, (words[0], words[1]), target, before, groups=groups)
        values = q.merged.astype(working_dtype(x.dtype))
        if q.scale is None:
            return values
        scale = aligned(q.scale, values.ndim)
        return values * (scale if spec.ragged is None else groups.take(scale))

    return Rounding(
        identity=(draw.number, draw.slot, spec),
        label=Label.of(operand, spec),
        bits=target.noise_bits(spec) if target.is_attached else NOISE_BITS,
        unrounded=unrounded,
        rounded=rounded,
    )


def rounding_of_write(write: Write, run: Callable[[Key, jax.Array], jax.Array]) -> Rounding:
    """A write-back, or a cast of a gradient, which ``run`` does as the program does it."""
    return Rounding(
        identity=write,
        label=Label.of_write(write),
        bits=NOISE_BITS,
        unrounded=lambda x: (x, jnp.ones((), x.dtype)),
        rounded=lambda words, x: run((words[0], words[1]), x).astype(x.dtype),
    )


# Called while a program is traced, at each thing that it rounds stochastically: with what tells its
# executions apart (trips of the loops around it, shards), the operand, the key, and what else it is
# given: of an operand, the largest amax of earlier steps for a delayed scale, and groups of rows.
Observer = Callable[[Rounding, Sequence[Any], jax.Array, Key, tuple[Any, ...]], None]


@dataclasses.dataclass(frozen=True)
class Shown:
    """The values and figures that an evaluation shows.

    Attributes:
      observer: sees everything that is rounded stochastically.
      measured: the operands whose figures are measured: a name for each, under which its figures
        leave the evaluation.
      sites: by these names, the operands' sites.
    """

    observer: Observer | None = None
    measured: Mapping[Operand, str] = dataclasses.field(default_factory=dict[Operand, str])
    sites: Mapping[str, PlannedSite] = dataclasses.field(default_factory=dict[str, PlannedSite])

    @classmethod
    def of(cls, plan: ProgramPlan, observer: Observer | None, kinds: Sequence[str]) -> Shown:
        """Shows an observer the values, and figures of the operands that are of these kinds."""
        chosen = [
            (o, site, f"watched: {o.row.site.number}, {o.name}")
            for site in plan.rewritten.values()
            for o, _ in site.quantized
            if o.kind in kinds
        ]
        measured = {o: name for o, _, name in chosen}
        return cls(observer, measured, {name: site for _, site, name in chosen})

    def inside(self, scope: Path) -> list[str]:
        """Names of what is measured inside the scope at a path."""
        return [name for name, site in self.sites.items() if site.path[: len(scope)] == scope]


NOTHING = Shown()
