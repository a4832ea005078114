"""What a running program gives to its stochastic quantizers: operands, and keys, step by step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srjit.numerics.quantization import Quantization, ScaledValues, aligned, encode
from srjit.numerics.random_bits import Key
from srjit.numerics.rounding import working_dtype
from srjit.plan import SitePlan

PLACES = 4  # executions of one quantizer (trips of its loops, shards) that are looked at


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """One quantization of a program.

    Attributes:
      draw: what its noise comes from, which tells quantizers apart: a recomputed one has that of
        what it recomputes.
      plan: of the site where it stands: the first that reads its codes.
      side: 0 for that site's lhs, 1 for its rhs.
      spec: how it quantizes.
      run: (x, key=, before=, spec=) -> codes, as the program does it.
      flips_signs: whether the program flips signs of the operand at random first; ``run`` does not.
    """

    draw: tuple[int, int]
    plan: SitePlan = dataclasses.field(compare=False)
    side: int = dataclasses.field(compare=False)
    spec: Quantization
    run: Callable[..., ScaledValues] = dataclasses.field(compare=False)
    flips_signs: bool = dataclasses.field(default=False, compare=False)

    @property
    def site(self) -> int:
        """The site's number."""
        return self.plan.site.number


# Called while a program is traced, at each of its quantizations: with what tells its executions
# apart (trips of the loops around it, shards), the operand, the key if it draws noise, and the
# largest amax of earlier steps.
Observer = Callable[[Quantizer, Sequence[Any], jax.Array, "Key | None", "jax.Array | None"], None]
Place = tuple[Quantizer, tuple[int, ...]]


@dataclasses.dataclass
class Captured:
    """One quantizer at one place of a program.

    Attributes:
      operand: what it quantized in the first step that came there.
      before: the largest amax of earlier steps, for a delayed scale.
      keys: the key words of every step, by the step's number.
    """

    operand: Any
    before: Any
    keys: dict[int, tuple[int, int]]


class Capture:
    """Observes a program.

    Attributes:
      step: number of the step that is running; set it before each.
      places: what was seen.
      left_out: how many more executions of a quantizer there were than ``PLACES``.
    """

    def __init__(self) -> None:
        self.step = 0
        self.places: dict[Place, Captured] = {}
        self._left_out: dict[Quantizer, set[tuple[int, ...]]] = {}

    @property
    def left_out(self) -> int:
        """How many executions of quantizers were not looked at."""
        return sum(map(len, self._left_out.values()))

    def observe(
        self,
        quantizer: Quantizer,
        where: Sequence[Any],
        x: jax.Array,
        key: Key | None,
        before: jax.Array | None,
    ) -> None:
        """An ``Observer``, of what is rounded stochastically, element by element."""
        if key is None or quantizer.flips_signs:
            return
        take = functools.partial(self._take, quantizer)
        jax.debug.callback(take, [jnp.asarray(w) for w in where], x, key, before)

    def _take(self, quantizer: Quantizer, where: Any, x: Any, key: Any, before: Any) -> None:
        place = quantizer, tuple(int(w) for w in where)
        if place not in self.places:
            if sum(q == quantizer for q, _ in self.places) >= PLACES:
                self._left_out.setdefault(quantizer, set()).add(place[1])
                return
            self.places[place] = Captured(np.array(x), before, {})
        self.places[place].keys[self.step] = int(key[0]), int(key[1])


def unrounded(quantizer: Quantizer, x: jax.Array, before: Any) -> tuple[jax.Array, jax.Array]:
    """What the quantizer rounds, x or its Hadamard transform; and the scale of each element."""
    spec = dataclasses.replace(quantizer.spec, rounding="none")
    values = quantizer.run(x, spec=spec, key=None, before=before).values
    spec = dataclasses.replace(quantizer.spec, rounding="nearest")
    q = encode(x, spec, None, before=before, subnormal=False)
    ones = dataclasses.replace(q, codes=jnp.ones_like(q.codes))
    return values, ones.dequantize(working_dtype(x.dtype))


def rounded(quantizer: Quantizer, words: jax.Array, x: jax.Array, before: Any) -> jax.Array:
    """The codes of one draw, under two key words, times their scales."""
    q = quantizer.run(x, key=(words[0], words[1]), before=before)
    values = q.merged.astype(working_dtype(x.dtype))
    return values if q.scale is None else values * aligned(q.scale, values.ndim)
