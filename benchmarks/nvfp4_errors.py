"""Errors of NVFP4 quantizations of N(0, 1), beside the figures that are known for them.

The relative squared error of one draw is what arXiv 2601.22813 (Quartet II) tabulates. The bits,
-1/2 log2 of the relative squared error of an average of B draws, tell bias: an unbiased quantizer
gains one for every factor 4, without end. Known for those are figures of a NumPy program that is
not srjit. The headroom of both is a factor 17/16; srjit rounds scales up instead, which errs less.
MS-EDEN is averaged over its rotations, too, which are undone.

    python benchmarks/nvfp4_errors.py
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from _measuring import write_json
from srjit import Quantization, dequantize
from srjit.numerics import hadamard, random_bits, scaling
from srjit.numerics.elements import ELEMENTS
from srjit.numerics.encode import encode
from srjit.numerics.rounding import round_to_grid

SHAPE = (256, 256)
DRAWS = (1, 64, 1024)
# What the codes of a tensor of SHAPE say that it is, of the tensor and a step.
Estimate = Callable[[jax.Array, jax.Array | int], jax.Array]


def quantized(x: jax.Array, step: jax.Array | int, **options: object) -> jax.Array:
    """By srjit's quantization with these options."""
    spec = Quantization(format="nvfp4", **options)  # type: ignore[arg-type]
    noise, signs = (random_bits.mix(random_bits.as_key(step), n) for n in (0, 1))
    if spec.draws_signs:
        x = hadamard.flipped(x, -1, signs)
    q = encode(x, spec, noise if spec.rounding == "stochastic" else None)
    found = dequantize(q)
    if spec.hadamard:
        back = hadamard.matrix(spec.rotation).T
        found = (found.reshape(-1, spec.rotation) @ back).reshape(x.shape)
    return hadamard.flipped(found, -1, signs) if spec.draws_signs else found


def with_headroom(x: jax.Array, step: jax.Array | int) -> jax.Array:
    """Stochastically, the largest element of a block at 6 * 16/17, so that none is above 6."""
    blocks, largest = x.reshape(-1, 16), 6 * 16 / 17
    amax = scaling.amax(blocks, (1,), keepdims=True)
    scales = scaling.nvfp4_scales(
        amax, scaling.amax(amax), "standard", False, round(448 * largest), largest
    )
    noise = random_bits.random_bits(random_bits.as_key(step), blocks)
    codes = round_to_grid(blocks * scales.encode, ELEMENTS["float4_e2m1fn"], noise)
    return (codes * scales.scale * scales.tensor_scale).reshape(x.shape)


_SR = functools.partial(quantized, rounding="stochastic")
_UP = functools.partial(_SR, scale_rounding="up")
_EDEN = functools.partial(_SR, scale_rounding="eden", hadamard=True)

# Relative squared errors, in thousandths; None where nothing is known.
ERRORS: dict[str, tuple[Estimate, float | None]] = {
    "nearest": (quantized, 9.0),
    "four over six": (functools.partial(quantized, scale_rounding="four_over_six"), 7.6),
    "SR with headroom 17/16": (with_headroom, 23.5),
    "SR, scales rounded up": (_UP, None),
    "MS-EDEN": (_EDEN, 9.8),
}
# Bits of averages of DRAWS draws.
BITS: dict[str, tuple[Estimate, tuple[float | None, ...]]] = {
    "SR (nvfp4)": (_SR, (2.86, 5.66, 6.53)),
    "SR with headroom 17/16": (with_headroom, (2.70, 5.71, 7.71)),
    "SR, scales rounded up (nvfp4-unbiased)": (_UP, (None,) * 3),
    "MS-EDEN (nvfp4-eden)": (_EDEN, (None,) * 3),
}


def relative_error(estimate: Estimate, tensors: int) -> tuple[float, float]:
    """The mean over tensors of the relative squared error of one draw; and its standard error."""

    @jax.jit
    def of_one(x: jax.Array, step: int) -> jax.Array:
        return jnp.sum((estimate(x, step) - x) ** 2) / jnp.sum(x**2)

    errors = [float(of_one(_normal(seed), seed)) for seed in range(tensors)]
    return float(np.mean(errors)), float(np.std(errors, ddof=1) / tensors**0.5)


def bits(estimate: Estimate, draws: tuple[int, ...]) -> list[float]:
    """-1/2 log2 of the relative squared error of averages of so many draws of one tensor."""
    x = _normal(0)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def more(first: int, last: int, total: jax.Array) -> jax.Array:
        add = lambda step, total: total + estimate(x, step)  # noqa: E731
        return jax.lax.fori_loop(first, last, add, total)

    total, found = jnp.zeros_like(x), list[float]()
    for first, last in zip((0, *draws), draws, strict=False):
        total = more(first, last, total)
        error = np.sum((np.asarray(total, float) / last - x) ** 2) / np.sum(
            np.square(x, dtype=float)
        )
        found.append(float(-0.5 * np.log2(error)))
    return found


def _normal(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(SHAPE), jnp.float32)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few tensors and draws")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    args = parser.parse_args()
    tensors, draws = (16, DRAWS[:2]) if args.quick else (64, DRAWS)

    print(f"{'relative squared error, in thousandths':<40}{'known':>8}{'seen':>8}  +-")
    errors: dict[str, dict[str, float | None]] = {}
    for name, (estimate, known) in ERRORS.items():
        seen, deviation = (1e3 * e for e in relative_error(estimate, tensors))
        errors[name] = {"known": known, "seen": seen, "deviation": deviation}
        print(f"{name:<40}{known or '-':>8}{seen:>8.2f}  {deviation:.3f}", flush=True)

    print(
        f"\n{'bits of an average, known / seen':<40}" + "".join(f"{f'B = {n}':>14}" for n in draws)
    )
    averages: dict[str, list[dict[str, float | None]]] = {}
    for name, (estimate, known) in BITS.items():
        pairs = zip(known, bits(estimate, draws), strict=False)
        averages[name] = [{"known": k, "seen": seen} for k, seen in pairs]
        cells = [f"{k or '-':>5} / {s:.2f}" for k, s in (row.values() for row in averages[name])]
        print(f"{name:<40}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
    write_json(args.json, {"errors": errors, "bits": averages})


if __name__ == "__main__":
    main()
