"""Triton kernels for NVIDIA's GPUs that quantize a matrix: read once for amax, once for all codes.

A kernel has the elements of a block in as many arrays as a block has elements, so that a chip's
registers hold them, and amax, Hadamard transform, rounding and packing are operations of every
position by itself. Along columns each is a load of its own; along rows, where they stand side by
side, they are loaded together and then split.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from srjit.numerics import hadamard, random_bits, scaling
from srjit.numerics.elements import ELEMENTS
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.numerics.scale_layouts import E8M0, FLOAT32, NVFP4, ScaleLayout
from srjit.targets.codes import float_code, word_of
from srjit.targets.gpu.ptx import MODEL, PTX, SHARING, Conversion, Machine, packed, signed

TILE = 128, 64  # elements of every program; 16 KB of bfloat16, 64 elements a thread
_WARPS = 4
_FLT_MAX = np.float32(np.finfo(np.float32).max)
# The dtypes in which kernels write the scales of blocks.
_WRITTEN: dict[ScaleLayout, Any] = {E8M0: jnp.uint8, NVFP4: jnp.float8_e4m3fn}
_E4M3 = ELEMENTS["float8_e4m3fn"]
_BF16 = ELEMENTS["bfloat16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a kernel makes of a matrix (R, C).

    Attributes:
      spec: the quantization; its axis does not matter.
      carrier: the name of the dtype that holds the codes.
      down: whether blocks run along columns. Then the result is transposed: where blocks run is
        always the last dimension of the codes in memory.
      lead: of blocks along columns, how many matrices stand below each other, (lead, R / lead, C):
        each is transposed by itself.
      by_instruction: whether the chip's own conversion rounds stochastically, or the formula.
    """

    spec: Quantization
    carrier: str
    down: bool
    lead: int = 1
    by_instruction: bool = False

    @property
    def block(self) -> int:
        """How many elements are worked on together."""
        return self.spec.block_size if self.spec.is_blocked else hadamard.SIZE

    @property
    def conversion(self) -> Conversion:
        """What values become."""
        return Conversion(get_format(self.spec.format).element, ELEMENTS[self.carrier])

    @property
    def scales(self) -> ScaleLayout:
        """What scales are."""
        return get_format(self.spec.format).scales

    @property
    def has_tensor_scale(self) -> bool:
        """Whether a float32 scale of the tensor is written."""
        return self.scales.has_tensor_scale or not self.spec.is_blocked

    @property
    def name(self) -> str:
        """What tells its kernel from others that round otherwise."""
        return f"{self.spec.format}_{self.spec.rounding}"

    def sizes(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the codes in memory, those padded to whole blocks."""
        rows, columns = shape[::-1] if self.down else shape
        rows, columns = (rows * self.lead, columns // self.lead) if self.down else (rows, columns)
        return rows, -(-columns // self.block) * self.block

    def results(self, shape: tuple[int, int]) -> list[Any]:
        """Types of codes as words, of scales of blocks if there are any, and of the tensor's."""
        rows, columns = self.sizes(shape)
        blocks = rows, columns // self.block
        found = [((rows * columns // self.conversion.per_word,), jnp.int32)]
        if self.spec.shared == "square":
            blocks = tuple(-(-n // self.block) for n in shape)
        if self.spec.is_blocked:
            found.append(((math.prod(blocks),), _WRITTEN[self.scales]))
        if self.has_tensor_scale:
            found.append(((1,), jnp.float32))
        return [jax.ShapeDtypeStruct(s, d) for s, d in found]


# -------------------------------------------------------------------------------------------- noise


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the rows and the columns of a matrix stand in what the noise counts.

    Attributes:
      rows, columns: sizes and strides of the dimensions that make them, the last varying fastest.
    """

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, shape: Sequence[int], counted: Sequence[int], split: int) -> Places:
        """Of a part of an array, seen as a matrix.

        Args:
          shape: of the part.
          counted: the shape of the whole, as the noise counts its elements.
          split: how many dimensions make the rows.
        """
        *leading, last = counted
        stride = random_bits.row_stride(last)
        strides = [math.prod(leading[d + 1 :]) * stride for d in range(len(leading))] + [1]
        dims = list(zip(shape, strides, strict=True))
        return cls(_merged(dims[:split]), _merged(dims[split:]))

    @property
    def strides(self) -> tuple[int, int]:
        """From a row to the next, and from a column to the next, inside of a block."""
        return self.rows[-1][1], self.columns[-1][1]

    def index(self, row: jax.Array, column: jax.Array) -> jax.Array:
        """uint32 index of the elements in rows and columns."""
        return _counted(row, self.rows) + _counted(column, self.columns)


def _merged(dims: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The same dimensions, fewer where one continues another."""
    found: list[tuple[int, int]] = []
    for size, stride in dims:
        if found and found[-1][1] == size * stride:
            size *= found.pop()[0]
        found.append((size, stride))
    return tuple(found) or ((1, 1),)


def _counted(position: jax.Array, dims: tuple[tuple[int, int], ...]) -> jax.Array:
    index, inner = jnp.zeros_like(position), math.prod(size for size, _ in dims)
    for d, (size, stride) in enumerate(dims):
        inner //= size
        at = position // inner if inner > 1 else position
        index += (at % size if d else at) * np.int32(np.uint32(stride % 2**32).view(np.int32))
    return lax.bitcast_convert_type(index, jnp.uint32)


@dataclasses.dataclass(frozen=True)
class _Noise:
    """Words of noise for the elements of blocks.

    Attributes:
      first: for every block, the affine function of the index of its first element.
      step: what it grows by from one element to the next.
    """

    first: jax.Array
    step: jax.Array

    def bits(self, element: int) -> jax.Array:
        """``random_bits.hash_bits``, uint32."""
        return random_bits.scrambled(self.first + self.step * np.uint32(element))

    def word(self, element: int) -> jax.Array:
        """32 good bits, int32."""
        whole = random_bits.avalanche(self.first + self.step * np.uint32(element))
        return lax.bitcast_convert_type(whole, jnp.int32)


# ------------------------------------------------------------------------------------------ kernels


@dataclasses.dataclass(frozen=True)
class _Tile:
    """The part of a matrix that a program works on.

    Attributes:
      ref: the matrix, flat.
      shape: of it.
      tile: of the part.
    """

    ref: Any
    shape: tuple[int, int]
    tile: tuple[int, int]

    def origin(self) -> tuple[jax.Array, jax.Array]:
        return pl.program_id(0) * self.tile[0], pl.program_id(1) * self.tile[1]

    def blocks(self, block: int, down: bool) -> tuple[list[jax.Array], jax.Array, jax.Array]:
        """float32 elements of blocks by position, with row and column of the first of them."""
        top, left = self.origin()
        rows, columns = self.tile
        if down:
            shape = rows // block, columns
            row, column = top + _iota(shape, 0) * block, left + _iota(shape, 1)
            parts = [self._load(row + k, column) for k in range(block)]
        else:
            shape = rows, columns // block
            row, column = top + _iota(shape, 0), left + _iota(shape, 1) * block
            whole = *shape, block
            across = left + _iota(whole, 1) * block + _iota(whole, 2)
            parts = _unstacked(self._load(top + _iota(whole, 0), across))
        return [part.astype(jnp.float32) for part in parts], row, column

    def _load(self, row: jax.Array, column: jax.Array) -> jax.Array:
        ref = self.ref.at[row * self.shape[1] + column]
        inside = _all(
            position < size
            for position, size, step in zip((row, column), self.shape, self.tile, strict=True)
            if size % step
        )
        return plgpu.load(ref) if inside is None else plgpu.load(ref, mask=inside, other=0)


def _iota(shape: tuple[int, ...], dimension: int) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, shape, dimension)


def _all(conditions: Any) -> jax.Array | None:
    found = list(conditions)
    return functools.reduce(jnp.logical_and, found) if found else None


def _unstacked(x: jax.Array) -> list[jax.Array]:
    """The parts of an array along its last dimension, a power of two, as Triton can split it."""
    if x.shape[-1] == 1:
        return [x.reshape(x.shape[:-1])]
    pairs = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    even, odd = (part.reshape(part.shape[:-1]) for part in lax.split(pairs, (1, 1), pairs.ndim - 1))
    return [p for both in zip(_unstacked(even), _unstacked(odd), strict=True) for p in both]


def _stacked(parts: list[jax.Array]) -> jax.Array:
    """The reverse: parts along a new last dimension."""
    if len(parts) == 1:
        return parts[0][..., None]
    even, odd = _stacked(parts[::2]), _stacked(parts[1::2])
    return jnp.stack([even, odd], axis=-1).reshape(*even.shape[:-1], len(parts))


def _largest(parts: Sequence[jax.Array]) -> jax.Array:
    """max|x| over parts, as bits: NaN is above all."""
    return functools.reduce(jnp.maximum, [word_of(part) & 0x7FFFFFFF for part in parts])


def _transformed(parts: list[jax.Array], machine: Machine) -> list[jax.Array]:
    """``hadamard.transform``, 16 parts at a time."""
    found: list[jax.Array] = []
    for start in range(0, len(parts), hadamard.SIZE):
        x = [
            part if sign > 0 else -part
            for part, sign in zip(parts[start : start + hadamard.SIZE], hadamard.SIGNS, strict=True)
        ]
        for half in hadamard.halves():
            x = [x[k ^ half] - x[k] if k & half else x[k] + x[k ^ half] for k in range(len(x))]
        found += [machine.narrow(part * 0.25, _BF16) for part in x]
    return found


def amax_matrix(
    x: jax.Array, kinds: Sequence[str], *, tile: tuple[int, int] = TILE, interpret: bool = False
) -> list[jax.Array]:
    """max|x| of a matrix and of its transforms, from one read; int32 bits of float32 scalars.

    Args:
      x: a matrix.
      kinds: ``plain``, or along what the Hadamard transform runs: ``rows`` or ``columns``.
      tile: elements of every program.
      interpret: whether to run it on any machine.
    """
    machine = MODEL if interpret else PTX
    grid = _grid(x.shape, tile)

    def kernel(x_ref: Any, *refs: Any) -> None:
        part = _Tile(x_ref, (x.shape[0], x.shape[1]), tile)
        program = pl.program_id(0) * grid[1] + pl.program_id(1)
        # What is loaded once more for another direction comes from the chip's caches.
        down = [kind == "columns" for kind in kinds if kind != "plain"] or [True]
        loaded = {d: part.blocks(hadamard.SIZE, d)[0] for d in down}
        for kind, ref in zip(kinds, refs, strict=True):
            blocks = loaded[kind == "columns" if kind != "plain" else down[0]]
            largest = _largest(blocks if kind == "plain" else _transformed(blocks, machine))
            ref[program] = jnp.max(largest)

    partial = _call(
        kernel,
        x,
        [jax.ShapeDtypeStruct((math.prod(grid),), jnp.int32) for _ in kinds],
        grid,
        interpret,
        "srjit_amax",
    )(x.reshape(-1))
    return [jnp.max(p) for p in partial]


def quantize_matrix(
    x: jax.Array,
    tasks: Sequence[Task],
    places: Sequence[Places],
    amaxes: Sequence[jax.Array | None],
    keys: Sequence[random_bits.Key | None],
    origins: Sequence[jax.Array] | None = None,
    *,
    tile: tuple[int, int] = TILE,
    interpret: bool = False,
) -> list[list[jax.Array]]:
    """Codes and scales of all tasks, from one read of a matrix.

    Args:
      x: float32 or bfloat16 (R, C).
      tasks: what to make.
      places: for each, where its noise stands.
      amaxes: for each, bits of the tensor's amax as ``amax_matrix`` has them; None if it has none.
      keys: for each, the key of its noise; None if it is rounded to nearest.
      origins: for each, the noise's index of the first element; None: 0.
      tile: elements of every program: powers of two, whole blocks.
      interpret: whether to run it on any machine.

    Returns:
      For each task arrays of the types of ``Task.results``.
    """
    machine = MODEL if interpret else PTX
    shape = x.shape[0], x.shape[1]
    types = [task.results(shape) for task in tasks]
    # Every scalar is an operand of its own: to gather them would take a kernel.
    scalars = [*amaxes, *(word for key in keys for word in key or (None, None)), *(origins or ())]
    given = [s is not None for s in scalars]
    operands = [lax.bitcast_convert_type(s, jnp.int32).reshape(1) for s in scalars if s is not None]

    def kernel(x_ref: Any, *refs: Any) -> None:
        left = iter(refs)
        values = [next(left)[0] if there else None for there in given]
        results = [[next(left) for _ in ts] for ts in types]
        part = _Tile(x_ref, shape, tile)
        n = len(tasks)
        for i, task in enumerate(tasks):
            key = values[n + 2 * i : n + 2 * i + 2]
            start = values[3 * n + i] if origins else None
            noise = (key, start, places[i]) if keys[i] else None
            _write(task, part, values[i], noise, results[i], machine)

    name = "_".join(["srjit_quantize", *dict.fromkeys(task.name for task in tasks)])
    quantize = _call(
        kernel, x, [t for ts in types for t in ts], _grid(shape, tile), interpret, name
    )
    flat = quantize(x.reshape(-1), *operands)
    left = iter(flat)
    return [[next(left) for _ in ts] for ts in types]


def _call(
    kernel: Callable[..., None],
    like: jax.Array,
    results: list[Any],
    grid: tuple[int, int],
    interpret: bool,
    name: str,
) -> Callable[..., list[jax.Array]]:
    # Inside of a shard_map types say over what a value differs: as the matrix does.
    typed = jax.eval_shape(lambda x: [lax.full_like(x, 0, t.dtype, t.shape) for t in results], like)
    return pl.pallas_call(
        kernel,
        out_shape=typed,
        grid=grid,
        compiler_params=plgpu.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=interpret,
        name=name,
    )


def _grid(shape: Sequence[int], tile: tuple[int, int]) -> tuple[int, int]:
    return pl.cdiv(shape[0], tile[0]), pl.cdiv(shape[1], tile[1])


def _write(
    task: Task,
    part: _Tile,
    amax: jax.Array | None,
    noise: Any,
    results: list[Any],
    machine: Machine,
) -> None:
    """Quantizes a tile and stores what comes of it."""
    blocks, row, column = part.blocks(task.block, task.down)
    if task.spec.hadamard:
        blocks = _transformed(blocks, machine)
    largest = _shared(task, _largest(blocks)) if task.spec.is_blocked else None
    scales = _scales(task, largest, amax, machine)
    spread = _spread(task, scales.encode)
    values = [block * spread for block in blocks]
    words = _rounded(task, values, _noise_of(task, noise, row, column), machine)
    _store_words(task, part, results[0], words, row, column)
    if scales.block is not None:
        _store_scales(task, part, results[1], scales.block, row, column)
    if scales.tensor is not None:
        first = (pl.program_id(0) == 0) & (pl.program_id(1) == 0)
        at = jnp.zeros(scales.tensor.shape, jnp.int32)
        plgpu.store(results[-1].at[at], scales.tensor, mask=jnp.broadcast_to(first, at.shape))


# ------------------------------------------------------------------------------------------- scales


@dataclasses.dataclass(frozen=True)
class _Scales:
    """Scales as kernels have them: see ``scaling.Scales``."""

    encode: jax.Array
    block: jax.Array | None = None
    tensor: jax.Array | None = None


def _shared(task: Task, largest: jax.Array) -> jax.Array:
    """amax of what shares a scale: of blocks, or of squares of them."""
    if task.spec.shared != "square":
        return largest
    rows, columns = largest.shape
    if task.down:
        return jnp.max(largest.reshape(rows, columns // task.block, task.block), axis=2)
    return jnp.max(largest.reshape(rows // task.block, task.block, columns), axis=1)


def _spread(task: Task, encode: jax.Array) -> jax.Array:
    """One factor for every block."""
    if task.spec.shared != "square":
        return encode
    rows, columns = encode.shape
    if task.down:
        wide = jnp.broadcast_to(encode[:, :, None], (rows, columns, task.block))
        return wide.reshape(rows, columns * task.block)
    wide = jnp.broadcast_to(encode[:, None, :], (rows, task.block, columns))
    return wide.reshape(rows * task.block, columns)


def _scales(
    task: Task, largest: jax.Array | None, amax: jax.Array | None, machine: Machine
) -> _Scales:
    """As ``numerics.scaling``, with nothing but what keeps NaN, and what all compilers have."""
    block = None if largest is None else lax.bitcast_convert_type(largest, jnp.float32)
    tensor = None if amax is None else lax.bitcast_convert_type(jnp.full((1, 1), amax), jnp.float32)
    return _SCALES[task.scales](task, block, tensor, machine)


def _e8m0_scales(task: Task, block: Any, a: Any, machine: Machine) -> _Scales:
    element, rounding = task.conversion.element, task.spec.scale_rounding
    exponent, code = scaling.e8m0_codes(block, element, rounding, subnormal=False)
    encode = lax.bitcast_convert_type(254 - exponent << 23, jnp.float32)
    return _Scales(encode, code.astype(jnp.uint8))


def _float_scales(task: Task, block: Any, a: Any, machine: Machine) -> _Scales:
    most = jnp.full_like(a, task.conversion.element.max)
    quotient, inverse = machine.divide(a, most), machine.divide(most, a)
    encode = jnp.where(inverse > 2.0**126, jnp.float32(2.0**126), inverse)
    scale = jnp.where(quotient < 2.0**-126, jnp.float32(2.0**-126), quotient)
    one = jnp.ones_like(a)
    return _Scales(jnp.where(a == 0, one, encode), None, jnp.where(a == 0, one, scale))


def _nvfp4_scales(task: Task, block: Any, a: Any, machine: Machine) -> _Scales:
    """``scaling.nvfp4_scales``, which says what this is, without subnormal numbers."""
    top, one = jnp.full_like(a, 2688), jnp.ones_like(block)
    tensor = machine.divide(a, top)
    a = jnp.where(a == jnp.inf, top, jnp.where(a < 2.0**-112, jnp.float32(2.0**-112), a))
    s = machine.divide(top, a)
    s = jnp.where(s > _FLT_MAX, _FLT_MAX, s)
    target = block * (s * np.float32(1 / 6))
    target = jnp.where(target > _E4M3.max, jnp.float32(_E4M3.max), target)
    sf = machine.narrow(target, _E4M3)
    if task.spec.scale_rounding == "up":
        sf = jnp.where(sf < target, scaling.next_up(sf), sf)
    encode = machine.divide(one, sf * machine.divide(jnp.ones_like(a), s))
    encode = jnp.where(encode > _FLT_MAX, _FLT_MAX, encode)
    return _Scales(encode, sf.astype(jnp.float8_e4m3fn), tensor)


_SCALES: dict[ScaleLayout, Callable[..., _Scales]] = {
    E8M0: _e8m0_scales,
    FLOAT32: _float_scales,
    NVFP4: _nvfp4_scales,
}


# -------------------------------------------------------------------------------- codes and storing


def _noise_of(task: Task, noise: Any, row: jax.Array, column: jax.Array) -> _Noise | None:
    if noise is None:
        return None
    words, origin, places = noise
    key = tuple(lax.bitcast_convert_type(word, jnp.uint32) for word in words)
    factor, term = random_bits.line((key[0], key[1]))
    index = places.index(row, column)
    if origin is not None:
        index += lax.bitcast_convert_type(origin, jnp.uint32)
    stride = places.strides[0 if task.down else 1]
    return _Noise(index * factor + term, factor * np.uint32(stride % 2**32))


def _rounded(
    task: Task, values: list[jax.Array], noise: _Noise | None, machine: Machine
) -> list[jax.Array]:
    """int32 words of codes, by their position in a block."""
    conversion = task.conversion
    per = conversion.per_word
    element = conversion.element
    words: list[jax.Array] = []
    for start in range(0, len(values), per):
        some = values[start : start + per]
        if noise is None:
            words.append(machine.nearest(some, conversion))
        elif task.by_instruction:
            drawn = [noise.word(k) for k in range(start, start + per, SHARING)]
            words.append(machine.stochastic(some, conversion, drawn))
        else:
            codes = [
                signed(y, float_code(y, element, noise.bits(start + k)), element)
                for k, y in enumerate(some)
            ]
            words.append(packed(codes, conversion))
    return words


def _store_words(
    task: Task,
    part: _Tile,
    ref: Any,
    words: list[jax.Array],
    row: jax.Array,
    column: jax.Array,
) -> None:
    at, inside = _blocks_in_memory(task, part, row, column)
    stacked, count = _stacked(words), len(words)
    if task.down:
        stacked, at = stacked.transpose(1, 0, 2), at.T
        inside = None if inside is None else inside.T
    shape = stacked.shape
    at = jnp.broadcast_to(at[:, :, None] * count, shape) + _iota(shape, 2)
    mask = None if inside is None else jnp.broadcast_to(inside[:, :, None], shape)
    _store(ref, at, stacked, mask)


def _store_scales(
    task: Task, part: _Tile, ref: Any, scales: jax.Array, row: jax.Array, column: jax.Array
) -> None:
    if task.spec.shared == "square":
        top, left = (origin // task.block for origin in part.origin())
        rows, columns = (-(-n // task.block) for n in part.shape)
        i, j = top + _iota(scales.shape, 0), left + _iota(scales.shape, 1)
        _store(ref, i * columns + j, scales, (i < rows) & (j < columns))
        return
    at, inside = _blocks_in_memory(task, part, row, column)
    if task.down:
        scales, at = scales.T, at.T
        inside = None if inside is None else inside.T
    _store(ref, at, scales, inside)


def _store(ref: Any, at: jax.Array, values: jax.Array, inside: jax.Array | None) -> None:
    if inside is None:
        plgpu.store(ref.at[at], values)
        return
    # Without a GPU, what is masked is stored too, as it was: not where others store.
    plgpu.store(ref.at[jnp.where(inside, at, ref.shape[0])], values, mask=inside)


def _blocks_in_memory(
    task: Task, part: _Tile, row: jax.Array, column: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Which blocks of the codes in memory these are, and whether they are any."""
    size = task.sizes(part.shape)[1] // task.block
    inside = _all(
        position < n
        for position, n, step in zip((row, column), part.shape, part.tile, strict=True)
        if n % step
    )
    if not task.down:
        return row * size + column // task.block, inside
    block = row // task.block
    lead = block // size if task.lead > 1 else 0
    at = (lead * part.shape[1] + column) * size + (block % size if task.lead > 1 else block)
    return at, inside
