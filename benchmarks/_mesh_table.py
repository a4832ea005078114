"""A table of steps on meshes: rows, chips and recipes to choose from, goals beside figures."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import _mesh_figures as figures
import _mesh_programs as programs
from srjit import targets

Goals = Mapping[str, float]
Figures = dict[str, Any]
AT_LEAST = ("compute", "apart", "copies")  # goals of all others are at most
TYPES = {"int8": "int8", "fp8": "float8_e4m3fn"}  # what Qwix calls them
BY_QWIX = ("linear", "MLP")


@dataclasses.dataclass(frozen=True)
class Row:
    """A program in a layout, and the goals of its figures by chip and recipe."""

    program: str
    layout: str
    goals: Mapping[tuple[str, str], Goals] = dataclasses.field(hash=False)

    @property
    def name(self) -> str:
        return f"{self.program} {self.layout}"

    def variants(self, chip: str, with_qwix: bool) -> Iterator[str]:
        """Its recipes on a chip, the chip's own if it says none; and ``qwix``."""
        yield from [r for of, r in self.goals if of == chip] or [targets.get(chip).recipe]
        if with_qwix and self.program in BY_QWIX and targets.get(chip).recipe in TYPES:
            yield "qwix"


@dataclasses.dataclass(frozen=True)
class Board:
    """A benchmark: what it compares, and for how many devices.

    Attributes:
      doc: says what it prints.
      rows: all that there are.
      columns: figures of ``_mesh_figures.ratios`` that it prints.
      devices: of the mesh.
      made: by name, what makes a program of a layout and sizes.
      options: of the compiler.
    """

    doc: str
    rows: Sequence[Row]
    columns: Sequence[str]
    devices: int
    made: Mapping[str, Callable[[programs.Layout, programs.Sizes], programs.Program]]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def figures(
        self, row: Row, chip: str, recipe: str, sizes: programs.Sizes, compilers: figures.Compilers
    ) -> Figures:
        """Those of one recipe, or of ``qwix``, beside bfloat16."""
        target = targets.get(chip)
        layout = self.layouts[row.layout]
        program = self.made[row.program](layout, sizes)

        def lowered() -> Any:
            if recipe != "qwix":
                return figures.by_srjit(program, target, recipe)
            from _qwix_mesh_steps import program as by_qwix  # may not be installed

            dtype = TYPES[target.recipe]
            return figures.as_it_is(by_qwix(row.program, layout, sizes, dtype), target)

        name = f"{chip} {row.name}"
        plain = lambda: figures.as_it_is(program, target)  # noqa: E731
        before = compilers.compiled(f"{name} bf16", target, plain)
        after = compilers.compiled(f"{name} {recipe}", target, lowered)
        return figures.ratios(before, after, target, program.layers)

    @property
    def layouts(self) -> dict[str, programs.Layout]:
        return programs.layouts(self.devices)

    def run(self, *, quick: programs.Sizes) -> tuple[dict[str, Figures], argparse.Namespace]:
        """Prints the table of what the command line chooses, and returns it."""
        given = self._options()
        sizes = quick if given.quick else programs.Sizes()
        with_qwix = not given.no_qwix and importlib.util.find_spec("qwix") is not None
        compilers = figures.Compilers(given.keep, {} if given.defaults else self.options)
        rows = [r for r in self.rows if r.name in (given.rows or [r.name])]
        rows = rows[:1] if given.quick and not given.rows else rows
        table: dict[str, Figures] = {}
        print(f"{f'on {self.devices} devices':<40}" + "".join(f"{k:>14}" for k in self.columns))
        for row in rows:
            for chip in given.chips or dict.fromkeys(of for of, _ in row.goals):
                for recipe in given.recipes or row.variants(chip, with_qwix):
                    label = f"{chip}, {row.name}, {recipe}"
                    found = self.figures(row, chip, recipe, sizes, compilers)
                    table[label] = {"chip": chip, "layout": row.layout, **found}
                    goals = {} if given.quick else row.goals.get((chip, recipe), {})
                    print(f"{label:<40}" + self._cells(found, goals), flush=True)
        return table, given

    def _cells(self, found: Figures, goals: Goals) -> str:
        cells = [figures.told(found[k], goals.get(k), k in AT_LEAST) for k in self.columns]
        return "".join(f"{cell:>14}" for cell in cells)

    def _options(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(description=self.doc.splitlines()[0])
        names = [r.name for r in self.rows]
        parser.add_argument("chips", nargs="*", metavar="CHIP", help="by default each row's own")
        parser.add_argument(
            "--rows", nargs="+", choices=names, metavar="ROW", help=", ".join(names)
        )
        parser.add_argument("--recipes", nargs="+", metavar="RECIPE", help="of srjit, or qwix")
        parser.add_argument("--no-qwix", action="store_true", help="leave Qwix out")
        parser.add_argument("--keep", type=Path, metavar="FOLDER", help=figures.KEEP)
        told = f"the compiler's own, not {dict(self.options)}"
        parser.add_argument("--defaults", action="store_true", help=told)
        parser.add_argument("--quick", action="store_true", help="one small program")
        parser.add_argument(
            "--json", type=Path, metavar="FILE", help="also write the figures there"
        )
        return parser.parse_args()
