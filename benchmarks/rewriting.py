"""What rewriting alone costs: finding, planning and evaluating the rewritten program.

    python benchmarks/rewriting.py [--rounds N] [--quick] [--recipe NAME] [--json FILE]

It is ``srjit(step).trace()`` minus ``jax.jit(step).trace()``, for the SGD step of an unrolled
transformer, beside what the original takes to trace, lower and compile. Everything starts with
JAX's caches empty. Processor time counts, because tracing has one thread and the machine may have
other work; shares of wall time are printed too. XLA:CPU takes quadratic time to compile unrolled
residual additions, so the stricter share is of the same step without them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import _measuring as measuring
from compile_time import deep_step
from srjit import recipes, srjit, targets
from srjit._compat import dce
from srjit.planning.plan import Settings
from srjit.planning.planner import make_plan
from srjit.planning.provenance import Provenance
from srjit.planning.roles import classify
from srjit.program.values import DATA, PARAMETER

LIMIT = 0.15  # of the original's trace, lower and compile
LAYERS = (6, 12, 24, 48)
PARTS = ("dead code", "provenance", "roles", "planning")  # the rest is evaluating


def _seconds(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """(processor time, wall time, result)."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    return time.process_time() - cpu, time.perf_counter() - wall, result


def original(layers: int, form: str = "unrolled") -> dict[str, float]:
    """What the unchanged step costs: tracing alone, and tracing, lowering and compiling."""
    step, args = deep_step(layers, form)
    measuring.cold()
    trace, trace_wall, traced = _seconds(lambda: jax.jit(step).trace(*args))
    rest, rest_wall, _ = _seconds(lambda: traced.lower().compile())
    return {"trace": trace, "all": trace + rest, "wall": trace_wall + rest_wall}


def rewritten(layers: int, recipe: str) -> tuple[float, int]:
    """Seconds that srjit's tracing takes, and how many sites there are."""
    step, args = deep_step(layers, "unrolled")
    ours = srjit(step, recipe=recipe)
    measuring.cold()
    seconds, _, _ = _seconds(lambda: ours.trace(*args, sr_key=0))
    return seconds, len(ours.explain(*args).sites)


def parts(layers: int, recipe: str) -> dict[str, float]:
    """Seconds of each part of the rewriting, before the evaluation."""
    step, args = deep_step(layers, "unrolled")
    leaves, tree = jax.tree.flatten(args)
    count = len(jax.tree.leaves(args[0]))
    labels = [PARAMETER] * count + [DATA] * (len(leaves) - count)
    settings = Settings(recipes.get(recipe), targets.get("cpu"))
    measuring.cold()
    traced = jax.make_jaxpr(lambda *x: step(*jax.tree.unflatten(tree, x)))(*leaves)
    dead, _, closed = _seconds(lambda: dce(traced))
    found, _, provenance = _seconds(lambda: Provenance(closed, labels))
    roles, _, _ = _seconds(lambda: classify(provenance))
    planned, _, _ = _seconds(lambda: make_plan(closed, labels, settings))
    return dict(zip(PARTS, (dead, found, roles, planned - found - roles), strict=True))


def measure(layers: int, recipe: str, rounds: int) -> dict[str, Any]:
    """Medians over rounds; the ratio is the median of those within a round."""
    before, plain, after, split = [], [], [], []
    for _ in range(rounds):
        before.append(original(layers))
        plain.append(original(layers, "unrolled-plain"))
        after.append(rewritten(layers, recipe))
        split.append(parts(layers, recipe))
    cost = [a - b["trace"] for (a, _), b in zip(after, before, strict=True)]
    done = {p: statistics.median(s[p] for s in split) for p in PARTS}
    return {
        "layers": layers,
        "sites": after[0][1],
        **{k: statistics.median(b[k] for b in before) for k in ("trace", "all", "wall")},
        "rewriting": statistics.median(cost),
        "share": measuring.median_ratio(cost, [b["all"] for b in before]),
        "share_of_wall": measuring.median_ratio(cost, [b["wall"] for b in before]),
        "share_of_plain": measuring.median_ratio(cost, [b["all"] for b in plain]),
        "parts": {**done, "evaluating": statistics.median(cost) - sum(done.values())},
    }


def main() -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    parser = measuring.options(__doc__, rounds=3)
    parser.add_argument("--recipe", default="int8")
    parser.add_argument("--layers", type=int, nargs="+", default=LAYERS)
    given = parser.parse_args()
    layers = (1, 2) if given.quick else given.layers
    rounds = 1 if given.quick else given.rounds
    measure(2, given.recipe, 1)  # imports, and what Python caches
    print(f"{given.recipe}, unrolled; processor seconds, median of {rounds}")
    print(
        f"{'layers':>6}{'sites':>7} |{'trace':>8}{'all':>8}{'(wall)':>8} |{'rewriting':>10}"
        f"{'ms/site':>9}{'share':>8}{'(wall)':>8}"
        f"{'of plain':>10} |" + "".join(f"{p:>12}" for p in (*PARTS, "evaluating"))
    )
    figures = [measure(n, given.recipe, rounds) for n in layers]
    for f in figures:
        print(
            f"{f['layers']:6}{f['sites']:7} |{f['trace']:8.2f}{f['all']:8.2f}{f['wall']:8.2f} |"
            f"{f['rewriting']:10.3f}{1e3 * f['rewriting'] / f['sites']:9.3f}{f['share']:8.1%}"
            f"{f['share_of_wall']:8.1%}{f['share_of_plain']:10.1%} |"
            + "".join(f"{seconds:12.3f}" for seconds in f["parts"].values())
        )
    if len(figures) > 1:
        sites, cost = (np.array([f[k] for f in figures], float) for k in ("sites", "rewriting"))
        slope, start = np.polyfit(sites, cost, 1)
        power = np.polyfit(np.log(sites), np.log(np.maximum(cost, 1e-9)), 1)[0]
        print(
            f"fit: {1e3 * start:.0f} ms + {1e3 * slope:.3f} ms a site; "
            f"time grows as sites ** {power:.2f}"
        )
    if not given.quick:
        worst = figures[-1]
        for name, what in (("share", "this program"), ("share_of_plain", "no residual additions")):
            goal = measuring.verdict(worst[name], LIMIT)
            print(f"{worst['layers']} layers, of {what}: {worst[name]:.1%}   {goal}")
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
