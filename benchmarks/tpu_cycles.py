"""Training steps on TPUs by their compiler's estimate: bfloat16 beside srjit's recipes.

    python benchmarks/tpu_cycles.py [CHIP ...] [--programs mlp ...] [--recipes int8 ...]

Nothing runs. The cycles are the compiler's estimates of what XLA itself compiled, added up. Kernels
have none: those of srjit are counted beside them, and benchmarks/tpu_kernels.py says what each
costs; those of the program (fused attention) are the same before and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import _measuring as measuring
import _tpu_programs as programs
from srjit import srjit

CHIPS = ("v5e", "v5p", "v6e", "tpu7x")


def compare(chip: str, name: str, recipe: str) -> dict[str, Any]:
    """What the compiler says of one program, before and after."""
    step, args = programs.PROGRAMS[name]()
    report = srjit(step, recipe=recipe).aot(*args, target=chip)
    before, after = report.before, report.after
    assert before.cycles and after.cycles
    return {
        "bf16": before.cycles,
        "srjit": after.cycles,
        "kernels": len(after.kernels) - len(before.kernels),
        "native": sum(s.verdict == "native" for s in report.sites),
        "sites": len(report.sites),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("chips", nargs="*", default=CHIPS, metavar="CHIP", help=", ".join(CHIPS))
    parser.add_argument("--programs", nargs="+", default=tuple(programs.PROGRAMS))
    parser.add_argument("--recipes", nargs="+", default=("auto",))
    parser.add_argument("--quick", action="store_true", help="the smallest program alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    names = tuple(programs.PROGRAMS)[:1] if given.quick else given.programs
    figures: dict[str, dict[str, Any]] = {}
    print(
        f"{'millions of cycles of XLA operations':<44}{'bf16':>9}{'srjit':>9}   and kernels, native"
    )
    for chip in given.chips:
        for name in names:
            for recipe in given.recipes:
                row = compare(chip, name, recipe)
                label = f"{chip}, {name}, {recipe}"
                figures[label] = row
                print(
                    f"{label:<44}{row['bf16'] / 1e6:9.2f}{row['srjit'] / 1e6:9.2f}"
                    f"   + {row['kernels']} kernels; {row['native']}/{row['sites']} sites native",
                    flush=True,
                )
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
