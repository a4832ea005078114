"""NVIDIA's GPUs as targets: what quantizes there, beside what multiplies."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization, ScaledValues, cast, emulated, encode
from srjit.numerics.random_bits import Key, Rng
from srjit.targets import gpu_products
from srjit.targets.base import Target
from srjit.targets.gpu_chips import GPUS, Gpu


def quantize(
    gpu: Gpu,
    x: jax.Array,
    spec: Quantization,
    key: Key | None,
    before: jax.Array | None,
    rng: Rng,
    in_memory: bool,
    turned: bool,
) -> ScaledValues:
    """See targets.Quantize: codes beside the scales of their blocks, where those are multiplied."""
    if (
        spec.rounding == "none"
        or x.dtype == jnp.float64
        or not gpu_products.takes_blocks(gpu, spec)
    ):
        return emulated(x, spec, key, before=before, rng=rng)
    q = encode(x, spec, key, rng=rng, subnormal=False)
    codes = cast(q.codes, get_format(spec.format).element)
    codes = codes.astype(gpu_products.BLOCK_SCALED[spec.format])
    return ScaledValues(codes, q.tensor_scale, spec, blocks=q.scale)


def target_of(name: str, recipe: str) -> Target:
    """A GPU of the table as a target; its name is also part of what its driver calls it."""
    gpu = GPUS[name]
    return Target(
        name=name,
        kinds=(name,),
        recipe=recipe,
        native=functools.partial(gpu_products.is_native, gpu),
        multiply=gpu_products.multiply,
        quantize=functools.partial(quantize, gpu),
        compiler=gpu.compiler,
        peak=gpu.rate,
    )
