"""What the TPU compiler estimates of srjit's kernels, on no TPU.

    pip install libtpu
    python benchmarks/tpu_kernels.py [--chips v5e v6e] [--shape 8192 16384] [--quick] [--json FILE]

``profile`` is the compiler's static profile of the kernel's instructions, ``bytes`` the cycles in
which the memory can move what is read and written, at its peak: two models, neither of them a
measurement. A kernel is expected to take about the larger.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import _tpu_profile as profile  # isort: skip  (before JAX)

import jax
import jax.numpy as jnp

import _measuring as measuring
from srjit.numerics.elements import ELEMENTS
from srjit.targets.tpu import kernels as tpu_kernels
from srjit.targets.tpu.chips import CHIPS

ARGUMENTS = {"x": jnp.bfloat16, "codes": jnp.int8}


def kernels(chip: str = "v5e") -> dict[str, tuple[Any, str, float]]:
    """Function, what it takes, and bytes that it moves per element."""
    converts = CHIPS[chip].converts
    table: dict[str, tuple[Any, str, float]] = {
        "amax": (lambda x, encode, a, b: tpu_kernels.amax(x), "x", 2),
        "transpose": (lambda x, encode, a, b: tpu_kernels.transpose(x), "codes", 2),
    }
    for name, dtype in tpu_kernels.CARRIERS.items():
        for rounding in ("nearest", "stochastic"):
            for transposed in (False, True):

                def quantize(
                    x: Any,
                    encode: Any,
                    a: Any,
                    b: Any,
                    element: Any = ELEMENTS[name],
                    noisy: bool = rounding == "stochastic",
                    transposed: bool = transposed,
                ) -> Any:
                    return tpu_kernels.quantize(
                        x,
                        element,
                        encode,
                        (a, b) if noisy else None,
                        transposed=transposed,
                        converts=element.name in converts,
                    )

                label = f"{name} {rounding}{', and transposed' * transposed}"
                table[label] = quantize, "x", 2 + dtype.itemsize * (1 + transposed)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chips", nargs="+", choices=tuple(CHIPS), default=tuple(CHIPS))
    parser.add_argument("--shape", nargs=2, type=int, default=(8192, 16384))
    parser.add_argument("--kernels", nargs="+", choices=tuple(kernels()), default=tuple(kernels()))
    parser.add_argument("--quick", action="store_true", help="a small array")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    shape = (256, 2048) if given.quick else tuple(given.shape)
    figures: dict[str, dict[str, Any]] = {}
    for chip in given.chips:
        each = profile.cycles_per_byte(chip)
        print(f"\n{chip}, {shape}, thousands of cycles")
        print(f"{'':<42}{'profile':>9}{'bytes':>9}{'larger':>9}")
        for label in given.kernels:
            fun, argument, moved = kernels(chip)[label]
            scalars = [jax.ShapeDtypeStruct((), d) for d in (jnp.float32, jnp.uint32, jnp.uint32)]
            array = jax.ShapeDtypeStruct(shape, ARGUMENTS[argument])
            cycles = profile.profile_of(chip, fun, array, *scalars)
            memory = math.prod(shape) * moved * each
            figures[f"{chip} {label}"] = {"profile": cycles, "bytes": memory}
            shown = "none" if cycles is None else f"{cycles / 1e3:.0f}"
            larger = max(cycles or 0, memory)
            print(f"{label:<42}{shown:>9}{memory / 1e3:9.0f}{larger / 1e3:9.0f}", flush=True)
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
