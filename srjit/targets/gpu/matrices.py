"""Quantizations of one tensor by kernels, wherever its shards are.

A tensor of any rank is a matrix to a kernel: dimensions up to one are its rows and the others its
columns. Blocks run along the last dimension, or along the last of the rows; then the codes stand
transposed in memory, so that what they are multiplied by finds the contraction last.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh

from srjit.numerics import hadamard, random_bits
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key
from srjit.products.quantized import ScaledValues
from srjit.targets.gpu.kernels import amax_matrix, quantize_matrix
from srjit.targets.gpu.noise import Places
from srjit.targets.gpu.reinterpreted import reinterpreted
from srjit.targets.gpu.task import Task
from srjit.targets.layouts import mesh_axes, placed

_INPUTS = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Want:
    """One quantization of a tensor.

    Attributes:
      spec: how.
      carrier: the name of the dtype that holds the codes.
      by_instruction: whether the chip rounds stochastically itself.
      turned: whether a copy of the codes with the last dimension first is wanted.
    """

    spec: Quantization
    carrier: str
    by_instruction: bool = False
    turned: bool = False

    def can_turn(self, shape: tuple[int, ...]) -> bool:
        """True if the copy comes from the same read."""
        spec = self.spec
        same = spec.shared == "square" and spec.rounding == "nearest" and not spec.hadamard
        return self.turned and same and len(shape) == 2


@dataclasses.dataclass(frozen=True)
class _Written:
    """Results that a kernel writes for a want.

    Attributes:
      task: for the kernel.
      dim: which dimension of the tensor blocks run along.
      order: the tensor's dimensions as the codes have them in memory.
    """

    task: Task
    dim: int
    order: tuple[int, ...]

    @property
    def split(self) -> int:
        """The number of dimensions that make the rows."""
        return self.dim + self.task.down

    @property
    def multiple(self) -> int:
        """Elements that have to stay together along the blocked dimension."""
        return math.lcm(self.task.block, hadamard.SIZE if self.task.spec.hadamard else 1)

    @property
    def kind(self) -> str:
        """The kind of amax that it needs: as of ``amax_matrix``."""
        if not self.task.spec.hadamard:
            return "plain"
        return "columns" if self.task.down else "rows"

    def blocked(self, ndim: int) -> tuple[int, ...]:
        """Dimensions that have fewer scales than elements."""
        if self.task.spec.shared == "square":
            return ndim - 2, ndim - 1
        return (self.dim,) if self.task.spec.is_blocked else ()

    def counted(self, shape: Sequence[int]) -> list[int]:
        """The shape as the noise counts it: transformed dimensions are padded."""
        size = hadamard.SIZE if self.task.spec.hadamard else 1
        return [n + (-n % size) * (d == self.dim) for d, n in enumerate(shape)]

    def types(self, shape: Sequence[int]) -> list[jax.ShapeDtypeStruct]:
        """Shapes and dtypes of what is written of a tensor, or of a shard of it."""
        block = self.task.block
        whole = [n + (-n % block) * (d == self.dim) for d, n in enumerate(shape)]
        blocked = self.blocked(len(shape))
        few = [-(-n // block) if d in blocked else n for d, n in enumerate(shape)]
        found = [jax.ShapeDtypeStruct([whole[d] for d in self.order], self.task.carrier)]
        if self.task.spec.is_blocked:
            dtype = self.task.scales.dtype
            found.append(jax.ShapeDtypeStruct([few[d] for d in self._scales_order], dtype))
        if self.task.has_tensor_scale:
            found.append(jax.ShapeDtypeStruct((), "float32"))
        return found

    @property
    def _scales_order(self) -> tuple[int, ...]:
        is_square = self.task.spec.shared == "square"
        return tuple(range(len(self.order))) if is_square else self.order

    @property
    def dims(self) -> list[tuple[int, ...]]:
        """The tensor's dimensions that the dimensions of the results are."""
        of_blocks = [self._scales_order] * self.task.spec.is_blocked
        return [self.order, *of_blocks, *[()] * self.task.has_tensor_scale]

    def read(self, outs: list[jax.Array], shape: Sequence[int]) -> list[jax.Array]:
        """Returns results with their dimensions as the tensor has them."""
        found = [
            lax.transpose(out, [order.index(d) for d in range(len(order))])
            for out, order in zip(outs, self.dims, strict=True)
        ]
        found[0] = lax.slice(found[0], [0] * len(shape), self.counted(shape))
        return found


def fits(x: jax.Array, want: Want) -> bool:
    """True if kernels can make that of a tensor of such a shape and dtype."""
    spec, shape = want.spec, x.shape
    if x.dtype.name not in _INPUTS or not 0 < 2 * math.prod(shape) < 2**31 or not shape:
        return False
    if spec.scaling != "dynamic" or spec.scale_rounding in ("four_over_six", "eden"):
        return False
    if spec.shared == "channel" or spec.rounding == "none" or spec.block_size not in (16, 32):
        return False
    if spec.shared == "square":
        last_two = (len(shape) - 2, len(shape) - 1)
        is_matrix = len(shape) == 2 or (len(shape) > 2 and shape[-2] % spec.block_size == 0)
        return is_matrix and not spec.hadamard and spec.blocked_dims(shape) == last_two
    if spec.shared == "tensor" and spec.hadamard:
        return False
    (written,) = _written(want, shape)
    # What is padded is the last block of every row; of matrices below each other, of all of them.
    whole = shape[written.dim] % written.multiple == 0
    return whole or not written.task.down or math.prod(shape[: written.dim]) == 1


def _written(want: Want, shape: tuple[int, ...]) -> list[_Written]:
    spec, ndim = want.spec, len(shape)
    axes = spec.axes(ndim)
    task = functools.partial(
        Task, spec=spec, carrier=want.carrier, by_instruction=want.by_instruction
    )
    dim = ndim - 1 if spec.shared in ("tensor", "square") else axes[-1]
    if dim == ndim - 1:
        found = [_Written(task(down=False), dim, tuple(range(ndim)))]
        if want.can_turn(shape):
            found.append(_Written(task(down=True), 0, (1, 0)))
        return found
    above, below = tuple(range(dim)), tuple(range(dim + 1, ndim))
    if set(above) <= set(axes):  # they are summed too: rows first
        return [_Written(task(down=True), dim, (*below, *above, dim))]
    lead = math.prod(shape[:dim])
    return [_Written(task(down=True, lead=lead), dim, (*above, *below, dim))]


def quantize_by_kernels(
    wants: tuple[Want, ...], x: jax.Array, *words: jax.Array
) -> tuple[ScaledValues, ...]:
    """All quantizations of a tensor, from one read of it, after one for all of their amaxes.

    Args:
      wants: that ``fit``.
      x: float32 or bfloat16.
      *words: two uint32 scalars for every want that rounds stochastically.
    """
    written = [_written(want, x.shape) for want in wants]
    flat = tuple(w for ws in written for w in ws)
    drawn = iter(words)
    keys: list[Key | None] = []
    for want, ws in zip(wants, written, strict=True):
        key = (next(drawn), next(drawn)) if want.spec.rounding == "stochastic" else None
        keys += [key] * len(ws)
    amaxes = _amaxes(flat, x)
    outs: dict[int, list[jax.Array]] = {}
    # One kernel for all that see the tensor as the same matrix.
    for split in sorted({w.split for w in flat}):
        chosen = [i for i, w in enumerate(flat) if w.split == split]
        some = tuple(flat[i] for i in chosen)
        scalars = [amaxes[w] for w in some if w.task.has_tensor_scale]
        scalars += [word for i in chosen for word in keys[i] or ()]
        found = iter(_quantize_call(some, x.shape)(x, *scalars))
        for i, w in zip(chosen, some, strict=True):
            outs[i] = w.read([next(found) for _ in w.types(x.shape)], x.shape)
    results: list[ScaledValues] = []
    taken = iter(range(len(flat)))
    for want, ws in zip(wants, written, strict=True):
        first, *copies = [outs[next(taken)] for _ in ws]
        results.append(_scaled_values(want, first, copies))
    return tuple(results)


def _scaled_values(
    want: Want, outs: list[jax.Array], copies: list[list[jax.Array]]
) -> ScaledValues:
    codes, *scales = outs
    blocks = scales.pop(0) if want.spec.is_blocked else None
    turned = copies[0][0].T if copies else None
    return ScaledValues(codes, scales[0] if scales else None, want.spec, turned, blocks)


def _amaxes(written: Sequence[_Written], x: jax.Array) -> dict[_Written, jax.Array]:
    """For what has scales of the tensor: bits of its amax, each kind of it found once."""
    needed = [w for w in written if w.task.has_tensor_scale]
    # The plain one is the same however the tensor is seen.
    places = {w.kind: w.split for w in sorted(needed, key=lambda w: w.split)}
    groups = {(w.kind, places[w.kind] if w.kind == "plain" else w.split) for w in needed}
    found: dict[str | tuple[str, int], jax.Array] = {}
    for split in sorted({split for _, split in groups}):
        kinds = tuple(sorted(kind for kind, s in groups if s == split))
        values = _amax_call(kinds, split, x.shape)(x)
        found.update(zip([(kind, split) for kind in kinds], values, strict=True))
        found.update({kind: found[kind, split] for kind in kinds if kind == "plain"})
    return {w: found["plain" if w.kind == "plain" else (w.kind, w.split)] for w in needed}


# ------------------------------------------------------------------------------------------- shards


def _as_matrix(x: jax.Array, split: int) -> jax.Array:
    return x.reshape(math.prod(x.shape[:split]), -1)


@functools.cache
def _amax_call(kinds: tuple[str, ...], split: int, shape: tuple[int, ...]) -> Any:
    """A function of a tensor that returns bits of its amaxes, wherever its shards are."""
    along = {"rows": len(shape) - 1, "columns": split - 1}
    stays = {along[kind]: hadamard.SIZE for kind in kinds if kind in along}

    def run(x: jax.Array) -> list[jax.Array]:
        return amax_matrix(_as_matrix(x, split), kinds)

    def partition(mesh: Mesh, args: Any, results: Any) -> Any:
        axes = _kept(mesh, args[0], stays)
        everywhere = tuple(name for names in axes for name in names)

        def run_shard(x: jax.Array) -> list[jax.Array]:
            found = run(x)
            return [lax.pmax(value, everywhere) for value in found] if everywhere else found

        replicated = [placed(mesh, ())] * len(kinds)
        return mesh, run_shard, replicated, (placed(mesh, axes),)

    names = [f"d{i}" for i in range(len(shape))]
    call = custom_partitioning(run)
    call.def_partition(
        partition=partition,
        sharding_rule=f"{' '.join(names)} -> {', '.join('' for _ in kinds)}",
        reduction_factors=tuple(names),
    )
    return call


@functools.cache
def _quantize_call(written: tuple[_Written, ...], shape: tuple[int, ...]) -> Any:
    """A function of a tensor and its scalars that returns codes and scales, likewise.

    Its scalars are amaxes of what has one, and then keys of what is rounded stochastically.
    """
    split = written[0].split
    stays: dict[int, int] = {}
    for w in written:
        for d in {*w.blocked(len(shape)), w.dim}:
            stays[d] = math.lcm(stays.get(d, 1), w.multiple)

    def kernel(x: jax.Array, *scalars: jax.Array) -> list[jax.Array]:
        given = iter(scalars)
        amaxes = [next(given) if w.task.has_tensor_scale else None for w in written]
        stochastic = [w.task.spec.rounding == "stochastic" for w in written]
        keys = [(next(given), next(given)) if drawn else None for drawn in stochastic]
        places = [Places.of(x.shape, w.counted(shape), split) for w in written]
        tasks, origins = [w.task for w in written], list(given) or None
        outs = quantize_matrix(_as_matrix(x, split), tasks, places, amaxes, keys, origins)
        return [out for found in outs for out in found]

    def run(origins: Sequence[jax.Array], x: jax.Array, *scalars: jax.Array) -> list[jax.Array]:
        types = [t for w in written for t in w.types(x.shape)]
        return reinterpreted(kernel, types, x, *scalars, *origins)

    def partition(mesh: Mesh, args: Any, results: Any) -> Any:
        axes = _kept(mesh, args[0], stays)

        def run_shard(x: jax.Array, *scalars: jax.Array) -> list[jax.Array]:
            origins = [_origin(x.shape, w.counted(shape), axes) for w in written]
            return run(origins if any(axes) else (), x, *scalars)

        places = [placed(mesh, [axes[d] for d in dims]) for w in written for dims in w.dims]
        scalars = [placed(mesh, ())] * (len(args) - 1)
        return mesh, run_shard, places, (placed(mesh, axes), *scalars)

    call = custom_partitioning(functools.partial(run, ()))
    rule, sizes = _rule(written, shape, stays)
    call.def_partition(partition=partition, sharding_rule=rule, **sizes)
    return call


def _kept(mesh: Mesh, arg: Any, stays: dict[int, int]) -> list[tuple[str, ...]]:
    """The mesh axes of every dimension whose shards are equal and cut nothing that stays whole."""
    found = mesh_axes(arg.sharding.spec, len(arg.shape))
    for d, names in enumerate(found):
        count = math.prod(mesh.shape[name] for name in names)
        if arg.shape[d] % (count * stays.get(d, 1)):
            found[d] = ()
    return found


def _origin(
    shape: Sequence[int], counted: Sequence[int], axes: Sequence[tuple[str, ...]]
) -> jax.Array:
    """uint32 index of a shard's first element, as the noise counts them."""
    origin = jnp.zeros((), jnp.uint32)
    for size, step, names in zip(shape, random_bits.strides(counted), axes, strict=True):
        if names:
            first = lax.axis_index(names).astype(jnp.uint32) * np.uint32(size)
            origin += first * np.uint32(step % 2**32)
    return origin


def _rule(
    written: Sequence[_Written], shape: tuple[int, ...], stays: dict[int, int]
) -> tuple[str, dict[str, Any]]:
    """The rule that relates shardings of the tensor to those of what is written."""
    names = [f"d{i}" for i in range(len(shape))]
    scaled = {d for w in written for d in w.blocked(len(shape))}
    whole = {d for d in scaled if shape[d] % stays[d] == 0}
    sizes: dict[str, Any] = {f"b{d}": stays[d] for d in whole}
    dims = {d: f"({name} b{d})" if d in whole else name for d, name in enumerate(names)}
    results: list[str] = []
    for i, w in enumerate(written):
        # What is padded has dimensions of its own.
        codes = [dims[d] if shape[d] % w.multiple == 0 or d != w.dim else f"p{i}" for d in w.order]
        results.append(" ".join(codes))
        for few in w.dims[1:]:
            blocked = w.blocked(len(shape))
            scales = [
                names[d]
                if d in whole and d in blocked
                else f"s{i}x{d}"
                if d in blocked
                else dims[d]
                for d in few
            ]
            results.append(" ".join(scales) if few else "")
    scalars = sum(w.task.has_tensor_scale for w in written)
    scalars += 2 * sum(w.task.spec.rounding == "stochastic" for w in written)
    left = ", ".join([" ".join(dims.values()), *[""] * scalars])
    return f"{left} -> {', '.join(results)}", sizes
