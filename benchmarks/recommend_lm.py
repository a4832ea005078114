"""Which recipe ``srjit.recommend`` picks for the demo's model, and how near it is to the best.

    python benchmarks/recommend_lm.py [--budget N] [--quick] [--json FILE]

A budget is a number of steps; each built-in recipe trains that long from the same start on the same
batches. A loss is the mean of the last quarter of the steps'.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flax import nnx

import _measuring as measuring
import srjit
from srjit.api.recommend import HIGH_PRECISION

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import lm_data
import train_lm
from lm_model import Transformer

GOAL = 0.003  # of the best recipe's loss


def recommended(budget: int, quick: bool) -> srjit.Recommendation:
    """What ``recommend`` says of the demo's training step."""
    given = train_lm.parse_arguments(["--quick" if quick else f"--steps={budget}"])
    run = train_lm.make_run(given, "int8", seed=0)
    graphdef, params = nnx.split(Transformer(run.model, nnx.Rngs(0)), nnx.Param)
    optimizer = train_lm.make_optimizer(run)
    step = train_lm.make_train_step(graphdef, optimizer)
    corpus = lm_data.load_corpus()

    def batch(number: int) -> Any:
        return lm_data.training_batch(corpus.train, 0, number, run.batch, run.seq)

    return srjit.recommend(
        step,
        params,
        optimizer.init(params),
        batch(0),
        budget=budget,
        recipes=("int8", "nvfp4") if quick else None,
        advance=lambda number, args, out: (out[0], out[1], batch(number + 1)),
    )


def main() -> None:
    parser = measuring.options(__doc__, rounds=1)
    parser.add_argument("--budget", type=int, default=24, help="steps that each recipe trains")
    given = parser.parse_args()
    found = recommended(min(given.budget, 4) if given.quick else given.budget, given.quick)
    print(found)
    if found.recipe is None:
        sys.exit("no recipe is recommended")
    losses = {t.recipe: t.loss for t in found.trials if t.recipe != HIGH_PRECISION}
    chosen = losses[found.recipe.name] / min(losses.values()) - 1
    print(f"{found.recipe.name}: {100 * chosen:+.3f} % to the best recipe, goal {100 * GOAL:.1f} %")
    measuring.write_json(given.json, {**json.loads(found.to_json()), "to best": chosen})


if __name__ == "__main__":
    main()
