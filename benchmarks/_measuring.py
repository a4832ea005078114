"""How the benchmarks measure: interleaved rounds, so that a busy machine slows everyone alike."""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax


def options(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """What all benchmarks take."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"rounds of measurements (default: {rounds})"
    )
    parser.add_argument("--quick", action="store_true", help="tiny programs, to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    return parser


def write_json(path: Path | None, figures: Any) -> None:
    """Writes figures with the versions that they were measured with."""
    if path is not None:
        versions = {"jax": jax.__version__, "jaxlib": jax.lib.__version__}
        path.write_text(json.dumps({**versions, "figures": figures}, indent=1) + "\n")


def interleaved(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each call in each round, and processor seconds of all threads.

    Every round has an order of its own.
    """
    for call in calls.values():
        for _ in range(warm_up):
            jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    order, rng = list(calls), random.Random(0)
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            start, start_cpu = time.perf_counter(), time.process_time()
            jax.block_until_ready(calls[name]())
            times[name].append(time.perf_counter() - start)
            cpu[name].append(time.process_time() - start_cpu)
    return times, cpu


def median_ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def cold() -> None:
    """Forgets everything that JAX has traced, lowered or compiled."""
    jax.clear_caches()
    gc.collect()


def verdict(value: float, limit: float | None) -> str:
    """A figure's goal, and whether it is met."""
    return "" if limit is None else f"<= {limit:g} {'ok' if value <= limit else 'MISSED'}"
