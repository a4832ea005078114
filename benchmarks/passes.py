"""What the passes over a module cost, beside what XLA's compiler does, and how that grows.

    python benchmarks/passes.py [--layers N] [--sites N] [--rounds N] [--quick] [--json FILE]

The 48-layer unrolled transformer's training step is lowered once; in every round a fresh copy goes
through the pipeline, and the last is compiled. Then every pass on its own, on dots one after
another, up to --sites of them: each should take the same time a site at all sizes.
Processor seconds of one process; medians of the rounds.
"""

from __future__ import annotations

import re
import statistics
import time
from typing import Any

import jax

import _measuring as measuring
import _programs as programs
from srjit import rejit
from srjit.passes import Pipeline, parse

LIMIT = 5.0  # percent of the compiler's time
PIPELINE = (
    "srjit-eliminate-dead-code,srjit-annotate-matmuls{params=PARAMS},"
    "srjit-insert-quantize{recipe=RECIPE},srjit-share-quantized,srjit-legalize{target=cpu}"
)


def lowered_step(layers: int, quick: bool) -> tuple[Any, int]:
    """The training step, lowered, and how many arrays its parameters are."""
    sizes = {"width": 16, "heads": 2, "hidden": 32, "batch": 1, "time": 8} if quick else {}
    loss, params, batch = programs.transformer_program(layers=layers, **sizes)

    def step(params: Any, *batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, *batch)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), value

    return jax.jit(step).lower(params, *batch), len(jax.tree.leaves(params))


def many_dots(sites: int) -> str:
    """A module of that many dots, one after another."""
    kind = "tensor<8x8xf32>"
    lines = [
        f"%{i + 1} = stablehlo.dot_general %{i}, %w, contracting_dims = [1] x [0] : "
        f"({kind}, {kind}) -> {kind}"
        for i in range(sites)
    ]
    body = "\n  ".join(["%0 = stablehlo.tanh %x : " + kind, *lines, f"return %{sites} : {kind}"])
    return f"func.func @main(%w: {kind}, %x: {kind}) -> {kind} {{\n  {body}\n}}\n"


def seconds_of(pipeline: Any, text: Any, rounds: int) -> float:
    """Processor seconds of the passes alone, on a fresh module each time."""
    from srjit._mlir import ir, new_context

    times: list[float] = []
    for _ in range(rounds):
        with new_context() as context, ir.Location.unknown():
            module = ir.Module.parse(text, context)
            start = time.process_time()
            pipeline.run(module)
            times.append(time.process_time() - start)
    return statistics.median(times)


def seconds_of_each(steps: list[str], text: str) -> list[float]:
    """Processor seconds of each pass, run one after another on a module."""
    from srjit._mlir import ir, new_context

    times: list[float] = []
    with new_context() as context, ir.Location.unknown():
        module = ir.Module.parse(text, context)
        for step in map(parse, steps):
            start = time.process_time()
            step.run(module)
            times.append(time.process_time() - start)
    return times


def main() -> None:
    parser = measuring.options(__doc__, rounds=3)
    parser.add_argument("--layers", type=int, default=48, help="of the transformer (default: 48)")
    parser.add_argument("--sites", type=int, default=10_000, help="at most (default: 10000)")
    parser.add_argument("--recipe", default="int8", help="the recipe (default: int8)")
    given = parser.parse_args()
    layers, most = (2, 80) if given.quick else (given.layers, given.sites)
    rounds = 1 if given.quick else given.rounds

    lowered, count = lowered_step(layers, given.quick)
    text = PIPELINE.replace("PARAMS", f"0-{count - 1}").replace("RECIPE", given.recipe)
    pipeline = parse(text)
    module = lowered.compiler_ir().operation.get_asm(enable_debug_info=True)
    passes = seconds_of(pipeline, module, rounds)
    rewritten = rejit(lowered, pipeline).lowered
    start = time.process_time()
    rewritten.compile()
    compiling = time.process_time() - start
    percent = 100 * passes / compiling
    goal = "" if given.quick else measuring.verdict(percent, LIMIT)
    print(f"{layers} layers, unrolled, {given.recipe}: passes {passes:.2f} s, XLA's compiler")
    print(f"{compiling:.2f} s (processor time): {percent:.1f} %   {goal}".rstrip())

    steps = [str(Pipeline(step)) for step in parse(text.replace(f"0-{count - 1}", "0"))]
    steps += ["srjit-report{output=/dev/null}", "srjit-inline-calls", "srjit-strip-annotations"]
    names = [re.sub(r"builtin.module\(|[{)].*", "", step) for step in steps]
    print("\nus a site", "sites", *(name.removeprefix("srjit-") for name in names), sep="  ")
    scaling: list[dict[str, float]] = []
    for sites in (most // 10, most // 5, most * 2 // 5, most):
        each = seconds_of_each(steps, many_dots(sites))
        scaling.append(
            {"sites": sites, "seconds": sum(each), **dict(zip(names, each, strict=True))}
        )
        print(
            f"{sites:16d}",
            *(f"{s / sites * 1e6:{len(n) - 6}.0f}" for n, s in zip(names, each, strict=True)),
            sep="  ",
        )
    figures = {"passes": passes, "compile": compiling, "percent": percent, "scaling": scaling}
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
