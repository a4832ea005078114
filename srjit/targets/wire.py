"""Parts of products that devices send each other as stochastically rounded codes.

Where a contraction is sharded, each device has a part of the product. Each rounds the pieces of its
part stochastically, with a scale for each piece, and sends every device the codes of its piece,
which adds them in float32: a reduce-scatter of codes. Where all are to have all of the sum, each
rounds its piece of that once more, and sends codes of it to all: copies decode the same codes.
Every rounding is unbiased, and so is the sum.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from srjit import _stack
from srjit.choices import Rng, Wire
from srjit.numerics.encode import encode
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key, mix
from srjit.numerics.shards import of_shards
from srjit.products.dot import DotProduct
from srjit.products.product import Product
from srjit.products.quantized import Multiply, Operand, ScaledValues
from srjit.targets.kernel_call import Axes, is_even, kernel_call

FORMATS: dict[Wire, str] = {"bf16": "bf16", "fp8": "fp8_e4m3"}


def sending(multiply: Multiply, wire: Wire, key: Key, rng: Rng) -> Multiply:
    """The same products where devices have all of a contraction; otherwise parts are rounded.

    Args:
      multiply: the target's own way.
      wire: as of ``Recipe.wire``.
      key: of the noise.
      rng: its generator.
    """

    def multiplied(product: Product, lhs: Operand, rhs: Operand, *extras: jax.Array) -> jax.Array:
        is_wide = jnp.float64 in (_values(lhs).dtype, _values(rhs).dtype)
        if not isinstance(product, DotProduct) or is_wide:
            return multiply(product, lhs, rhs, *extras)
        given = _unscaled(lhs), _unscaled(rhs), key
        whole = functools.partial(_whole, multiply, product)
        tree = jax.tree.structure(given)
        parts = Parts(multiply, product, wire, rng, tree)
        return kernel_call(
            *given, kernel=whole, formula=whole, platform="", by_xla=True, on_shards=parts
        )

    return multiplied


def _whole(
    multiply: Multiply, product: DotProduct, lhs: Operand, rhs: Operand, key: Key
) -> jax.Array:
    del key
    return multiply(product, lhs, rhs).astype(jnp.float32)


def _unscaled(operand: Operand) -> Operand:
    """An operand without what only the whole product has a use for."""
    if not isinstance(operand, ScaledValues):
        return operand
    return dataclasses.replace(operand, scale=None, seen=None)


@dataclasses.dataclass(frozen=True)
class Parts:
    """A product of shards of both operands, whose parts devices send as codes.

    Attributes:
      multiply: the target's way to multiply.
      product: of the whole operands, and of shards of them.
      wire, rng: as of ``sending``.
      tree: of its arguments: both operands, and the key.
    """

    multiply: Multiply
    product: DotProduct
    wire: Wire
    rng: Rng
    tree: Any

    def __call__(
        self,
        shapes: Sequence[tuple[int, ...]],
        axes: Sequence[Axes | None],
        sizes: Mapping[str, int],
    ) -> tuple[Callable[..., Any], Any, Any] | None:
        """See OnShards: None where no contraction is sharded."""
        operands: list[Any] = jax.tree.unflatten(self.tree, [*range(len(axes) - 1)])[:2]
        places: list[Any] = [*(_values(o) for o in operands), -1]
        given = [spec for i in places if (spec := axes[i]) is not None]
        if len(given) < len(places):
            return None
        found = _sums_of(self.product, given[0], given[1], given[2])
        if not found.summed:
            return None
        cut = [
            is_even(shapes[i], a, sizes)
            for i, a in zip(places, (*given[:2], found.out), strict=True)
        ]
        if not found.is_possible or not all(cut) or any(map(_has_blocks, operands)):
            _stack.warn(
                f"parts of a {_shown(shapes[-1])} gradient are added in the program's own dtype, "
                f"not as wire={self.wire!r} says: its operands are sharded otherwise than parts "
                "that can be sent, or scales of blocks stand beside its codes"
            )
            return None
        specs = [_specs(o, spec) for o, spec in zip(operands, given, strict=False)]
        in_specs = [s for each in specs for s in each]
        own = sorted({a for each in given[:2] for names in each for a in names})

        def run(*leaves: jax.Array) -> jax.Array:
            lhs, rhs, key = jax.tree.unflatten(self.tree, leaves)
            local = dataclasses.replace(self.product, out_sharding=None)
            part = self.multiply(local, lhs, rhs).astype(jnp.float32)
            sender = _Sender(self.wire, self.rng, of_shards(key, own), sizes)
            turned = local.is_turned  # codes travel as the program has the result then
            part = part.T if turned else part
            for d, names in found.scattered:
                part = sender.scattered(part, names, 1 - d if turned else d)
            part = sender.summed(part, found.everywhere) if found.everywhere else part
            return part.T if turned else part

        return run, in_specs, PartitionSpec(*found.out)


def _values(operand: Any) -> Any:
    """The array that stands for an operand's values."""
    return operand.values if isinstance(operand, ScaledValues) else operand


def _has_blocks(operand: Any) -> bool:
    return isinstance(operand, ScaledValues) and operand.blocks is not None


def _specs(operand: Any, axes: Axes) -> list[PartitionSpec]:
    """The shardings of an operand's leaves: of its values, and of a turned copy."""
    turned = isinstance(operand, ScaledValues) and operand.turned is not None
    return [PartitionSpec(*axes), *[PartitionSpec(axes[-1], *axes[:-1])] * turned]


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


# ----------------------------------------------------------------------------------- who adds what


@dataclasses.dataclass(frozen=True)
class _Sums:
    """The devices that add parts of a product, and each one's share of the sum.

    Attributes:
      summed: axes along which they have parts.
      scattered: by dimension of the result, the axes along which each keeps its piece of the sum.
      everywhere: the axes along which all have all of it.
      out: how the result is sharded then.
      is_possible: whether shards of the operands give such parts.
    """

    summed: tuple[str, ...]
    scattered: tuple[tuple[int, tuple[str, ...]], ...]
    everywhere: tuple[str, ...]
    out: Axes
    is_possible: bool


def _sums_of(product: DotProduct, lhs: Axes, rhs: Axes, out: Axes) -> _Sums:
    a, b = dict(zip(product.lhs, lhs, strict=True)), dict(zip(product.rhs, rhs, strict=True))
    contracted = [label for label in a if label in b and label not in product.out]
    summed = tuple(name for label in contracted for name in a[label] if name in b[label])
    alike = all(a[label] == b[label] for label in a if label in b)
    own = {label: a.get(label, b.get(label, ())) for label in product.out}
    used = [*summed, *(name for names in own.values() for name in names)]
    scattered: list[tuple[int, tuple[str, ...]]] = []
    kept: list[tuple[str, ...]] = []
    for d, (label, wanted) in enumerate(zip(product.out, out, strict=True)):
        more = wanted[len(own[label]) :]
        fits = wanted[: len(own[label])] == own[label] and set(more) <= set(summed)
        if more and fits:
            scattered.append((d, more))
        kept.append(own[label] + (more if fits else ()))
    pieces = {name for _, names in scattered for name in names}
    everywhere = tuple(name for name in summed if name not in pieces)
    is_possible = alike and len(set(used)) == len(used)
    return _Sums(summed, tuple(scattered), everywhere, tuple(kept), is_possible)


# --------------------------------------------------------------------------------- how they send it


class _Sender:
    """Adds parts over devices, inside of a manual region, each rounding by its own noise."""

    def __init__(self, wire: Wire, rng: Rng, key: Key, sizes: Mapping[str, int]) -> None:
        self.format, self.sizes = FORMATS[wire], sizes
        self._rng: Rng = rng
        self._key, self._count = key, 0

    def scattered(self, part: jax.Array, names: tuple[str, ...], dim: int) -> jax.Array:
        """This device's piece, along a dimension, of the sum of the parts along mesh axes."""
        part = jnp.moveaxis(part, dim, 0)
        n = math.prod(self.sizes[name] for name in names)
        pieces = part.reshape(n, part.shape[0] // n, *part.shape[1:])
        send = functools.partial(
            lax.all_to_all, axis_name=names, split_axis=0, concat_axis=0, tiled=True
        )
        received = self._sent(pieces, send)
        return jnp.moveaxis(jnp.sum(received, axis=0), 0, dim)

    def summed(self, part: jax.Array, names: tuple[str, ...]) -> jax.Array:
        """All of the sum of the parts along mesh axes."""
        n = math.prod(self.sizes[name] for name in names)
        rows = part
        if not part.ndim or part.shape[0] % n:
            rows = jnp.pad(part.reshape(-1), (0, -part.size % n))
        piece = self.scattered(rows, names, 0)
        gather = functools.partial(lax.all_gather, axis_name=names, axis=0, tiled=True)
        whole = self._sent(piece[None], gather).reshape(rows.shape)
        return whole.reshape(-1)[: part.size].reshape(part.shape)

    def _sent(self, pieces: jax.Array, send: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Pieces, with a scale for each, as other devices decode them."""
        fmt = get_format(self.format)
        spec = Quantization(format=self.format, rounding="stochastic")
        if "channel" in fmt.scales.granularities:
            rest = tuple(range(1 - pieces.ndim, 0))
            spec = dataclasses.replace(spec, granularity="channel", axis=rest)
        self._count += 1
        q = encode(pieces, spec, mix(self._key, self._count), rng=self._rng)
        codes = fmt.storage.cast(q.codes)
        # As integers: compilers widen floats that a network, or a chip, does not add.
        words = lax.bitcast_convert_type(codes, jnp.dtype(f"uint{8 * codes.dtype.itemsize}"))
        received = lax.bitcast_convert_type(send(words), codes.dtype).astype(jnp.float32)
        if spec.shared != "channel":
            return received
        return received * send(q.scale)
