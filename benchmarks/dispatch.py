"""What a call costs on the host, beside ``jax.jit`` of the same program with a key argument.

    python benchmarks/dispatch.py [--calls N]

Both programs run in one process, in turns; the medians of the turns and of their differences count.
So with the same step through ``srjit.rejit``, which makes the key's words in a call of their own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from srjit import rejit, srjit, transform

LIMIT = 5.0  # microseconds above jax.jit's


def step(params: Any, batch: Any) -> Any:
    """A step so small that its call is all it costs."""
    grads = jax.grad(lambda p: jnp.sum((batch @ p["w"] + p["b"]) ** 2))(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)


def keyed(key: Any, params: Any, batch: Any) -> Any:
    """The rewritten step as a function with a key argument, for ``jax.jit``: the same program."""
    return transform(step, recipe="int8", target="cpu")(params, batch, sr_key=key)


def _microseconds(call: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


PIPELINE = (
    "srjit-eliminate-dead-code,srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8},"
    "srjit-share-quantized,srjit-legalize{target=cpu}"
)


def rejitted(params: Any, batch: Any) -> Callable[..., Any]:
    """The rewritten step by passes over its module."""
    return rejit(jax.jit(step).lower(params, batch), PIPELINE)


def measure(
    key: Any, calls: int = 200, turns: int = 101, by_passes: bool = False
) -> tuple[float, float, float]:
    """Medians, in microseconds: a call of jax.jit's, of srjit's, and their difference."""
    params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    batch = jnp.ones((2, 4))
    plain, ours = jax.jit(keyed), srjit(step, recipe="int8", target="cpu")
    if by_passes:
        ours = rejitted(params, batch)
    pair = lambda: plain(key, params, batch), lambda: ours(params, batch, sr_key=key)
    for call in pair:
        _microseconds(call, calls)
    times = [[_microseconds(call, calls) for call in pair] for _ in range(turns)]
    jit, srj = (statistics.median(t) for t in zip(*times, strict=True))
    return jit, srj, statistics.median(b - a for a, b in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=200, help="calls in a turn (default: 200)")
    calls = parser.parse_args().calls
    for by_passes, name in enumerate(("srjit", "rejit")):
        limit = "" if by_passes else f"; limit {LIMIT:g}"
        print(f"{'sr_key':<10} {'jax.jit':>9} {name:>9} {'more':>9}   (us a call{limit})")
        for kind, key in (("typed key", jax.random.key(0)), ("integer", 12345)):
            jit, ours, more = measure(key, calls, by_passes=bool(by_passes))
            print(f"{kind:<10} {jit:9.2f} {ours:9.2f} {more:9.2f}")


if __name__ == "__main__":
    main()
