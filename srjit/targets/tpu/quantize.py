"""Quantization on TPUs: by XLA where it fuses with what makes an operand, or else by kernels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from srjit.numerics.encode import viewed
from srjit.numerics.formats import get_format
from srjit.numerics.groups import Groups
from srjit.numerics.random_bits import Key
from srjit.numerics.scaling import float_scales, tensor_amax, tensor_scales
from srjit.products.quantized import ScaledValues, emulated
from srjit.targets.kernel_call import kernel_call
from srjit.targets.target import WITHOUT_HISTORY, Demand
from srjit.targets.tpu.chips import Chip

_SLICES = 16  # of a tensor in memory whose amax is found
_LANES = 128


def quantize(
    chip: Chip, x: jax.Array, demand: Demand, key: Key | None, before: jax.Array | None
) -> ScaledValues:
    """See targets.Quantize.

    What another operation makes is best quantized by that operation: its amax costs next to
    nothing, and its codes, if the scale is known. What is in memory, or has to wait there for its
    amax, is read by kernels. Both know one float32 scale a tensor; anything else is plain.
    """
    from srjit.targets.tpu import kernels as tpu_kernels

    spec, in_memory = demand.spec, demand.in_memory
    element = get_format(spec.format).element
    is_plain = spec.shared != "tensor" or spec.apart or spec.hadamard or spec.rounding == "none"
    if is_plain or demand.rng != "hash" or not tpu_kernels.fits(x.shape, x.dtype, element):
        return emulated(x, spec, key, before=before, rng=demand.rng, shows=demand.shows)
    by_kernel = functools.partial(
        tpu_kernels.quantize,
        x,
        element,
        key=key,
        transposed=demand.turned,
        converts=element.name in chip.converts,
    )
    by_xla = functools.partial(tpu_kernels.quantize_plainly, x, element=element)
    fuses_given = not in_memory and "given" in chip.fuses
    if spec.scaling == "dynamic" and before is not None:
        scales = float_scales(before, element)
        made = by_xla(scales.encode, *(key or ())) if fuses_given else by_kernel(scales.encode)
        codes, *copies = _several(made)
        return ScaledValues(codes, scales.scale, spec, *copies)
    if spec.scaling == "dynamic":
        if not in_memory and spec.rounding in chip.fuses:
            return emulated(x, spec, key, shows=demand.shows)
        seen = tpu_kernels.amax(x, _amax_of_memory) if in_memory else tensor_amax(x)
        scales = float_scales(seen, element)
        codes, *copies = _several(by_kernel(scales.encode))
        return ScaledValues(codes, scales.scale, spec, *copies, seen=seen if demand.shows else None)
    known = float(spec.amax) if spec.amax is not None else before
    encode = float_scales(jnp.asarray(known, jnp.float32), element).encode
    if not fuses_given:
        *codes, seen, hidden = by_kernel(encode, with_amax=True)
    else:
        *codes, seen, hidden = by_xla(encode, *(key or ()), with_amax=True)
    scales = tensor_scales(seen, known, element, hidden)
    if before is None:
        return ScaledValues(codes[0], scales.scale, spec, *codes[1:])

    def again(encode: jax.Array) -> list[jax.Array]:
        with jax.named_scope(WITHOUT_HISTORY):
            return _several(by_kernel(encode))[: len(codes)]

    # Nothing waits for the tensor's own amax, but where no step before had one.
    codes = lax.cond(before > 0, lambda _: codes, again, scales.encode)
    return ScaledValues(codes[0], scales.scale, spec, *codes[1:], seen=seen)


def quantize_groups(
    chip: Chip,
    x: jax.Array,
    demand: Demand,
    key: Key | None,
    before: jax.Array | None,
    groups: Groups | None,
) -> ScaledValues:
    """See targets.QuantizeGroups: by a kernel that knows a factor of each row."""
    from srjit.targets.tpu import kernels as tpu_kernels

    spec, shows = demand.spec, demand.shows
    element = get_format(spec.format).element
    is_plain = spec.shared != "tensor" or spec.hadamard or spec.rounding == "none" or shows
    is_plain |= spec.scaling != "dynamic" or before is not None or demand.rng != "hash"
    if is_plain or not tpu_kernels.fits(x.shape, x.dtype, element):
        return emulated(x, spec, key, before=before, rng=demand.rng, shows=shows, groups=groups)
    view = viewed(x, spec, groups)
    scales = float_scales(view.amax(x.astype(jnp.float32)), element)
    encode = jnp.broadcast_to(view.spread(scales.encode), (*x.shape[:-1], 1))
    converts = element.name in chip.converts
    codes = tpu_kernels.quantize(x, element, encode, key, converts=converts)
    return ScaledValues(codes, scales.scale, spec)


def _several(made: jax.Array | tuple[jax.Array, ...]) -> list[jax.Array]:
    return list(made) if isinstance(made, tuple) else [made]


_WORDS = {jnp.dtype(jnp.bfloat16): jnp.int16, jnp.dtype(jnp.float32): jnp.int32}


def _amax_of_memory(x: jax.Array) -> jax.Array:
    """``tensor_amax`` of what is in memory, by XLA."""
    if x.shape[-1] % (_SLICES * _LANES):
        return tensor_amax(x)
    return kernel_call(x, kernel=_amax_of_slices, formula=tensor_amax, platform="tpu", by_xla=True)


def _amax_of_slices(x: jax.Array) -> jax.Array:
    """XLA reads memory faster so; but slices of what is sharded would go from device to device."""
    word = _WORDS[x.dtype]
    parts = [
        lax.bitcast_convert_type(part, word) & jnp.iinfo(word).max
        for part in jnp.split(x, _SLICES, axis=-1)
    ]
    while len(parts) > 1:
        parts = [jnp.maximum(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return lax.bitcast_convert_type(jnp.max(parts[0]), x.dtype).astype(jnp.float32)
