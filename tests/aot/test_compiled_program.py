"""What stored programs of compilers show is read from them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from srjit.aot import hlo
from srjit.aot.compiled_program import program_of

# ----------------------------------------------------------------- what stored programs show

ANALYSIS = SimpleNamespace(
    argument_size_in_bytes=1,
    output_size_in_bytes=2,
    alias_size_in_bytes=3,
    temp_size_in_bytes=4,
    peak_memory_in_bytes=5,
)


def stored(name: str) -> Any:
    text = (Path(__file__).parent / "texts" / f"{name}.hlo").read_text(encoding="utf-8")
    return program_of(hlo.read(text), ANALYSIS)


def test_sites_are_read_from_names():
    program = stored("v5e_loop")
    (site,) = program.sites.values()
    assert list(program.sites) == [3]
    assert str(site.products[0]) == "s8 x s8" and site.products[0].order == "NN"
    assert site.cycles % 4 == 0 and 0 < site.cycles < program.cycles


def test_kernels_are_apart_from_cycles():
    program = stored("v5e_kernel")
    (kernel,) = program.kernels
    assert (kernel.site, kernel.times, kernel.cycles) == (None, 1, 2719)
    assert program.cycles is None  # nothing but the kernel, whose cycles are its own


def test_collectives_are_counted_in_bytes():
    program = stored("v5e_mesh")
    (kind,) = program.collectives
    assert kind == "all-reduce"
    assert (program.collectives[kind].count, program.collectives[kind].size) == (1, 2 * 256 * 256)


def test_a_program_without_estimates_has_none():
    program = stored("cpu_loop")
    assert program.cycles is None and program.memory.peak == 5
    assert [str(p) for p in program.sites[3].products] in (["s8 x s8"], ["s32 x s32"])
