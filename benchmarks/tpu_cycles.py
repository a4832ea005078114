"""Training steps on TPUs by their compiler's estimates: bfloat16 beside srjit's recipes and Qwix.

    python benchmarks/tpu_cycles.py [CHIP ...] [--programs mlp ...] [--recipes int8 ...] [--no-qwix]

A recipe is a name, ``own`` for the chip's own, whatever it costs (``auto``: where it pays), and
``given scales`` or ``delayed scales`` for the same with scales that are known beforehand, or come
from earlier steps.

Nothing runs. Two models are in this, and they are printed apart:

- XLA: the compiler's estimates of what XLA itself compiled, added up.
- kernels: the sum, over the kernels, of the larger of the compiler's static profile of each and of
  its bytes at the memory's peak (see tpu_kernels.py).

``bf16 / srjit`` is a ratio of sums of both; attention has the same kernels on both sides. ``XLA
only`` is the same program by XLA's operations alone, as it is sharded over several chips, and its
ratio is of XLA's estimates but for attention's kernels. ``!`` is for kernels without a profile: of
them, only bytes are known.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

import _measuring as measuring
import _qwix_tpu_steps as qwix_steps
import _tpu_programs as programs
from _tpu_recipes import recipe_of
from srjit import srjit, targets
from srjit.aot.compiled_program import CompiledProgram, program_of
from srjit.aot.compilers import devices_of, optimized
from srjit.targets.kernel_call import without_kernels

CHIPS = ("v5e", "v5p", "v6e", "tpu7x")
HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Kernels:
    """Cycles of a program's kernels."""

    own: float
    srjit: float
    unknown: bool


def kernels(chip: str, name: str, recipe: str) -> Kernels:
    """Of a program, in a process of its own: the profile does not survive whole programs."""
    command = [sys.executable, str(HERE / "_tpu_kernel_estimates.py"), chip, name, recipe]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    sums = {True: 0.0, False: 0.0}
    found = json.loads(done.stdout.splitlines()[-1])
    for kernel in found:
        larger = max(kernel["profile"] or 0, kernel["bytes"])
        sums[kernel["programs_own"]] += kernel["times"] * larger
    return Kernels(sums[True], sums[False], any(k["profile"] is None for k in found))


def compare(chip: str, name: str, recipe: str, with_qwix: bool = True) -> dict[str, Any]:
    """What the compiler says of one program, before and after, in cycles and bytes."""
    step, args = programs.PROGRAMS[name]()
    chosen = recipe_of(chip, recipe)
    report = srjit(step, recipe=chosen).aot(*args, target=chip)
    with without_kernels():
        plain = srjit(step, recipe=chosen).aot(*args, target=chip).after
    inside = kernels(chip, name, recipe)
    before, after = _cycles(report.before), _cycles(report.after)
    found = {
        "bf16": before + inside.own,
        "srjit, XLA": after,
        "srjit, kernels": inside.srjit,
        "attention's kernels": inside.own,
        "some kernels by bytes alone": inside.unknown,
        "with kernels": (before + inside.own) / (after + inside.srjit + inside.own),
        "XLA only": (before + inside.own) / (_cycles(plain) + inside.own),
        "memory": report.after.memory.peak / report.before.memory.peak,
        "native": sum(s.verdict == "native" for s in report.sites),
        "sites": len(report.sites),
    }
    if with_qwix and name in qwix_steps.PROGRAMS:
        found["Qwix"] = (before + inside.own) / (qwix(chip, name) + inside.own)
    return found


@functools.cache
def qwix(chip: str, name: str) -> int:
    """Cycles of what Qwix makes of a program."""
    dtype = "float8_e4m3fn" if targets.get(chip).recipe == "fp8" else "int8"
    step, args = qwix_steps.PROGRAMS[name](dtype)
    one = jax.sharding.SingleDeviceSharding(devices_of(targets.get(chip))[0])
    lowered = jax.jit(step, in_shardings=one, out_shardings=one).lower(*args)
    return _cycles(program_of(*optimized(targets.get(chip), lowered)))


def _cycles(program: CompiledProgram) -> int:
    assert program.cycles
    return program.cycles


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("chips", nargs="*", default=CHIPS, metavar="CHIP", help=", ".join(CHIPS))
    parser.add_argument("--programs", nargs="+", default=tuple(programs.PROGRAMS))
    parser.add_argument("--recipes", nargs="+", default=("auto", "own", "given scales"))
    parser.add_argument("--no-qwix", action="store_true", help="leave Qwix out")
    parser.add_argument("--quick", action="store_true", help="the smallest program alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    names = tuple(programs.PROGRAMS)[:1] if given.quick else given.programs
    figures: dict[str, dict[str, Any]] = {}
    print("millions of cycles, and bf16 / ...")
    print(
        f"{'':<42}{'bf16':>7}{'XLA':>7}{'kernels':>9}{'with kernels':>14}{'XLA only':>10}"
        f"{'Qwix':>7}{'memory':>8}  native"
    )
    for chip in given.chips:
        for name in names:
            for recipe in given.recipes:
                row = compare(chip, name, recipe, not given.no_qwix)
                figures[f"{chip}, {name}, {recipe}"] = row
                print(_line(f"{chip}, {name}, {recipe}", row), flush=True)
    measuring.write_json(given.json, figures)


def _line(label: str, row: dict[str, Any]) -> str:
    millions = [row[k] / 1e6 for k in ("bf16", "srjit, XLA", "srjit, kernels")]
    qwix = f"{row['Qwix']:.2f}" if "Qwix" in row else "-"
    return (
        f"{label:<42}{millions[0]:7.2f}{millions[1]:7.2f}{millions[2]:9.2f}"
        f"{row['with kernels']:13.3f}{'!' if row['some kernels by bytes alone'] else ' '}"
        f"{row['XLA only']:10.3f}{qwix:>7}{row['memory']:8.3f}  {row['native']}/{row['sites']}"
    )


if __name__ == "__main__":
    main()
