"""Quantizing: a tensor as codes of a small format."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from srjit.choices import Rng
from srjit.numerics import hadamard, random_bits
from srjit.numerics.arrays import QuantizedArray
from srjit.numerics.blocks import BlockView
from srjit.numerics.formats import get_format, get_storage
from srjit.numerics.groups import GroupedView, Groups
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key
from srjit.numerics.rounding import round_to_grid, working_dtype
from srjit.numerics.scale_layouts import Request, keep_visible
from srjit.numerics.scaling import Scales
from srjit.numerics.shards import of_all_shards
from srjit.numerics.storage import Storage


def stochastic_round(x: jax.Array, dtype: Any, key: Any, *, rng: Rng = "hash") -> jax.Array:
    """Rounds ``x`` to ``dtype`` up or down at random, so that the mean is exact.

    Args:
      x: any float array. Nothing scales it: magnitudes beyond the largest finite value saturate.
      dtype: ``jnp.bfloat16``, ``float16``, ``float8_e4m3fn``, ``float8_e5m2``, ``float4_e2m1fn``,
        ``int8``, ``int4``, or the name of a format.
      key: a typed PRNG key, or an integer step.
      rng: ``hash`` or ``threefry``.

    Returns:
      x's shape in ``dtype``. Values of the grid never move. NaN and Inf stay NaN and Inf, or NaN
      where the dtype has no Inf; integers and E2M1 have neither, so there they become 0 (NaN) or
      saturate: ``quantize`` keeps them visible through its scale.

    Raises:
      TypeError: x is not floating point, or key is not a key.
      ValueError: nothing can be rounded to ``dtype``.
    """
    x = _as_float(x, "stochastic_round")
    random_bits.warn_of_repetition("stochastic_round", key, x.shape)
    words = of_all_shards(random_bits.as_key(key), x)
    return round_with(words, x, get_storage(dtype), rng)


# One program where nothing is traced, and otherwise the operations themselves.
@functools.partial(jax.jit, static_argnames=("storage", "rng"), inline=True)
def round_with(words: random_bits.Key, x: jax.Array, storage: Storage, rng: Rng) -> jax.Array:
    """``stochastic_round`` by two key words, which are the same on every shard or are not."""
    bits = random_bits.random_bits(words, x, rng)
    work = x.astype(working_dtype(x.dtype))
    rounded = round_to_grid(work, storage.element, bits)
    return storage.cast(keep_visible(work, rounded) if storage.has_nan else rounded)


def quantize(
    x: jax.Array, spec: Quantization, key: Any = None, *, rng: Rng = "hash"
) -> QuantizedArray:
    """Quantizes ``x``.

    Args:
      x: float array of any shape.
      spec: the format, rounding and layout of scales.
      key: a typed PRNG key or an integer step, for stochastic rounding.
      rng: ``hash`` or ``threefry``.

    Raises:
      TypeError: x is not floating point, or stochastic rounding has no key.
      ValueError: the spec's axis is not one of x's, or its scale is delayed, which needs state.
    """
    x = _as_float(x, "quantize")
    if spec.rounding == "stochastic" and key is None:
        raise TypeError("stochastic rounding needs key=: a typed PRNG key or an integer step")
    if spec.rounding == "none":
        raise ValueError("rounding='none' makes no codes: it is for operands inside programs")
    if spec.scaling == "delayed":
        raise ValueError("delayed scales are state: use srjit(...).init_state, or scaling='static'")
    words = None
    if spec.rounding == "stochastic":
        random_bits.warn_of_repetition("quantize", key, x.shape)
        words = of_all_shards(random_bits.as_key(key), x)
    return _stored(x, words, spec, rng)


@functools.partial(jax.jit, static_argnames=("spec", "rng"), inline=True)
def _stored(x: jax.Array, words: Key | None, spec: Quantization, rng: Rng) -> QuantizedArray:
    q = encode(x, spec, words, rng=rng)
    return dataclasses.replace(q, codes=get_format(spec.format).storage.cast(q.codes))


def encode(
    x: jax.Array,
    spec: Quantization,
    key: Key | None,
    *,
    before: jax.Array | None = None,
    rng: Rng = "hash",
    subnormal: bool = True,
    groups: Groups | None = None,
) -> QuantizedArray:
    """``quantize`` with codes left in the working float dtype, and key words in place of a key.

    Args:
      x: float array; with a Hadamard transform, codes have its padded contraction.
      spec: the quantization.
      key: two uint32 scalars; None for nearest.
      before: float32 scalar for delayed scales, the largest amax of earlier steps; 0 if there was
        none. Of a dynamic scale that is a tensor's, its amax, if that is known already. One number
        for each group, where they have scales of their own.
      rng: ``hash`` or ``threefry``.
      subnormal: whether scales of subnormal numbers count: see ``scaling.nvfp4_scales`` and
        ``scaling.e8m0_scales``.
      groups: of the rows of a ``ragged`` operand. Every row then has a scale, and groups as blocks
        of rows have none.
    """
    codes, scales, view = encoded(
        x, spec, key, before=before, rng=rng, subnormal=subnormal, groups=groups
    )
    dtype = get_format(spec.format).scales.dtype
    scale = view.by_rows(scales.scale)
    scale = scale if dtype is None else scale.astype(dtype)
    tensor_scale = scales.tensor_scale
    if tensor_scale is not None and groups is not None:
        tensor_scale = groups.take(tensor_scale)
    return QuantizedArray(view.merge(codes), scale, tensor_scale, spec)


def encoded(
    x: jax.Array,
    spec: Quantization,
    key: Key | None,
    *,
    before: jax.Array | None = None,
    rng: Rng = "hash",
    subnormal: bool = True,
    groups: Groups | None = None,
) -> tuple[jax.Array, Scales, BlockView]:
    """``encode`` as codes in the view that has blocks as dimensions, their scales, and the view.

    Scales of groups have the groups along the dimension of the rows.
    """
    fmt = get_format(spec.format)
    x = prepared(x, spec)
    view = viewed(x, spec, groups)
    known = before if spec.amax is None else float(spec.amax)
    if isinstance(known, jax.Array) and known.ndim and spec.group_dim is not None:
        known = known.reshape([known.size if d == spec.group_dim else 1 for d in range(-x.ndim, 0)])
    draw = functools.partial(random_bits.random_bits, key, rng=rng) if key else None
    how = Request(
        view,
        fmt.element,
        spec.scale_rounding,
        known,
        fmt.storage.has_nan,
        draw,
        subnormal,
        spec.scaling == "dynamic",
    )
    return *fmt.scales.encode(x, how), view


def viewed(x: jax.Array, spec: Quantization, groups: Groups | None) -> BlockView:
    """x seen as what shares a scale.

    Raises:
      ValueError: its rows stand in groups, and nobody says in which.
    """
    view = spec.view(x.shape)
    if spec.ragged is None:
        return view
    if groups is None:
        raise ValueError(f"ragged={spec.ragged} is for products with groups inside programs")
    return GroupedView.over(view, groups)


def prepared(x: jax.Array, spec: Quantization) -> jax.Array:
    """x in the working dtype, transformed if the spec says so."""
    x = x.astype(working_dtype(x.dtype))
    return hadamard.transform(x, spec.axes(x.ndim)[-1], spec.rotation) if spec.hadamard else x


def _as_float(x: Any, what: str) -> jax.Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{what} takes a floating-point array; got {x.dtype}{list(x.shape)}")
    return x
