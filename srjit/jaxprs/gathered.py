"""Codes of what devices gather or exchange inside ``shard_map``, of shards quantized before."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics.scaling import tensor_amax
from srjit.products.quantized import ScaledValues
from srjit.targets.codes import float_of, word_of
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
        """The largest amax of all shards."""
        return float_of(lax.pmax(word_of(amax), self.axes))


@dataclasses.dataclass(frozen=True)
class Exchange(Gather):
    """An ``all_to_all`` that gives an operand, such as tokens that travel to their experts.

    What each device gets has a scale of its own, which all that send parts of it have to know.

    Attributes:
      dim: that the shard is cut along, into one piece for each device.
    """

    dim: int

    def codes(
        self, dtype: Any, demand: Demand, target: Target, known: jax.Array | None
    ) -> ScaledValues:
        """See Gather."""
        if demand.spec.scaling != "dynamic":
            return super().codes(dtype, demand, target, known)
        pieces = jnp.split(self.shard.astype(dtype), lax.axis_size(self.axes), self.dim)
        if known is None:
            words = jnp.stack([word_of(tensor_amax(piece)) for piece in pieces])
            words = jnp.max(lax.all_gather(words, self.axes), axis=0)
        else:
            words = lax.all_gather(word_of(known), self.axes)
        alone = dataclasses.replace(demand, turned=False, shows=False)
        made = [
            quantize_operand(piece, alone, None, target, float_of(words[i]))
            for i, piece in enumerate(pieces)
        ]
        values = jnp.concatenate([q.values for q in made], self.dim)
        own = lax.axis_index(self.axes)
        scale = jnp.stack([q.scale for q in made if q.scale is not None])[own]
        seen = float_of(words[own]) if demand.shows else None
        return ScaledValues(self.gathered(values), scale, demand.spec, seen=seen)


def collective(eqn: Any, shard: jax.Array, again: Callable[[jax.Array], jax.Array]) -> Gather:
    """An equation that gathers or exchanges shards of an operand.

    Args:
      eqn: one of ``planning.gathers``.
      shard: what it is given.
      again: the same of another array of that shape.
    """
    axes = eqn.params["axis_name"]
    if eqn.primitive.name == "all_to_all":
        return Exchange(shard, axes, again, eqn.params["split_axis"])
    return Gather(shard, axes, again)
