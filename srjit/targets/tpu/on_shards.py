"""The kernels of TPUs on the shards of an array: the bits that they give of the whole."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from srjit.numerics import random_bits
from srjit.numerics.elements import Element
from srjit.targets.codes import word_of
from srjit.targets.kernel_call import Axes

Placed = tuple[Callable[..., Any], Any, Any] | None


@dataclasses.dataclass(frozen=True)
class Quantize:
    """``kernels.quantize``, with its options."""

    element: Element
    transposed: bool
    with_amax: bool
    converts: bool

    def __call__(
        self,
        shapes: Sequence[tuple[int, ...]],
        sharded: Sequence[Axes | None],
        sizes: Mapping[str, int],
    ) -> Placed:
        """See OnShards."""
        from srjit.targets.tpu import kernels

        if (found := _matrix(shapes, sharded, sizes)) is None:
            return None
        (axes, local), shape = found, shapes[0]
        if not _is_in_line(shape, local):
            return None
        stride, steps = random_bits.row_stride(shape[-1]), random_bits.strides(shape)

        def run(x: jax.Array, encode: jax.Array, *words: jax.Array) -> Any:
            origin = jnp.uint32(0)
            for d, names in enumerate(axes):
                if names:
                    place = lax.axis_index(names).astype(jnp.uint32)
                    origin += place * jnp.uint32(local[d] * steps[d] % 2**32)
            made = kernels.quantize_kernel(
                x,
                encode,
                *words,
                element=self.element,
                transposed=self.transposed,
                with_amax=self.with_amax,
                converts=self.converts,
                origin=origin,
                stride=stride,
            )
            if not self.with_amax:
                return made
            *made, largest, hidden = made
            largest = _of_all(largest, axes)
            return *made, largest, largest if self.element.is_integer else hidden

        outs = [PartitionSpec(*axes)]
        outs += [_turned(axes)] * self.transposed + [PartitionSpec()] * 2 * self.with_amax
        return run, [PartitionSpec(*axes)], tuple(outs) if len(outs) > 1 else outs[0]


@dataclasses.dataclass(frozen=True)
class Amax:
    """``kernels.amax``."""

    def __call__(
        self,
        shapes: Sequence[tuple[int, ...]],
        sharded: Sequence[Axes | None],
        sizes: Mapping[str, int],
    ) -> Placed:
        """See OnShards."""
        from srjit.targets.tpu import kernels

        if (found := _matrix(shapes, sharded, sizes)) is None:
            return None
        axes, _ = found
        return (
            lambda x: _of_all(kernels.amax_kernel(x), axes),
            [PartitionSpec(*axes)],
            PartitionSpec(),
        )


@dataclasses.dataclass(frozen=True)
class Transpose:
    """``kernels.transpose``."""

    def __call__(
        self,
        shapes: Sequence[tuple[int, ...]],
        sharded: Sequence[Axes | None],
        sizes: Mapping[str, int],
    ) -> Placed:
        """See OnShards."""
        from srjit.targets.tpu import kernels

        if (found := _matrix(shapes, sharded, sizes)) is None:
            return None
        axes, _ = found
        return kernels.transpose_kernel, [PartitionSpec(*axes)], _turned(axes)


def _matrix(
    shapes: Sequence[tuple[int, ...]], sharded: Sequence[Axes | None], sizes: Mapping[str, int]
) -> tuple[Axes, tuple[int, ...]] | None:
    """The axes of a kernel's first argument, and the shape of a shard; None if it is no matrix."""
    from srjit.targets.tpu import kernels

    if (axes := sharded[0]) is None:
        return None
    cut = (math.prod(sizes[name] for name in names) for names in axes)
    local = tuple(n // parts for n, parts in zip(shapes[0], cut, strict=True))
    return (axes, local) if kernels.is_matrix(local) else None


def _is_in_line(shape: tuple[int, ...], local: tuple[int, ...]) -> bool:
    """True if the rows of a shard are equally far apart in the whole, and 32 bits index it."""
    first = next((d for d, n in enumerate(local[:-1]) if n > 1), len(local) - 1)
    padded = math.prod(shape[:-1]) * random_bits.row_stride(shape[-1])
    return padded <= 2**32 and shape[first + 1 : -1] == local[first + 1 : -1]


def _turned(axes: Axes) -> PartitionSpec:
    return PartitionSpec(axes[-1], *axes[:-1])


def _of_all(amax: jax.Array, axes: Axes) -> jax.Array:
    """The largest amax of all shards; as words, of which NaN's is the largest."""
    names = tuple(name for each in axes for name in each)
    if not names:
        return amax
    return lax.bitcast_convert_type(lax.pmax(word_of(amax) & 0x7FFFFFFF, names), jnp.float32)
