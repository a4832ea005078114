"""Training steps on meshes of GPUs by what their compiler makes of them: bfloat16, srjit, Qwix.

    pip install 'srjit[aot]' qwix
    python benchmarks/gpu_mesh.py [CHIP ...] [--rows "MLP FSDP" ...] [--no-qwix] [--keep FOLDER]

Nothing runs, and the compiler of GPUs estimates no cycles. So all that there is are bytes; every
figure is the other program's over bfloat16's, and in brackets is the goal of one that misses it.

- moved: bytes that all instructions read and write, loops counted: what memory moves where nothing
  stays in caches.
- wire: bytes that a GPU sends, if collectives are made as rings.
- scalars: all-reduces of 4 KiB at most (amaxes, losses) a layer, and bfloat16's.
- memory: the peak, by the compiler.
- compile: processor time of the compiler.
"""

from __future__ import annotations

import functools

import _measuring as measuring
import _mesh_programs as programs
from _mesh_table import Board, Row

OWN = {("b200", "nvfp4"): {}, ("h200", "fp8"): {}}
ROWS = (
    Row("MLP", "FSDP", {**OWN, ("b200", "nvfp4"): {"moved": 1.1, "wire": 0.6}}),
    Row("linear", "DP", OWN),
    Row("MLP", "DP", OWN),
    Row("MLP", "TP", OWN),
    Row("MLP", "TP + SP", OWN),
    Row("MLP", "FSDP x TP 2", OWN),
    Row("4 blocks, nothing kept", "FSDP", OWN),
)
MADE = {name: programs.PROGRAMS[name] for name in ("linear", "MLP")} | {
    "4 blocks, nothing kept": functools.partial(
        programs.blocks, policy="nothing", attend=programs.plain_attention
    )
}
COLUMNS = ("moved", "wire", "scalars", "of bf16", "memory", "compile")
BOARD = Board(__doc__ or "", ROWS, COLUMNS, 4, MADE)


def main() -> None:
    table, given = BOARD.run(quick=programs.Sizes(1024, 256, 1024))
    measuring.write_json(given.json, table)


if __name__ == "__main__":
    main()
