"""Kernels for TPUs by two models that are not XLA's estimates: their schedule, and bytes.

To be imported before JAX: it switches the compiler's static profile on, for this process. Only
kernels by themselves survive it, not whole programs.
"""

from __future__ import annotations

import os
import tempfile
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

from srjit import targets  # noqa: E402
from srjit.aot import hlo  # noqa: E402
from srjit.aot.compilers import devices_of, optimized  # noqa: E402
from srjit.targets.tpu.chips import CHIPS  # noqa: E402

SIZE = 4096


def compiled(chip: str, fun: Any, *args: Any) -> hlo.Module:
    """The optimized program of a function for one device of a chip."""
    one = jax.sharding.SingleDeviceSharding(devices_of(targets.get(chip))[0])
    return optimized(
        targets.get(chip), jax.jit(fun, in_shardings=one, out_shardings=one).lower(*args)
    )[0]


def cycles_per_byte(chip: str) -> float:
    """Cycles in which the memory moves a byte at its peak.

    The clock is what makes the operations that a cycle does, by the compiler's estimate, those that
    a second does, by the vendor's.
    """
    square = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.bfloat16)
    cycles = sum(
        found.instruction.cycles or 0
        for found in compiled(chip, jnp.dot, square, square).executed()
    )
    peak = CHIPS[chip]
    return peak.operations / (2 * SIZE**3 / cycles) / peak.bandwidth


def profile_of(chip: str, fun: Any, *args: Any) -> int | None:
    """The estimate of a kernel's schedule; None where there is none."""
    found = [e.instruction.profiled_cycles for e in compiled(chip, fun, *args).executed()]
    return max((n for n in found if n), default=None)
