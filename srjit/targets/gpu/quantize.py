"""Quantization on NVIDIA's GPUs: by kernels where products read the codes as they are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from srjit import _compat
from srjit.choices import Rng
from srjit.numerics.encode import encode
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key
from srjit.numerics.rounding import NOISE_BITS
from srjit.products.quantized import ScaledValues, emulated
from srjit.targets.codes import float_code
from srjit.targets.gpu import matrices as gpu_quantize
from srjit.targets.gpu import products as gpu_products
from srjit.targets.gpu.chips import Gpu
from srjit.targets.gpu.matrices import Want
from srjit.targets.gpu.ptx import signed
from srjit.targets.kernel_call import kernel_call
from srjit.targets.target import Demand


def quantize(
    gpu: Gpu, x: jax.Array, demand: Demand, key: Key | None, before: jax.Array | None
) -> ScaledValues:
    """See targets.Quantize: by kernels, codes beside the scales of their blocks if there are any.

    What rounds stochastically by the chip's own instruction has the emulation's probabilities, to
    2^-16, and not its noise.
    """
    rng = demand.rng
    want = want_of(gpu, demand.spec, demand.turned)
    if want is None or x.dtype == jnp.float64:
        return emulated(x, demand.spec, key, before=before, rng=rng)
    if _is_typed(x) or rng != "hash" or before is not None or not gpu_quantize.fits(x, want):
        return _quantize_plainly(want, rng, x, *(key or ()), before=before)
    return _by_kernels((want,), x, key or ())[0]


def _by_kernels(
    wants: tuple[Want, ...], x: jax.Array, words: Sequence[jax.Array]
) -> tuple[ScaledValues, ...]:
    return kernel_call(
        x,
        *words,
        kernel=functools.partial(gpu_quantize.quantize_by_kernels, wants),
        formula=functools.partial(_quantize_all_plainly, wants),
        platform="cuda",
        partitions=True,
    )


def want_of(gpu: Gpu, spec: Quantization, turned: bool = False) -> Want | None:
    """The codes that a product reads as they are, to be made by kernels; None if none does."""
    if spec.rounding == "none" or spec.apart:
        return None
    element = get_format(spec.format).element
    if gpu_products.takes_blocks(gpu, spec):
        carrier = gpu_products.BLOCK_SCALED[spec.format].name
    elif spec.shared == "tensor" and element.name in gpu_products.FP8:
        carrier = element.name
    else:
        return None
    return Want(
        spec=spec, carrier=carrier, by_instruction=gpu.has_stochastic_rounding, turned=turned
    )


def noise_bits(gpu: Gpu, spec: Quantization) -> int:
    """See targets.Target: half a word for ``cvt.rs``, which takes one for four values or two."""
    by_instruction = gpu.has_stochastic_rounding and want_of(gpu, spec) is not None
    return 16 if by_instruction else NOISE_BITS


def remark(gpu: Gpu, spec: Quantization) -> str:
    """See targets.Target."""
    if spec.rounding != "stochastic" or want_of(gpu, spec) is None:
        return ""
    if gpu.has_stochastic_rounding:
        return (
            f"{spec.format} is rounded stochastically by the chip's cvt.rs where kernels run: with "
            "16 bits of noise a value, one word for four, and not with the draws of other targets"
        )
    return f"{gpu.name} has no cvt.rs: {spec.format} is rounded stochastically by the formula"


def quantize_together(
    gpu: Gpu, x: jax.Array, demands: Sequence[Demand], keys: Sequence[Key | None]
) -> tuple[ScaledValues, ...] | None:
    """See targets.QuantizeTogether: reads x once for all amaxes, and once for all codes."""
    wants = [want_of(gpu, demand.spec, demand.turned) for demand in demands]
    fitting = tuple(w for w in wants if w is not None and gpu_quantize.fits(x, w))
    if len(fitting) < len(wants) or demands[0].rng != "hash" or _is_typed(x):
        return None
    return _by_kernels(fitting, x, [word for key in keys for word in key or ()])


def _is_typed(x: jax.Array) -> bool:
    """True if its type says how it is sharded: none says so of what is cut into blocks."""
    return _compat.explicit_sharding(jax.typeof(x)) is not None


def _quantize_all_plainly(
    wants: tuple[Want, ...], x: jax.Array, *words: jax.Array
) -> tuple[ScaledValues, ...]:
    left = iter(words)
    keys = [(next(left), next(left)) if w.spec.rounding == "stochastic" else () for w in wants]
    return tuple(
        _quantize_plainly(want, "hash", x, *key) for want, key in zip(wants, keys, strict=True)
    )


def _quantize_plainly(
    want: Want, rng: Rng, x: jax.Array, *words: jax.Array, before: jax.Array | None = None
) -> ScaledValues:
    """The same in plain operations."""
    spec, key = want.spec, (words[0], words[1]) if words else None
    if not spec.is_blocked:
        made = emulated(x, spec, key, before=before, rng=rng)
        return dataclasses.replace(made, values=made.values.astype(want.carrier))
    q = encode(x, spec, key, rng=rng, subnormal=False)
    codes = _carried(want, q.codes)
    turned = codes.T if want.can_turn(x.shape) else None
    return ScaledValues(codes, q.tensor_scale, spec, turned, q.scale)


def _carried(want: Want, codes: jax.Array) -> jax.Array:
    """Codes on their grid, in the dtype that holds them."""
    fmt = get_format(want.spec.format)
    if want.carrier != fmt.element.name:
        return codes.astype(want.carrier)
    if fmt.storage.bits > 4 or want.by_instruction:
        return fmt.storage.cast(codes)
    # XLA's own cast takes an instruction that such chips lack.
    bits = signed(codes, float_code(codes, fmt.element, None), fmt.element)
    return lax.bitcast_convert_type(bits.astype(jnp.uint4), fmt.storage.dtype)
