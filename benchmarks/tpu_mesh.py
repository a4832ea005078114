"""Training steps on meshes of TPUs by their compiler's estimates: bfloat16, srjit and Qwix.

    pip install libtpu qwix
    python benchmarks/tpu_mesh.py [CHIP ...] [--rows "MLP FSDP" ...] [--no-qwix] [--keep FOLDER]

Nothing runs. Each program is compiled as it is and rewritten, by one compiler in one process.
The figures up to ``copies`` are bfloat16's estimate over the other's, the rest the other's figure
over bfloat16's; in brackets is the goal of a figure that misses it.

Products stay whole, as in a program that says so to libtpu; by itself it may cut those of FSDP and
sequence parallelism into parts that travel beside each other (``--defaults``).

- compute: XLA's estimated cycles of all instructions and, of each kernel, the largest of its bytes
  at the memory's peak, its products at the unit's and, of srjit's, its schedule (tpu_kernels.py).
- no attention: compute without the program's own kernels; - if it has none.
- apart: compute and then the wire, nothing overlapped. The wire is what a chip sends, in rings, at
  the interconnect's peak.
- copies: compute, and at the memory's peak the copies to other layouts that have no estimate
  (SparseCore makes them, beside the rest); - if there are none.
- wire: bytes that a chip sends.
- scalars: all-reduces of 4 KiB at most (amaxes, losses) a layer, and bfloat16's.
- memory: the peak, by the compiler.
- compile: processor time of the compiler.

The projection is on paper: what a device computes stays, rings become longer, and a scalar's
all-reduce takes 5 us and 1 us for each hop there and back over the torus. Slices of v5e and v6e
have 256 chips at most: 4096 are 16 of them, and what goes from slice to slice is left out on both
sides. Products that a mesh of 256 would compute otherwise are not looked at.
"""

from __future__ import annotations

from typing import Any

import _measuring as measuring
import _mesh_figures as figures
import _mesh_programs as programs
from _mesh_table import Board, Row


def _goal(compute: float, apart: float = 0.0, wire: float = 0.0, **more: float) -> dict[str, float]:
    given = {"compute": compute, "apart": apart, "wire": wire, **more}
    return {name: goal for name, goal in given.items() if goal}


ROWS = (
    Row("linear", "DP", {("v5e", "int8"): _goal(1.45, 1.4, 1.0)}),
    Row("MLP", "DP", {("v5e", "int8"): _goal(1.5, 1.45, 1.0)}),
    Row(
        "MLP",
        "FSDP",
        {("v5e", "int8"): _goal(1.5, 1.5, 0.75), ("tpu7x", "fp8"): _goal(2.1, 0.0, 0.75)},
    ),
    Row("MLP", "TP", {("v5e", "auto"): _goal(1.0, 1.0, 1.0), ("v5e", "int8"): {}}),
    Row("MLP", "TP + SP", {("v5e", "int8"): _goal(1.45, 1.4)}),
    Row(
        "MLP",
        "FSDP x TP 2",
        {("v5e", "int8"): _goal(1.45, 1.4, 0.8), ("v6e", "int8"): _goal(1.15, 1.15, 0.8)},
    ),
    Row(
        "4 blocks, nothing kept",
        "FSDP",
        {
            ("v5e", "int8"): _goal(1.3, 1.3, 0.75, compile=1.35),
            ("v6e", "int8"): _goal(1.15, 1.15, 0.65, compile=1.35),
            ("tpu7x", "fp8"): _goal(1.85, 0.0, 0.64, copies=1.75, scalars=7, compile=1.35),
            ("tpu7x", "fp8-delayed"): _goal(1.95, 0.0, 0.64, scalars=0.5),
            ("tpu7x", "fp8-static"): _goal(1.95, 0.0, 0.64, scalars=0.5),
        },
    ),
    Row("4 blocks, dots kept", "FSDP", {("tpu7x", "fp8"): _goal(1.5)}),
)
COLUMNS = (
    "compute", "no attention", "apart", "copies", "wire", "scalars", "of bf16", "memory", "compile",
)  # fmt: skip
WHOLE = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
BOARD = Board(__doc__ or "", ROWS, COLUMNS, 8, programs.PROGRAMS, WHOLE)
# Sides of the torus, in chips, of 256 and of 4096 devices: a tpu7x has two.
FLAT = {256: (16, 16), 4096: (16, 16)}
TORUS = {"v5e": FLAT, "v6e": FLAT, "tpu7x": {256: (4, 4, 8), 4096: (8, 16, 16)}}


def projected(found: dict[str, Any], chip: str, devices: int) -> float | None:
    """``apart`` on that many devices, all of them along the axis of data."""
    sides = TORUS[chip][devices]
    longer = (1 - 1 / min(devices, _slice(chip))) / (1 - 1 / BOARD.devices)
    scalar = 5e-6 + 1e-6 * sum(sides)  # there and back is half of each side, twice
    seconds = [
        each["compute"] and each["compute"] + each["wire"] * longer + each["scalars"] * scalar
        for each in found["each"]
    ]
    return figures.over(*seconds)


def _slice(chip: str) -> int:
    return 256 if TORUS[chip] is FLAT else 9216


def main() -> None:
    table, given = BOARD.run(quick=programs.Sizes(1024, 256, 1024))
    print("\nprojected on paper, nothing overlapped: bf16 over ... on 8, 256 and 4096 devices")
    for label, found in table.items():
        if BOARD.layouts[found["layout"]].axes.keys() == {"data"}:
            found["projected"] = {n: projected(found, found["chip"], n) for n in (256, 4096)}
            each = (found["apart"], *found["projected"].values())
            print(f"{label:<44}" + "".join(f"{figures.told(n):>12}" for n in each))
    measuring.write_json(given.json, table)


if __name__ == "__main__":
    main()
