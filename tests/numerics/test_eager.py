"""Outside of a trace rounding is one program; inside it is the operations themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srjit

SPEC = srjit.Quantization(format="nvfp4", rounding="stochastic")
CODES = srjit.quantize(jnp.ones((2, 16)), SPEC, 0)
CALLS: dict[str, Callable[[jax.Array], Any]] = {
    "stochastic_round": lambda x: srjit.stochastic_round(x, jnp.float8_e4m3fn, 1),
    "stochastic_round by Threefry": lambda x: srjit.stochastic_round(x, "int8", 1, rng="threefry"),
    "quantize": lambda x: srjit.quantize(x, SPEC, 2),
    "dequantize": lambda x: CODES.dequantize(x.dtype),
}
# Of shapes that no other test has.
X = jax.random.normal(jax.random.key(0), (13, 37)) * 20
LOWERING = "/jax/core/compile/jaxpr_to_mlir_module_duration"


@pytest.mark.parametrize("call", ["stochastic_round", "stochastic_round by Threefry", "quantize"])
def test_a_new_shape_is_one_new_program(call: str):
    fun, lowered = CALLS[call], list[str]()
    jax.block_until_ready(fun(X[:2]))  # the key's own programs

    def hear(event: str, _: float, **__: Any) -> None:
        lowered.extend([event] if event == LOWERING else [])

    x = X[:7] + 1
    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        fun(x)
        assert len(lowered) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)


@pytest.mark.parametrize("call", CALLS)
def test_inside_of_a_trace_it_is_the_operations_themselves(call: str):
    module = jax.jit(CALLS[call]).lower(X).as_text()
    assert "stablehlo.multiply" in module
    assert not re.search(r"@(round_with|_stored|dequantize)\b", module)


@pytest.mark.parametrize("call", CALLS)
def test_both_have_the_same_bits(call: str):
    eager, traced = CALLS[call](X), jax.jit(CALLS[call])(X)
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(traced), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
