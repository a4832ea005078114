"""What watching costs: steps of the demo with and without ``watch=``, in turns in one process.

    python benchmarks/watch_cost.py [--rounds N] [--quick] [--json FILE]

A ratio is the median, over rounds, of the ratio within a round; ``CPU`` is that of processor time.
It also says whether all results of both are the same bits.
"""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import _measuring as measuring
from srjit import srjit

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import lm_data
import train_lm
from lm_model import Transformer

RECIPES = ("int8", "nvfp4")
LIMIT = 1.03


def compare(recipe: str, rounds: int, quick: bool, folder: Path) -> dict[str, Any]:
    """Times one recipe's steps and prints a line."""
    given = train_lm.parse_arguments(["--quick"] if quick else [])
    run = train_lm.make_run(given, recipe, seed=0)
    graphdef, params = nnx.split(Transformer(run.model, nnx.Rngs(0)), nnx.Param)
    optimizer = train_lm.make_optimizer(run)
    step = train_lm.make_train_step(graphdef, optimizer)
    corpus = lm_data.load_corpus()
    tokens = lm_data.training_batch(corpus.train, 0, 0, run.batch, run.seq)
    args = params, optimizer.init(params), tokens
    path = folder / f"{recipe}.jsonl"
    watched = srjit(step, recipe=recipe, watch=path)
    named = {"plain": srjit(step, recipe=recipe), "watched": watched}
    outs = [jax.tree.leaves(f(*args, sr_key=1)) for f in named.values()]
    same = all(np.array_equal(a, b) for a, b in zip(*outs, strict=True))

    calls = {f: functools.partial(g, *args, sr_key=0) for f, g in named.items()}
    times, cpu = measuring.interleaved(calls, rounds)
    watched.watch.wait()
    ratio = measuring.median_ratio(times["watched"], times["plain"])
    found = {
        "plain": statistics.median(times["plain"]),
        "ratio": ratio,
        "cpu": measuring.median_ratio(cpu["watched"], cpu["plain"]),
        "same bits": same,
        "records a step": len(path.read_text().splitlines()) // (rounds + 3),
    }
    print(
        f"{recipe:<8}{1e3 * found['plain']:9.1f} ms {ratio:7.3f}x {found['cpu']:7.3f}x CPU  "
        f"{found['records a step']} records a step, same bits: {same}  "
        f"{measuring.verdict(ratio, None if quick else LIMIT)}"
    )
    return found


def main() -> None:
    parser = measuring.options(__doc__, rounds=30)
    given = parser.parse_args()
    rounds = min(given.rounds, 2) if given.quick else given.rounds
    with tempfile.TemporaryDirectory() as folder:
        figures = {r: compare(r, rounds, given.quick, Path(folder)) for r in RECIPES}
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
