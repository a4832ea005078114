"""Optimized HLO is read as compilers print it: modules that they made are in texts/."""

from __future__ import annotations

from pathlib import Path

import pytest

from srjit.aot import hlo

TEXTS = {
    path.stem: path.read_text("utf-8") for path in (Path(__file__).parent / "texts").glob("*.hlo")
}


@pytest.mark.parametrize("name", TEXTS)
def test_every_line_of_a_module_is_read(name: str):
    module = hlo.read(TEXTS[name])
    lines = [line for line in TEXTS[name].splitlines() if line.startswith("  ")]
    assert sum(len(c.instructions) for c in module.computations.values()) == len(lines)
    assert all(i.shapes or i.opcode == "tuple" for c in module.computations.values() for i in c)
    for computation in module.computations.values():
        assert computation.root.is_root
        for instruction in computation:
            assert set(instruction.operands) <= set(computation.instructions)
            assert set(instruction.calls) <= set(module.computations)


def test_a_fusion_tells_its_cost_and_what_it_multiplies():
    module = hlo.read(TEXTS["v5e_loop"])
    found = [
        (e, dot)
        for e in module.executed()
        for where, inner in module.inside(e.instruction)
        if inner.opcode == "convolution"
        for dot in [[(o.shapes[0].dtype, o.shapes[0].dims) for o in where.operands(inner)]]
    ]
    ((executed, operands),) = found
    fusion = executed.instruction
    assert operands == [("s8", (128, 256)), ("s8", (256, 256))]
    assert fusion.opcode == "fusion" and fusion.attributes["kind"] == "kOutput"
    assert fusion.cycles is not None and fusion.cycles > 1000
    assert fusion.op_name.endswith("srjit.site=3/dot_general")
    assert executed.times == 4
    assert "T(32,128)" in module.entry.instructions["x.1"].shapes[0].layout


@pytest.mark.parametrize("name", ["v5e_loop", "cpu_loop"])
def test_a_loop_that_counts_has_a_trip_count(name: str):
    """The TPU's compiler does not write it down, the CPU's does."""
    module = hlo.read(TEXTS[name])
    (loop,) = [e for e in module.executed() if e.instruction.opcode == "while"]
    assert module.trips(loop.instruction, loop.computation) == 4


def test_a_loop_that_waits_for_data_has_no_trip_count():
    module = hlo.read(TEXTS["v5e_while"])
    (loop,) = [e for e in module.executed() if e.instruction.opcode == "while"]
    assert module.trips(loop.instruction, loop.computation) is None
    inside = [e for e in module.executed() if e.computation is not module.entry]
    assert inside and all(e.times == 1 for e in inside)


@pytest.mark.parametrize(
    ("condition", "trips"), [("constant(5)", 5), ("constant(0)", 0), ("parameter(9)", None)]
)
def test_trip_counts_are_the_conditions(condition: str, trips: int | None):
    text = TEXTS["v5e_loop"]
    assert "s32[]{:T(128)} constant(4)" in text
    module = hlo.read(text.replace("s32[]{:T(128)} constant(4)", f"s32[]{{:T(128)}} {condition}"))
    (loop,) = [e for e in module.executed() if e.instruction.opcode == "while"]
    assert module.trips(loop.instruction, loop.computation) == trips


def test_a_kernel_has_the_estimate_of_its_own_schedule():
    module = hlo.read(TEXTS["v5e_kernel"])
    kernel = module.entry.root
    assert (kernel.opcode, kernel.target) == ("custom-call", "tpu_custom_call")
    assert kernel.cycles is None and kernel.profiled_cycles == 2719
    spoilt = hlo.read(TEXTS["v5e_kernel"].replace('"2719"', f'"{2**63 - 1}"'))
    assert spoilt.entry.root.profiled_cycles is None
    assert kernel.op_name == "jit(kernel)/double/pallas_call"


def test_collectives_stand_in_the_program():
    module = hlo.read(TEXTS["v5e_mesh"])
    opcodes = [e.instruction.opcode for e in module.executed()]
    assert opcodes.count("all-reduce") == 1


def test_strings_hold_what_they_like():
    text = r"""HloModule m

ENTRY %main (p: (f32[2,<=3], (s8[], f32[]))) -> f32[] {
  %p = (f32[2,<=3]{1,0}, (s8[], f32[])) parameter(0), metadata={op_name="a, b=\"{\" (%c"}
  %k = f32[] constant({ { 1, 2 }, { %not } })
  ROOT %r.1 = f32[] call(%p, /*index=1*/%k), x="a\"}, calls=%x", backend_config="{", calls=%p
}
"""
    module = hlo.read(text)
    p, k, r = module.entry
    assert [(s.dtype, s.dims) for s in p.shapes] == [("f32", (2, 3)), ("s8", ()), ("f32", ())]
    assert p.op_name == 'a, b="{" (%c' and k.operands == () and r.operands == ("p", "k")
    assert r.calls == ("p",) and r.config == {} and r.cycles is None


@pytest.mark.parametrize("text", ["", "HloModule m\n", "module @jit_f {\n  func.func\n}"])
def test_what_is_no_module_is_an_error(text: str):
    with pytest.raises(ValueError, match="not a module of HLO"):
        hlo.read(text)


def test_a_line_that_cannot_be_read_is_shown():
    with pytest.raises(ValueError, match="what is this"):
        hlo.read("HloModule m\n\nENTRY %main () -> f32[] {\n  what is this\n}\n")
