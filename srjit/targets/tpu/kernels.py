"""Mosaic kernels for TPUs: what XLA's fusions read twice, or wider than memory holds it.

Each draws the bits of ``numerics.random_bits`` and rounds as ``numerics.rounding`` does, so that a
chip gives the codes of the emulation, whatever the tiles. On another platform, and under ``vmap``,
the same call is the formula itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from srjit.numerics import random_bits, rounding, scaling
from srjit.numerics.elements import Element
from srjit.numerics.random_bits import Key
from srjit.numerics.scale_layouts import keep_visible
from srjit.numerics.scaling import tensor_amax
from srjit.targets.codes import float_code, word_of
from srjit.targets.kernel_call import kernel_call
from srjit.targets.tpu import on_shards

# Elements whose codes Mosaic can store, and the dtype that holds them.
CARRIERS: dict[str, Any] = {
    "int8": jnp.dtype(jnp.int8),
    "int4": jnp.dtype(jnp.int8),
    "float8_e4m3fn": jnp.dtype(jnp.float8_e4m3fn),
    "float8_e5m2": jnp.dtype(jnp.float8_e5m2),
    "bfloat16": jnp.dtype(jnp.bfloat16),
}
_INPUTS = ("float32", "bfloat16")
_TILE = 256, 2048  # of every grid step; 1 MB of bfloat16 read and half of that written, twice each
_STRIP = 64  # rows worked on at a time
_SUBLANES = 32  # rows of a vector of 8-bit codes
_SCALAR = pl.BlockSpec(memory_space=pltpu.SMEM)


def fits(shape: tuple[int, ...], dtype: Any, element: Element) -> bool:
    """True if a kernel can quantize such an array, seen as a matrix without moving it."""
    known = jnp.dtype(dtype).name in _INPUTS and element.name in CARRIERS
    return known and is_matrix(shape)


def can_transpose(codes: jax.Array) -> bool:
    """True if a kernel can transpose codes."""
    return codes.dtype.itemsize == 1 and is_matrix(codes.shape)


def is_matrix(shape: tuple[int, ...]) -> bool:
    """True if it is one, not too large, or can be seen as one without moving it."""
    is_one = len(shape) == 2 or (len(shape) > 2 and shape[-2] % _SUBLANES == 0)
    return is_one and 0 < math.prod(shape) < 2**31


def quantize(
    x: jax.Array,
    element: Element,
    encode: jax.Array,
    key: Key | None = None,
    *,
    transposed: bool = False,
    with_amax: bool = False,
    converts: bool = False,
) -> Any:
    """``round_to_grid(x * encode)`` in the dtype that holds the codes.

    Integers have no NaN: what it becomes there is seen by nobody, since its scale is NaN.

    Args:
      x: float32 or bfloat16, of a shape that ``fits``.
      element: the grid.
      encode: float32 scalar, or one for each row: of x's shape, with 1 for the last dimension.
      key: two uint32 scalars, for stochastic rounding; None for nearest.
      transposed: also the codes with their last dimension first, from the same read.
      with_amax: also ``amax(x)``, from the same read, and that of what may hold NaN and Inf that
        codes do not show, 0 of formats that have a NaN: codes show it there, of Inf too, so that
        nothing waits for what other devices have.
      converts: whether the chip has instructions that round to the element, as ``converted`` does.

    Returns:
      Codes, or a tuple of codes and what else is asked for, in that order.
    """
    options = {"element": element, "transposed": transposed, "with_amax": with_amax}
    of_shards = on_shards.Quantize(element, transposed, with_amax, converts)
    return kernel_call(
        x,
        encode,
        *(() if key is None else key),
        kernel=functools.partial(quantize_kernel, **options, converts=converts),
        formula=functools.partial(quantize_plainly, **options),
        platform="tpu",
        on_shards=of_shards if encode.ndim == 0 else None,
    )


def amax(x: jax.Array, formula: Callable[[jax.Array], jax.Array] = tensor_amax) -> jax.Array:
    """max|x| as a float32 scalar, NaN if any is NaN: ``scaling.amax``, by a kernel.

    Args:
      x: of a shape that ``fits``.
      formula: the same in plain operations.
    """
    return kernel_call(
        x, kernel=amax_kernel, formula=formula, platform="tpu", on_shards=on_shards.Amax()
    )


def last_first(codes: jax.Array) -> jax.Array:
    """The codes with their last dimension first."""
    return jnp.moveaxis(codes, -1, 0)


def transpose(
    codes: jax.Array, formula: Callable[[jax.Array], jax.Array] = last_first
) -> jax.Array:
    """``last_first``, as a copy that XLA cannot fold into its reader.

    Args:
      codes: of 8 bits and a shape that ``fits``.
      formula: the same in plain operations.
    """
    return kernel_call(
        codes,
        kernel=transpose_kernel,
        formula=formula,
        platform="tpu",
        on_shards=on_shards.Transpose(),
    )


# -------------------------------------------------------------------------------- the same, plainly


def quantize_plainly(
    x: jax.Array,
    encode: jax.Array,
    *words: jax.Array,
    element: Element,
    transposed: bool = False,
    with_amax: bool = False,
) -> Any:
    """``quantize`` in plain operations, which XLA fuses with what makes x."""
    bits = random_bits.random_bits((words[0], words[1]), x) if words else None
    wide = x.astype(jnp.float32)
    rounded = rounding.round_to_grid(wide * encode, element, bits)
    shows = with_amax and not element.is_integer
    if shows:
        rounded = keep_visible(wide, rounded)
    codes = rounded.astype(CARRIERS[element.name])
    more = [last_first(codes)] * transposed
    if with_amax:
        more.append(_amax_beside(x, codes))
        more.append(jnp.zeros_like(more[-1]) if shows else more[-1])
    return (codes, *more) if more else codes


def _amax_beside(x: jax.Array, codes: jax.Array) -> jax.Array:
    """``tensor_amax(x)``, for which XLA does not have to store x and read it again.

    It fuses a reduction with what it stores: so the codes' last bits are among what is reduced.
    They are 0 where x is, and its word is 1 at least elsewhere.
    """
    word = word_of(x.astype(jnp.float32)) & 0x7FFFFFFF
    code = lax.bitcast_convert_type(codes, f"int{8 * codes.dtype.itemsize}").astype(jnp.int32)
    return lax.bitcast_convert_type(jnp.max(jnp.maximum(word, code & 1)), jnp.float32)


# ------------------------------------------------------------------------------------------ kernels


def quantize_kernel(
    x: jax.Array,
    encode: jax.Array,
    *words: jax.Array,
    element: Element,
    transposed: bool,
    with_amax: bool = False,
    converts: bool = False,
    tile: tuple[int, int] = _TILE,
    origin: jax.Array | None = None,
    stride: int | None = None,
) -> Any:
    """``quantize``, of an array, or of a shard that begins at the index ``origin`` (uint32).

    Its rows are then ``stride`` apart.
    """
    convert = functools.partial(converted, element=element)
    codes_of = convert if converts else functools.partial(_codes, element=element)
    matrix = x.reshape(-1, x.shape[-1])
    rows, columns = matrix.shape
    block, at = _tiles(tile, matrix.shape)
    over = _overhangs(block, matrix.shape)
    stride = random_bits.row_stride(columns) if stride is None else stride
    if words and origin is not None:
        words = *words, origin
    shows = with_amax and not element.is_integer
    by_row = encode.ndim > 0

    def kernel(encode_ref: Any, *refs: Any) -> None:
        *word_refs, x_ref, codes_ref = refs[: len(refs) - transposed - with_amax]
        key = tuple(lax.bitcast_convert_type(ref[0], jnp.uint32) for ref in word_refs[:2])
        start = word_refs[2][0] if len(word_refs) > 2 else 0
        top, left = (pl.program_id(d) * n for d, n in enumerate(x_ref.shape))
        if with_amax:
            _start_amax(refs[-1])

        def quantize_strip(strip: Any, first: Any) -> None:
            x = x_ref[strip, :].astype(jnp.float32)
            bits = None
            if key:
                here = (top + first) * stride + left + start
                bits = _hash_bits((key[0], key[1]), x.shape, here, stride)
            factor = encode_ref[strip, :] if by_row else encode_ref[0]
            codes = codes_of(x * factor, bits=bits, dtype=codes_ref.dtype)
            codes_ref[strip, :] = _shown(x, codes) if shows else codes
            if with_amax:
                _add_to_amax(refs[-1], x, (rows - top - first, columns - left), over)

        _for_strips(x_ref.shape[0], quantize_strip)
        if transposed:
            refs[-1 - with_amax][...] = codes_ref[...].T

    dtype = CARRIERS[element.name]
    outs = [((rows, columns), dtype, pl.BlockSpec(block, at))]
    if transposed:
        turned = pl.BlockSpec(block[::-1], lambda i, j: at(i, j)[::-1])
        outs.append(((columns, rows), dtype, turned))
    if with_amax:
        outs.append(_amax_output(block))
    of_rows = pl.BlockSpec((block[0], 1), lambda i, j: (i, 0))
    factor = encode.reshape((rows, 1) if by_row else (1,))
    scalars = [lax.bitcast_convert_type(word, jnp.int32).reshape(1) for word in words]
    codes, *more = pl.pallas_call(
        kernel,
        out_shape=[_result(matrix, shape, dtype) for shape, dtype, _ in outs],
        grid=_grid(block, matrix.shape),
        in_specs=[
            of_rows if by_row else _SCALAR,
            *(_SCALAR for _ in scalars),
            pl.BlockSpec(block, at),
        ],
        out_specs=[spec for _, _, spec in outs],
    )(factor, *scalars, matrix)
    codes = codes.reshape(x.shape)
    if transposed:
        more[0] = more[0].reshape(x.shape[-1], *x.shape[:-1])
    if with_amax:
        more[-1] = _largest(more[-1])
        more.append(jnp.zeros_like(more[-1]) if shows else more[-1])
    return (codes, *more) if more else codes


def _hash_bits(key: Key, shape: tuple[int, int], origin: jax.Array, stride: int) -> jax.Array:
    """``random_bits.hash_bits`` from an int32 origin: an index is a row's part plus a column's."""
    factor, term, upper = random_bits.line(key)
    rows = lax.broadcasted_iota(jnp.int32, (shape[0], 1), 0) * stride + origin
    left = lax.bitcast_convert_type(rows, jnp.uint32) * factor + term
    right = lax.broadcasted_iota(jnp.int32, (1, shape[1]), 1)
    places = left + lax.bitcast_convert_type(right, jnp.uint32) * factor
    return random_bits.scrambled(places, upper)


def _codes(y: jax.Array, *, element: Element, bits: jax.Array | None, dtype: Any) -> jax.Array:
    """``round_to_grid`` as codes, in fewer operations."""
    m = element.mantissa_bits
    if m is None and bits is not None:
        limit = np.float32(element.max)
        return rounding.round_to_integer(lax.clamp(-limit, y, limit), bits).astype(dtype)
    if m is None or element.name == "bfloat16":
        return rounding.round_to_grid(y, element, bits).astype(dtype)
    # By integers: the compiler's own conversion of float32 to FP8 stops it in some kernels.
    code = float_code(y, element, bits) | word_of(y) >> 24 & -128
    return lax.bitcast_convert_type(code.astype(jnp.int8), dtype)


def _shown(x: jax.Array, codes: jax.Array) -> jax.Array:
    """Codes of a float format, NaN where x is not finite."""
    return jnp.where(
        word_of(x) & 0x7F800000 == 0x7F800000, jnp.asarray(jnp.nan, codes.dtype), codes
    )


def converted(y: jax.Array, *, element: Element, bits: jax.Array | None, dtype: Any) -> jax.Array:
    """``round_to_grid`` as codes, by the chip's own conversion.

    It adds its noise and truncates: up if noise + fraction reaches 1, as ``round_to_grid``.

    Args:
      y: float32.
      element: a float format that the chip converts to.
      bits: uint32 noise; None: to nearest even.
      dtype: that holds the codes.
    """
    capped = jnp.clip(y, -element.max, element.max)
    if bits is None and dtype == jnp.bfloat16:
        return capped.astype(dtype)
    if bits is None:
        # By way of bfloat16, rounded to odd so that the second rounding is as if it were the first:
        # of float32's own conversion the compiler cannot write a profile.
        odd = ((word_of(capped) & 0xFFFF) + 0xFFFF | word_of(capped)) & -0x10000
        narrow = lax.bitcast_convert_type(odd, jnp.float32).astype(jnp.bfloat16)
        return narrow.astype(dtype)
    return pltpu.stochastic_round(capped, bits, target_dtype=dtype)


def amax_kernel(x: jax.Array, *, tile: tuple[int, int] = _TILE) -> jax.Array:
    """``amax``, of an array or of a shard."""
    matrix = x.reshape(-1, x.shape[-1])
    block, at = _tiles(tile, matrix.shape)
    over = _overhangs(block, matrix.shape)

    def kernel(x_ref: Any, largest_ref: Any) -> None:
        _start_amax(largest_ref)
        left = [
            n - pl.program_id(d) * b
            for d, (n, b) in enumerate(zip(matrix.shape, block, strict=True))
        ]

        def add_strip(strip: Any, first: Any) -> None:
            x = x_ref[strip, :].astype(jnp.float32)
            _add_to_amax(largest_ref, x, (left[0] - first, left[1]), over)

        _for_strips(block[0], add_strip)

    shape, dtype, spec = _amax_output(block)
    largest = pl.pallas_call(
        kernel,
        out_shape=_result(matrix, shape, dtype),
        grid=_grid(block, matrix.shape),
        in_specs=[pl.BlockSpec(block, at)],
        out_specs=spec,
    )(matrix)
    return _largest(largest)


def _amax_output(block: tuple[int, int]) -> tuple[tuple[int, int], Any, Any]:
    """Shape, dtype and tiles of the maxima that a kernel leaves: of all strips, by position."""
    shape = _strip_height(block[0]), block[1]
    return shape, jnp.int32, pl.BlockSpec(shape, lambda i, j: (0, 0))


def _start_amax(largest_ref: Any) -> None:
    def start() -> None:
        largest_ref[...] = jnp.zeros_like(largest_ref)

    pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))(start)


def _add_to_amax(
    largest_ref: Any, x: jax.Array, left: tuple[Any, Any], overhangs: tuple[bool, bool]
) -> None:
    """Adds a strip, of which ``left`` rows and columns are in the array if a tile overhangs."""
    word = word_of(x) & jnp.int32(0x7FFFFFFF)
    for d, limit in enumerate(left):
        if overhangs[d]:
            inside = lax.broadcasted_iota(jnp.int32, word.shape, d) < limit
            word = jnp.where(inside, word, 0)
    largest_ref[...] = jnp.maximum(largest_ref[...], word)


def _largest(words: jax.Array) -> jax.Array:
    return scaling.amax(lax.bitcast_convert_type(words, jnp.float32))


def transpose_kernel(codes: jax.Array, *, tile: tuple[int, int] = _TILE) -> jax.Array:
    """``transpose``, of an array or of a shard."""
    matrix = codes.reshape(-1, codes.shape[-1])
    block, at = _tiles(tile, matrix.shape)

    def kernel(codes_ref: Any, turned_ref: Any) -> None:
        turned_ref[...] = codes_ref[...].T

    turned = pl.pallas_call(
        kernel,
        out_shape=_result(matrix, matrix.shape[::-1], codes.dtype),
        grid=_grid(block, matrix.shape),
        in_specs=[pl.BlockSpec(block, at)],
        out_specs=pl.BlockSpec(block[::-1], lambda i, j: at(i, j)[::-1]),
    )(matrix)
    return turned.reshape(codes.shape[-1], *codes.shape[:-1])


def _tiles(tile: tuple[int, int], shape: tuple[int, ...]) -> Any:
    """A tile's shape, no larger than the matrix, and which tile a grid step has."""
    return tuple(map(min, tile, shape)), lambda i, j: (i, j)


def _overhangs(block: tuple[int, int], shape: tuple[int, ...]) -> tuple[bool, bool]:
    return shape[0] % block[0] > 0, shape[1] % block[1] > 0


def _grid(block: tuple[int, int], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(pl.cdiv(n, b) for n, b in zip(shape, block, strict=True))


def _result(like: jax.Array, shape: tuple[int, ...], dtype: Any) -> Any:
    """A type, which differs over the same mesh axes as ``like``."""
    return jax.eval_shape(lambda x: lax.full_like(x, 0, dtype, shape), like)


def _strip_height(rows: int) -> int:
    return rows if rows % _STRIP else _STRIP


def _for_strips(rows: int, do: Callable[[Any, Any], None]) -> None:
    """``do(slice of rows, first row)`` for every strip of a tile, so that the code stays short."""
    height = _strip_height(rows)

    def step(i: Any, carry: None) -> None:
        first = i * height
        do(pl.ds(pl.multiple_of(first, height), height), first)

    lax.fori_loop(0, rows // height, step, None)
