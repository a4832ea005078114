"""What a compiler makes of a step on a mesh: compiled once, read as often as wanted."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

import _mesh_programs as programs
from srjit import recipes, srjit
from srjit.aot import Placement, hlo
from srjit.aot.compiled_program import CompiledProgram, program_of
from srjit.aot.compilers import compiled
from srjit.aot.step_time import Peaks, StepTime
from srjit.program.site_names import naming_sites
from srjit.targets import Target
from srjit.targets.target import WITHOUT_HISTORY
from srjit.targets.tpu.chips import CHIPS, Chip

KEEP = "keep what compilers make there, and read it from there instead, whatever srjit has become"
MEMORY = ("argument_size", "output_size", "alias_size", "temp_size", "peak_memory")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program, and the processor seconds that its compiler took.

    Attributes:
      scheduled: cycles that srjit's kernels take by tpu_kernels.py's figures beyond those that they
        take at the peaks: where their schedule, not the memory, is what they wait for.
      own: cycles of the program's own kernels (attention) at the peaks.
    """

    program: CompiledProgram
    seconds: float
    scheduled: float = 0.0
    own: float = 0.0


def as_it_is(program: programs.Program, target: Target) -> Any:
    place, args, options = _placed(program, target)
    with jax.set_mesh(place.mesh):  # Qwix folds numbers into keys, which takes the mesh itself
        return jax.jit(program.step, **options).lower(*args)


def by_srjit(program: programs.Program, target: Target, recipe: Any) -> Any:
    place, args, options = _placed(program, target)
    chosen = recipe if recipe == "auto" else recipes.get(recipe)
    state: Any = {}
    with place.entered():
        fun = srjit(program.step, recipe=chosen, target=target, **options)
        if chosen != "auto" and chosen.has_delayed_scales:
            shapes = jax.eval_shape(fun.init_state, *args)
            state = {"sr_state": place.arguments(shapes)}
            both = (options["out_shardings"], jax.tree.map(lambda x: x.sharding, state["sr_state"]))
            fun = fun.copy(out_shardings=both)
        key = place.arguments(jax.ShapeDtypeStruct((), jnp.uint32))
        with naming_sites():
            return fun.lower(*args, sr_key=key, **state)


def _placed(program: programs.Program, target: Target) -> tuple[Placement, Any, dict[str, Any]]:
    place = Placement.of(target, program.axes)
    given = {"out_shardings": program.out_specs, "donate_argnums": 0}
    return place, place.arguments(program.args, program.specs), place.options(given)


class Compilers:
    """Compiles, and keeps what came out in a folder, if there is one: it is read from there then.

    A folder is of one version of srjit and of its compilers, and of the same options: nothing looks
    whether it still is.
    """

    def __init__(self, folder: Path | None, options: Mapping[str, Any]) -> None:
        self._folder = folder
        self._options = options
        self._warm: set[str] = set()

    def compiled(self, name: str, target: Target, lower: Callable[[], Any]) -> Compiled:
        """The program that ``lower()`` lowers, compiled; ``name`` is the file's."""
        path = self._folder and self._folder / (re.sub(r"[^\w.]+", "_", name) + ".json.gz")
        kept = _read(path) if path and path.exists() else None
        if kept is None:
            self._warm_up(target)
            lowered = lower()
            start = time.process_time()
            text, assembly, memory = compiled(self._with_options(target), lowered)
            kept = {"seconds": time.process_time() - start, "text": text, "assembly": assembly}
            kept["memory"] = {f"{of}_in_bytes": getattr(memory, f"{of}_in_bytes") for of in MEMORY}
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(gzip.compress(json.dumps(kept).encode()))
        module = dataclasses.replace(hlo.read(kept["text"]), assembly=kept["assembly"])
        program = program_of(module, SimpleNamespace(**kept["memory"]))
        return Compiled(program, kept["seconds"], *_kernels(module, program, target))

    def _warm_up(self, target: Target) -> None:
        """Has the compiler loaded, and known how its programs are read: neither is a program's."""
        if target.name not in self._warm:
            self._warm.add(target.name)
            tiny = programs.Sizes(tokens=128, width=128, hidden=128)
            first = programs.linear(programs.layouts(4)["DP"], tiny)
            compiled(self._with_options(target), as_it_is(first, target))

    def _with_options(self, target: Target) -> Target:
        assert target.compiler
        options = {**target.compiler.options, **self._options}
        compiler = dataclasses.replace(target.compiler, options=options)
        return dataclasses.replace(target, compiler=compiler)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(gzip.decompress(path.read_bytes()))


def _kernels(module: hlo.Module, program: CompiledProgram, target: Target) -> tuple[float, float]:
    """``scheduled`` and ``own`` of Compiled."""
    chip, peaks = CHIPS.get(target.name), Peaks.of(target)
    if chip is None:
        return 0.0, 0.0
    calls = [
        e
        for e in module.executed()
        if e.instruction.target == "tpu_custom_call"
        and WITHOUT_HISTORY not in e.instruction.op_name
    ]
    scheduled = own = 0.0
    for e, kernel in zip(calls, program.kernels, strict=True):
        at_peaks = peaks.kernel_cycles(dataclasses.replace(program, kernels=(kernel,))) or 0
        if "srjit_" in e.instruction.op_name:
            scheduled += max(e.times * _rate(chip, e) - at_peaks, 0.0)
        else:
            own += at_peaks
    return scheduled, own


def _rate(chip: Chip, e: hlo.Executed) -> float:
    """Cycles of one of srjit's kernels, by its kind: what it reads, and what it writes."""
    results = e.instruction.shapes
    given = [s for o in e.computation.operands(e.instruction) for s in o.shapes]
    largest = max((*given, *results), key=lambda s: math.prod(s.dims))
    codes = [s for s in results if s.dims == largest.dims or s.dims == largest.dims[::-1]]
    if largest.dtype not in ("bf16", "f32"):
        rate = chip.transposing
    elif not codes:
        rate = chip.amax
    else:
        is_noisy = "_stochastic" in e.instruction.op_name
        rate = chip.codes["stochastic" if is_noisy else "nearest"] + chip.beside * (len(codes) - 1)
    return rate * math.prod(largest.dims)


def ratios(before: Compiled, after: Compiled, target: Target, layers: int) -> dict[str, Any]:
    """What a program was over what it is, and what it takes of the wire, memory and compiler.

    The first three are bfloat16's over the other's, the rest the other's over bfloat16's;
    ``scalars`` are all-reduces of 4 KiB at most, a layer. None: nothing is known of it.
    """
    peaks = Peaks.of(target)
    a, b = before.program, after.program
    was, now = (_step_time(c, peaks) for c in (before, after))
    copies = (was.relayouts or 0) + (now.relayouts or 0)
    with_copies = [t.compute + t.relayouts if t.compute and copies else None for t in (was, now)]
    scalars = [
        p.collectives["all-reduce"].small if "all-reduce" in p.collectives else 0 for p in (a, b)
    ]
    return {
        "compute": over(was.compute, now.compute),
        "no attention": over(*(_but_own(c, t, peaks) for c, t in ((before, was), (after, now)))),
        "apart": over(was.apart, now.apart),
        "copies": over(*with_copies),
        "wire": over(b.sent, a.sent),
        "moved": over(b.moved, a.moved),
        "scalars": scalars[1] / layers,
        "of bf16": scalars[0] / layers,
        "memory": over(b.memory.peak, a.memory.peak),
        "compile": over(after.seconds, before.seconds),
        "each": [
            {**dataclasses.asdict(t), "scalars": n}
            for t, n in zip((was, now), scalars, strict=True)
        ],
        "added as": [dict(p.added_as) for p in (a, b)],
    }


def _step_time(made: Compiled, peaks: Peaks) -> StepTime:
    found = peaks.step_time(made.program)
    if found.compute is None or not peaks.clock:
        return found
    return dataclasses.replace(found, compute=found.compute + made.scheduled / peaks.clock)


def _but_own(made: Compiled, time: StepTime, peaks: Peaks) -> float | None:
    """Seconds of compute without the program's own kernels; None if it has none."""
    if time.compute is None or not peaks.clock or not made.own:
        return None
    return time.compute - made.own / peaks.clock


def over(one: float | None, other: float | None) -> float | None:
    return one / other if one and other else None


def told(value: float | None, goal: float | None = None, at_least: bool = True) -> str:
    """A figure, and whether it meets its goal."""
    if value is None:
        return "-"
    if goal is None:
        return f"{value:.2f}"
    # A goal has two digits: so has what is held against it.
    met = round(value, 2) >= goal if at_least else round(value, 2) <= goal
    return f"{value:.2f} " + ("ok" if met else f"({'>' if at_least else '<'}{goal:g})")
