"""What tracing, lowering and compiling a step costs, beside the same step in fp32.

    python benchmarks/compile_time.py [--rounds N] [--quick] [--recipes ...] [--json FILE]

A 48-layer transformer's SGD step, scanned over its layers and unrolled, each time as a new function
with all of JAX's caches empty. A ratio is the median over rounds of that within a round.
``unrolled-plain`` has no residual additions, which XLA:CPU takes quadratic time to compile when it
unrolls them: that hides what quantization adds.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

import _measuring as measuring
import _programs as programs
from srjit import srjit

STAGES = ("trace", "lower", "compile")
LIMITS = {"scanned": 4.0, "unrolled": 12.0, "unrolled-plain": 12.0}
FORMS = tuple(LIMITS)
RECIPES = ("int8", "fp8", "nvfp4")
DEEP = {"width": 64, "heads": 4, "hidden": 256, "batch": 2, "time": 32}


def deep_step(layers: int, form: str) -> tuple[programs.Step, tuple[Any, ...]]:
    """An SGD step on a deep and narrow transformer, a new function each time, and its inputs."""
    scanned, residual = form == "scanned", form != "unrolled-plain"
    loss, params, batch = programs.transformer_program(
        layers, scanned=scanned, residual=residual, **DEEP
    )
    return programs.sgd_step(loss), (params, *batch)


def stages(recipe: str, layers: int, form: str) -> dict[str, float]:
    """Seconds of each stage; ``cpu`` is the processor time of compiling."""
    step, args = deep_step(layers, form)
    measuring.cold()
    jitted: Callable[..., Any] = jax.jit(step) if recipe == "fp32" else srjit(step, recipe=recipe)
    keys = {} if recipe == "fp32" else {"sr_key": 0}
    start = time.perf_counter()
    traced = jitted.trace(*args, **keys)
    after_trace = time.perf_counter()
    lowered = traced.lower()
    after_lower, cpu = time.perf_counter(), time.process_time()
    lowered.compile()
    return {
        "trace": after_trace - start,
        "lower": after_lower - after_trace,
        "compile": time.perf_counter() - after_lower,
        "cpu": time.process_time() - cpu,
    }


def compare(form: str, recipes: list[str], layers: int, rounds: int, goals: bool) -> dict[str, Any]:
    """Measures one form of the program and prints the table."""
    print(f"\n{layers} layers, {form}; seconds, {rounds} round(s)", flush=True)
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in ("fp32", *recipes)}
    for _ in range(rounds):
        for name in seconds:
            seconds[name].append(stages(name, layers, form))
    columns = "".join(f"{s:>9}" for s in STAGES)
    print(f"{'':<8}{columns}{'compile to fp32':>18}{'(CPU time)':>12}{'all to fp32':>13}   goal")
    rows: dict[str, Any] = {}
    for name, own in seconds.items():
        row = {s: statistics.median(o[s] for o in own) for s in (*STAGES, "cpu")}
        for label, parts in (("compile", ["compile"]), ("cpu", ["cpu"]), ("all", list(STAGES))):
            sums = [[sum(o[s] for s in parts) for o in seconds[n]] for n in (name, "fp32")]
            row[f"{label}_to_fp32"] = measuring.median_ratio(*sums)
        rows[name] = row
        goal = LIMITS[form] if goals and name != "fp32" else None
        print(
            f"{name:<8}{''.join(f'{row[s]:9.2f}' for s in STAGES)}"
            f"{row['compile_to_fp32']:18.2f}{row['cpu_to_fp32']:12.2f}{row['all_to_fp32']:13.2f}"
            f"   {measuring.verdict(row['compile_to_fp32'], goal)}".rstrip(),
            flush=True,
        )
    return rows


def main() -> None:
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    jax.config.update("jax_enable_compilation_cache", False)
    parser = measuring.options(__doc__, rounds=1)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    given = parser.parse_args()
    layers = min(given.layers, 2) if given.quick else given.layers
    stages("fp32", 1, "scanned")  # what a process does once
    figures = {
        form: compare(form, given.recipes, layers, given.rounds, not given.quick)
        for form in given.forms
    }
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
