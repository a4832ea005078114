"""What stored programs of compilers show is read from them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from srjit.aot import hlo
from srjit.aot.compiled_program import Collective, program_of
from srjit.aot.kernel_operations import entering, multiplied
from srjit.aot.report import CompiledReport
from srjit.aot.step_time import Peaks

# ----------------------------------------------------------------- what stored programs show

ANALYSIS = SimpleNamespace(
    argument_size_in_bytes=1,
    output_size_in_bytes=2,
    alias_size_in_bytes=3,
    temp_size_in_bytes=4,
    peak_memory_in_bytes=5,
)


def text_of(name: str) -> str:
    return (Path(__file__).parent / "texts" / f"{name}.hlo").read_text(encoding="utf-8")


def stored(name: str) -> Any:
    return program_of(hlo.read(text_of(name)), ANALYSIS)


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


def test_a_kernel_tells_what_it_multiplies_where_its_mask_lets_it():
    (kernel,) = stored("v5e_causal").kernels
    assert kernel.operations == 6 * 2 * (2 * 128**3)  # of 9 steps, each twice
    assert stored("v5e_kernel").kernels[0].operations is None  # its text has no program
    assert multiplied("") is None and multiplied("bm9uZQ==") is None  # no kernel


def test_a_kernel_of_a_site_tells_what_enters_the_unit():
    text = text_of("v5e_causal")
    body = next(b for e in hlo.read(text).executed() if (b := e.instruction.kernel_body))
    assert entering(body) == (("bf16", "bf16"),) and entering("") == ()
    program = program_of(
        hlo.read(re.sub(r'op_name="[^"]*', 'op_name="srjit.site=7', text)), ANALYSIS
    )
    assert str(program.sites[7].products[0]) == "kernel bf16 x bf16"


def test_a_kernel_on_shards_has_the_name_of_what_it_does():
    text = text_of("v5e_kernel").replace("%double.1 =", "%shard_map.7 =")
    for scope, name in (
        ("jit(srjit_quantize_int8_nearest)/jit(srjit_formula)/shard_map", "int8_nearest"),
        ("srjit_wgrad/jit(srjit_formula)/shard_map", "srjit_wgrad"),
        ("shard_map", "shard_map.7"),
    ):
        named = text.replace("jit(kernel)/double/pallas_call", f"jit(f)/{scope}/pallas_call")
        (kernel,) = program_of(hlo.read(named), ANALYSIS).kernels
        assert kernel.name.endswith(name)


def test_a_kernel_takes_the_largest_of_its_models():
    program = stored("v5e_causal")
    (kernel,) = program.kernels
    for operations, each, cycles in (
        (1e3, 0.0, round(kernel.operations / 1e3)),
        (1e3, 1.0, kernel.moved),
        (None, 0.5, round(kernel.moved / 2)),
        (1e3, None, None),
    ):
        assert Peaks(operations=operations, cycles_per_byte=each).kernel_cycles(program) == cycles
    assert Peaks(cycles_per_byte=0.0).kernel_cycles(stored("v5e_kernel")) == 2719


RELAYOUT = """HloModule m

%beside (x: bf16[8,4]) -> bf16[8,4] {
  %x = bf16[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %y = bf16[8,4]{LAYOUT} custom-call(%x), custom_call_target="format"
}

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %x = bf16[8,4]{1,0} parameter(0)
  %started = ((bf16[8,4]), bf16[8,4]) async-start(%x), calls=%beside
  ROOT %done = bf16[8,4]{0,1} async-done(%started)
}
"""


@pytest.mark.parametrize(
    ("layout", "moved"), [("0,1:T(8,128)", 128), ("1,0:T(4,128)", 128), ("1,0:T(8,128)S(1)", 0)]
)
def test_relayouts_that_nothing_estimates_are_counted_by_their_bytes(layout: str, moved: int):
    program = program_of(hlo.read(RELAYOUT.replace("LAYOUT", layout)), ANALYSIS)
    assert (program.cycles, program.relayouts) == (None, moved)
    step = Peaks(clock=10.0, cycles_per_byte=0.5).step_time(program)
    assert (step.compute, step.relayouts) == (None, moved / 20)
    program = dataclasses.replace(program, cycles=1000)
    told = str(report_of(program, peaks=Peaks(clock=1.0, cycles_per_byte=5.0)))
    rows = ("beside, by their bytes 640 640", "those added, too 1.64k 1.64k 1.000x")
    assert [row in " ".join(told.split()) for row in rows] == [moved > 0] * 2


def test_collectives_are_counted_in_bytes():
    program = stored("v5e_mesh")
    (kind,) = program.collectives
    assert kind == "all-reduce"
    assert (program.collectives[kind].count, program.collectives[kind].size) == (1, 2 * 256 * 256)


def test_an_asynchronous_collective_is_counted_once_and_a_fused_reduce_scatter_is_one():
    """Each gathers or cuts a matrix of 256 x 256 among four; the second gathering is beside."""
    matrix = 2 * 256 * 256
    sent = matrix * 3 // 4
    program = stored("v5e_asynchronous")
    assert program.collectives == {
        "all-gather": Collective(
            count=2, size=2 * matrix, sent=2 * sent, beside=sent, sent_as={"bf16": 2 * sent}
        ),
        "reduce-scatter": Collective(count=1, size=matrix // 4, sent=sent, sent_as={"bf16": sent}),
    }
    assert program.added_as == {"bf16": sent}


def test_collectives_of_one_channel_are_two():
    """The compiler combines some under a channel that another has."""
    text = text_of("v5e_mesh")
    (line,) = (line for line in text.splitlines() if " = " in line and "all-reduce(" in line)
    again = line.replace("%all-reduce =", "%all-reduce.2 =")
    program = program_of(hlo.read(text.replace(line, f"{line}\n{again}")), ANALYSIS)
    assert program.collectives["all-reduce"].count == 2


def test_a_collective_of_several_arrays_sends_each_in_its_type_and_small_ones_are_apart():
    text = """HloModule m, num_partitions=4

ENTRY %main (x: f32[2048], y: s8[4096], z: f32[]) -> f32[] {
  %x = f32[2048] parameter(0)
  %y = s8[4096] parameter(1)
  %z = f32[] parameter(2)
  %both = (f32[2048], s8[4096]) all-reduce(%x, %y), channel_id=1
  ROOT %one = f32[] all-reduce(%z), channel_id=2
}
"""
    (found,) = program_of(hlo.read(text), ANALYSIS).collectives.values()
    assert (found.count, found.small) == (2, 1)
    assert found.sent_as == {"f32": 2 * 8192 * 3 // 4, "s8": 2 * 4096 * 3 // 4}
    assert found.sent == sum(found.sent_as.values()) + 6


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1},{2,3}}", 2),
        ("[2,4]<=[8]", 4),
        ("{}", 8),
        ("mesh['a'=4,'b'=2] {'a'}", 4),
        ("mesh['a'=4,'b'=2] {'b','a'}", 8),
        ("mesh['a'=4,'b'=2] {'a':(1)2,'b'}", 4),
    ],
)
@pytest.mark.parametrize(
    ("opcode", "sent"),
    [
        ("all-gather", lambda n: 64 * (n - 1) // n),
        ("all-reduce", lambda n: 2 * 64 * (n - 1) // n),
        ("reduce-scatter", lambda n: 64 * (n - 1)),
        ("all-to-all", lambda n: 64 * (n - 1) // n),
    ],
)
def test_what_a_device_sends_depends_on_how_many_take_part(
    groups: str, size: int, opcode: str, sent: Callable[[int], int]
):
    text = f"""HloModule m, num_partitions=8

ENTRY %main (x: f32[16]) -> f32[16] {{
  %x = f32[16] parameter(0)
  ROOT %y = f32[16] {opcode}(%x), channel_id=1, replica_groups={groups}
}}
"""
    (found,) = program_of(hlo.read(text), ANALYSIS).collectives.values()
    assert (found.sent, found.beside) == (sent(size), 0)


def report_of(program: Any, **about: Any) -> CompiledReport:
    names = {"recipe": "int8", "target": "v5e", "mode": "train"}
    return CompiledReport(sites=(), before=program, after=program, **names, **about)


def test_a_step_is_compute_and_wire_and_what_of_them_overlaps():
    program = stored("v5e_asynchronous")
    report = report_of(program, devices=4, peaks=Peaks(clock=1e9, interconnect=2e9))
    found, sent = report.step_time(program), 256 * 256 * 3 / 2
    assert (found.compute, found.wire) == (program.cycles / 1e9, 3 * sent / 2e9)
    assert found.overlap == min(found.compute, sent / 2e9)
    assert found.step == found.compute + found.wire - found.overlap < found.apart
    text = str(report)
    for row in ("compute at 1 GHz", "on the wire at 2 GB/s", "nothing overlapped", "that overlap"):
        assert row in text
    unknown = report_of(program, devices=4, peaks=Peaks(interconnect=2e9))  # as of GPUs
    assert unknown.step_time(program).step is None and str(unknown).count("no usable estimate") > 1


def test_a_program_that_got_worse_is_warned_of():
    program = stored("v5e_asynchronous")
    peaks = Peaks(clock=1e9, interconnect=1e9)
    report = report_of(program, devices=4, peaks=peaks)
    assert not report.totals.warnings()
    (gathered, cut) = program.collectives.values()
    sums = dataclasses.replace(cut, sent=2 * cut.sent, sent_as={"s32": 2 * cut.sent})
    worse = dataclasses.replace(
        program,
        cycles=2 * program.cycles,
        memory=dataclasses.replace(program.memory, peak=2**20),
        collectives={"all-gather": gathered, "all-reduce": sums},
    )
    report = dataclasses.replace(report, after=worse)
    slower, wire, memory = report.totals.warnings()
    assert "slower" in slower and "on the wire" in wire and "1.000 MiB instead of" in memory
    text = " ".join(str(report).split())
    assert text.count("warning: ") == 3
    assert "added by devices as 0.094 MiB bf16 0.188 MiB s32" in text
    assert "by all-reduce 0.000 MiB 0.188 MiB" in text
    assert not dataclasses.replace(report, before=worse, after=program).totals.warnings()


def test_an_estimate_that_is_none_is_in_no_sum():
    text = text_of("v5e_loop")
    program = program_of(hlo.read(text), ANALYSIS)
    (site,) = program.sites.values()
    (cycles,) = set(re.findall(r'"estimated_cycles":"(\d+)"', text)) & {str(site.cycles // 4)}
    spoilt = text.replace(f'cycles":"{cycles}"', f'cycles":"{2**63 - 1}"')
    program = program_of(hlo.read(spoilt), ANALYSIS)
    (site,) = program.sites.values()
    assert site.cycles is None and program.unusable == 1 and program.cycles < 2**40
    report = report_of(program, devices=4, peaks=Peaks(clock=1e9, interconnect=1e9))
    assert report.speedup() is None and "no usable estimate" in str(report)
    assert "excluded" in str(report) and str(2**63)[:4] not in str(report)


def test_a_program_without_estimates_has_none():
    program = stored("cpu_loop")
    assert program.cycles is None and program.memory.peak == 5
    assert [str(p) for p in program.sites[3].products] in (["s8 x s8"], ["s32 x s32"])
