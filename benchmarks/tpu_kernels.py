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
import os
import tempfile
from pathlib import Path
from typing import Any

_PROFILE = tempfile.TemporaryDirectory()
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",  # what the profile cannot digest is logged by the gigabyte
    "LIBTPU_INIT_ARGS": f"--xla_jf_dump_static_llo_profile_to={_PROFILE.name}",
}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

import _measuring as measuring  # noqa: E402
from srjit import targets  # noqa: E402
from srjit.aot import hlo  # noqa: E402
from srjit.aot.compilers import devices_of, optimized  # noqa: E402
from srjit.numerics.formats import ELEMENTS  # noqa: E402
from srjit.targets import tpu_kernels  # noqa: E402

# Of a chip, as its vendor publishes them: bytes per second of its memory, and operations per second
# in bfloat16. With the operations per cycle that the compiler estimates, these give its clock.
CHIPS = {
    "v5e": (819e9, 197e12),
    "v5p": (2765e9, 459e12),
    "v6e": (1640e9, 918e12),
    "tpu7x": (7370e9, 2307e12),  # of two devices: both figures are twice a device's
}
SIZE = 4096
ARGUMENTS = {"x": jnp.bfloat16, "codes": jnp.int8}


def kernels() -> dict[str, tuple[Any, str, float]]:
    """Function, what it takes, and bytes that it moves per element."""
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
                    key = (a, b) if noisy else None
                    return tpu_kernels.quantize(x, element, encode, key, transposed=transposed)

                label = f"{name} {rounding}{', and transposed' * transposed}"
                table[label] = quantize, "x", 2 + dtype.itemsize * (1 + transposed)
    return table


def cycles_per_byte(chip: str) -> float:
    """Cycles in which the memory moves a byte at its peak."""
    square = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.bfloat16)
    cycles = sum(
        found.instruction.cycles or 0
        for found in compiled(chip, jnp.dot, square, square).executed()
    )
    bandwidth, operations = CHIPS[chip]
    return operations / (2 * SIZE**3 / cycles) / bandwidth


def compiled(chip: str, fun: Any, *args: Any) -> hlo.Module:
    """The optimized program of a function for one device of a chip."""
    one = jax.sharding.SingleDeviceSharding(devices_of(targets.get(chip))[0])
    return optimized(jax.jit(fun, in_shardings=one, out_shardings=one).lower(*args))[0]


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
        each = cycles_per_byte(chip)
        print(f"\n{chip}, {shape}, thousands of cycles")
        print(f"{'':<42}{'profile':>9}{'bytes':>9}{'larger':>9}")
        for label in given.kernels:
            fun, argument, moved = kernels()[label]
            scalars = [jax.ShapeDtypeStruct((), d) for d in (jnp.float32, jnp.uint32, jnp.uint32)]
            array = jax.ShapeDtypeStruct(shape, ARGUMENTS[argument])
            executed = compiled(chip, fun, array, *scalars).executed()
            found = [e.instruction.profiled_cycles for e in executed]
            profile = max((n for n in found if n), default=None)
            memory = math.prod(shape) * moved * each
            figures[f"{chip} {label}"] = {"profile": profile, "bytes": memory}
            shown = "none" if profile is None else f"{profile / 1e3:.0f}"
            larger = max(profile or 0, memory)
            print(f"{label:<42}{shown:>9}{memory / 1e3:9.0f}{larger / 1e3:9.0f}", flush=True)
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
