"""The work of planning, and of every pass, grows as the number of products does.

Lines that run are counted, not seconds: those of srjit itself, while the number of products is
multiplied by four.
"""

from __future__ import annotations

import collections
import os
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import srjit
from srjit import passes
from srjit.passes import PassWarning
from srjit.passes.mlir.serialization import copy_of
from srjit.planning import matching

SMALL, FACTOR = 8, 4
MOST = 1.03 * FACTOR  # counts are exact; what does not grow makes the ratio smaller
S = jax.ShapeDtypeStruct((4, 4), jnp.float32)
OWN = tuple(os.path.dirname(os.path.realpath(m.__file__ or "")) for m in (srjit, passes))
PASSES = (
    "srjit-eliminate-dead-code",
    "srjit-annotate-matmuls",
    "srjit-insert-quantize{recipe=int8 mode=inference}",
    "srjit-share-quantized",
    "srjit-legalize{target=cpu}",
    "srjit-verify-deterministic",
)


@jax.custom_vjp
def odd(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def backward(residuals: Any, ct: jax.Array) -> Any:
    """Reads nothing that the forward product does, so that it has to be found by its shapes."""
    x, w = residuals
    return jnp.sin(ct) @ jnp.exp(w), jnp.exp(x) @ jnp.sin(ct)


odd.defvjp(lambda x, w: (x @ w, (x, w)), backward)


def chain(ws: Any, x: Any) -> Any:
    for w in ws:
        x = jnp.tanh(x @ w)
    return x


def shared(w: Any, x: Any) -> Any:
    return trained([w] * LAYERS[0], x)


def independent(ws: Any, xs: Any) -> Any:
    return [x @ w for w, x in zip(ws, xs, strict=True)]


def readers(ws: Any, x: Any) -> Any:
    return [x @ w for w in ws]


def calls(ws: Any, x: Any) -> Any:
    layer = jax.jit(lambda w, x: jnp.tanh(x @ w))
    for w in ws:
        x = layer(w, x)
    return x


def trained(ws: Any, x: Any) -> Any:
    grads = jax.grad(lambda ws: jnp.sum(chain(ws, x) ** 2))(ws)
    return [w - 0.1 * g for w, g in zip(ws, grads, strict=True)]


def flat(x: Any, *ws: Any) -> Any:
    return trained(ws, x)


def changed(ws: Any, x: Any) -> Any:
    def loss(ws: Any) -> Any:
        y = x
        for w in ws:
            y = odd(y, w)
        return jnp.sum(y**2)

    return [w - 0.1 * g for w, g in zip(ws, jax.grad(loss)(ws), strict=True)]


LAYERS = [0]
PROGRAMS: dict[Callable[..., Any], Callable[[int], tuple[Any, ...]]] = {
    shared: lambda n: (S, S),
    independent: lambda n: ([S] * n, [S] * n),
    readers: lambda n: ([S] * n, S),
    calls: lambda n: ([S] * n, S),
    flat: lambda n: (S,) * (n + 1),
    changed: lambda n: ([S] * n, S),
}


@contextmanager
def counted(lines: collections.Counter[str], what: str) -> Iterator[None]:
    """Counts the lines of srjit that run, a loop's once a trip."""

    def line(frame: types.FrameType, event: str, _: Any) -> Any:
        lines[what] += event == "line"
        return line

    def call(frame: types.FrameType, event: str, _: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(OWN) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


def work(fun: Callable[..., Any], layers: int) -> collections.Counter[str]:
    """How many lines planning a program and every pass over it run."""
    LAYERS[0] = layers
    args = PROGRAMS[fun](layers)
    lines: collections.Counter[str] = collections.Counter()
    step = srjit.srjit(fun, recipe="int8")
    module = copy_of(jax.jit(lambda *args: fun(*args)).lower(*args).compiler_ir("stablehlo"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PassWarning)
        with counted(lines, "planned"):
            step.planned(args, {})
        for name in PASSES:
            with counted(lines, name):
                passes.parse(name).run(module)
    return lines


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize(
    "fun",
    [pytest.param(f, marks=[pytest.mark.nightly] * (f in (readers, calls))) for f in PROGRAMS],
    ids=lambda fun: fun.__name__,
)
def test_work_grows_as_products_do(fun: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(matching, "_MOST", 2)  # a limit that even few products reach
    work(fun, 2)  # imports, caches
    few, many = work(fun, SMALL), work(fun, SMALL * FACTOR)
    grown = {what: many[what] / few[what] for what in few}
    assert max(grown.values()) < MOST, grown
