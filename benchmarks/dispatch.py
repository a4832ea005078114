"""What a call costs on the host, beside ``jax.jit`` of the same program with a key argument.

    python benchmarks/dispatch.py [--rounds N] [--calls N] [--quick] [--json FILE]

Both programs run in one process, in turns; medians of the rounds and of their differences count.
So with the same step through ``srjit.rejit``, which makes the key's words in a call of their own.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import _measuring as measuring
from srjit import rejit, srjit, transform

LIMIT = 5.0  # microseconds above jax.jit's
PIPELINE = (
    "srjit-eliminate-dead-code,srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8},"
    "srjit-share-quantized,srjit-legalize{target=cpu}"
)


def step(params: Any, batch: Any) -> Any:
    """A step so small that its call is all it costs."""
    grads = jax.grad(lambda p: jnp.sum((batch @ p["w"] + p["b"]) ** 2))(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def keyed(key: Any, params: Any, batch: Any) -> Any:
    """The rewritten step as a function with a key argument, for ``jax.jit``: the same program."""
    return transform(step, recipe="int8", target="cpu")(params, batch, sr_key=key)


def decorated(params: Any, batch: Any) -> Callable[..., Any]:
    """The step as the decorator makes it."""
    del params, batch
    return srjit(step, recipe="int8", target="cpu")


def rejitted(params: Any, batch: Any) -> Callable[..., Any]:
    """The step as passes over its module make it."""
    return rejit(jax.jit(step).lower(params, batch), PIPELINE)


def _microseconds(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


def measure(
    make: Callable[..., Callable[..., Any]], key: Any, calls: int, rounds: int
) -> dict[str, float]:
    """Medians, in microseconds: a call of jax.jit's, of srjit's, and their difference."""
    params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    batch = jnp.ones((2, 4))
    plain, ours = jax.jit(keyed), make(params, batch)
    pair = lambda: plain(key, params, batch), lambda: ours(params, batch, sr_key=key)
    for call in pair:
        _microseconds(call, calls)
    times = [[_microseconds(call, calls) for call in pair] for _ in range(rounds)]
    jit, srj = (statistics.median(t) for t in zip(*times, strict=True))
    return {"jax.jit": jit, "srjit": srj, "more": statistics.median(b - a for a, b in times)}


def main() -> None:
    parser = measuring.options(__doc__, rounds=101)
    parser.add_argument("--calls", type=int, default=200, help="calls in a round (default: 200)")
    given = parser.parse_args()
    calls, rounds = (2, 2) if given.quick else (given.calls, given.rounds)
    figures: dict[str, dict[str, float]] = {}
    print(f"microseconds a call, median of {rounds} round(s) of {calls}")
    print(f"{'sr_key':<17} {'jax.jit':>9} {'srjit':>9} {'more':>9}   goal")
    for way, make, limit in (("", decorated, LIMIT), (", rejit", rejitted, None)):
        for kind, key in (("typed key", jax.random.key(0)), ("integer", 12345)):
            row = figures[kind + way] = measure(make, key, calls, rounds)
            goal = "" if given.quick or limit is None else measuring.verdict(row["more"], limit)
            columns = " ".join(f"{us:9.2f}" for us in row.values())
            print(f"{kind + way:<17} {columns}   {goal}".rstrip())
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
