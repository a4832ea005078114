"""Codes of what devices gather inside ``shard_map``: each quantizes its shard before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics.scaling import tensor_amax
from srjit.products.quantized import ScaledValues
from srjit.targets.operand import quantize_operand
from srjit.targets.target import Demand, Target


@dataclasses.dataclass(frozen=True)
class Gather:
    """A collective that gathers shards of an operand.

    Attributes:
      shard: what it is given.
      axes: of the mesh, that it gathers along.
      gathered: the same of another array of that shape.
    """

    shard: jax.Array
    axes: Any
    gathered: Callable[[jax.Array], jax.Array]

    def codes(
        self, dtype: Any, demand: Demand, target: Target, known: jax.Array | None
    ) -> ScaledValues:
        """The codes of the whole, gathered.

        Args:
          dtype: of the operand, which may be cast after it is gathered.
          demand: its quantization: to nearest, by a dynamic scale or one that is given.
          target: where the program runs.
          known: its amax, if that is known.
        """
        shard, amax = self.shard.astype(dtype), known
        if amax is None and demand.spec.scaling == "dynamic":
            amax = self._largest(tensor_amax(shard))
        alone = dataclasses.replace(demand, turned=False, shows=False)
        q = quantize_operand(shard, alone, None, target, amax)
        seen = amax if demand.shows else None
        return dataclasses.replace(q, values=self.gathered(q.values), seen=seen)

    def _largest(self, amax: jax.Array) -> jax.Array:
        """The largest amax of all shards; as words, of which NaN's is the largest."""
        word = lax.bitcast_convert_type(amax, jnp.int32)
        return lax.bitcast_convert_type(lax.pmax(word, self.axes), jnp.float32)
