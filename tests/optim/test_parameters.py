"""``srjit.optim``: Optax's own apply_updates, and parameters that round stochastically."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from srjit import optim
from srjit.numerics.encode import round_with
from srjit.numerics.formats import get_storage
from srjit.numerics.random_bits import as_key, mix
from steps import KEY, same

BF16 = jnp.bfloat16
N = 4096
SIGMAS = 5.5


def stepping(optimizer: Any) -> Any:
    @jax.jit
    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("dtype", [BF16, jnp.float16])
def test_what_is_applied_is_the_rounded_sum_itself(dtype: Any):
    """All pairs of numbers of many magnitudes: neighbours of the exact sum, and nothing else."""
    numbers = np.array([s * 2.0**e * m for s in (-1, 1) for e in range(-12, 13) for m in (1, 1.5)])
    p, u = (jnp.asarray(x.ravel()) for x in np.meshgrid(numbers * 1.0078125, numbers * 1.001))
    p, u = p.astype(dtype), u.astype(jnp.float32)
    optimizer = optim.stochastic_rounding(optax.identity(), 3)
    new, _ = stepping(optimizer)(p, optimizer.init(p), u)
    assert new.dtype == p.dtype
    exact = np.float32(p) + np.float32(u)
    words = mix(mix(as_key(3), jnp.uint32(0)), 0)
    expected = round_with(words, jnp.asarray(exact), get_storage(dtype), "hash")
    kept = np.abs(exact) >= np.abs(np.float32(p)) * 2.0**-13
    assert kept.mean() > 0.99
    np.testing.assert_array_equal(np.float32(new)[kept], np.float32(expected)[kept])
    off = np.abs(np.float64(new) - np.float64(expected))
    assert np.all(off <= np.abs(np.float64(p)) * 2.0**-24)


def test_small_updates_accumulate():
    optimizer = optim.stochastic_rounding(optax.sgd(0.001), KEY)
    step, w = stepping(optimizer), jnp.ones(N, BF16)
    state = optimizer.init(w)
    for _ in range(100):
        w, state = step(w, state, -jnp.ones(N, BF16))
    u = float(jnp.asarray(0.001, BF16))
    p = u * 2**7
    deviation = 2.0**-7 * math.sqrt(100 * p * (1 - p) / N)
    assert abs(np.asarray(w, np.float64).mean() - (1 + 100 * u)) < SIGMAS * deviation
    assert int(state.steps) == 100


def test_adamw_of_a_tree_rounds_every_narrow_leaf_with_noise_of_its_own():
    params = {"a": jnp.ones(N, BF16), "b": jnp.ones(N, BF16), "c": jnp.ones(N), "d": None}
    grads = {**{k: jnp.ones(N, BF16) for k in "ab"}, "c": jnp.ones(N), "d": None}
    plain = optax.adamw(1e-3)
    optimizer = optim.stochastic_rounding(plain, KEY)
    first, state = stepping(optimizer)(params, optimizer.init(params), grads)
    assert same(first["c"], stepping(plain)(params, plain.init(params), grads)[0]["c"])
    second, _ = stepping(optimizer)(params, state, grads)
    fell = [np.asarray(x, np.float64) < 1 for x in (first["a"], first["b"], second["a"])]
    for i, one in enumerate(fell):
        assert 0.2 < one.mean() < 0.35  # 0.001 is a fourth of 2^-8
        for other in fell[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < SIGMAS / math.sqrt(N)


def test_eight_devices_apply_what_one_does():
    optimizer = optim.stochastic_rounding(optax.sgd(0.001), KEY)
    w = jnp.ones((16, 64), BF16)
    alone, _ = stepping(optimizer)(w, optimizer.init(w), w)
    for spec in (PartitionSpec(), PartitionSpec("d"), PartitionSpec(None, "d")):
        spread = jax.device_put(w, NamedSharding(jax.make_mesh((8,), ("d",)), spec))
        new, _ = stepping(optimizer)(spread, optimizer.init(spread), spread)
        assert same(np.asarray(new), np.asarray(alone)) and not same(np.asarray(new), np.asarray(w))


def test_infinity_and_nan_stay_what_they_are():
    optimizer = optim.stochastic_rounding(optax.identity())
    p = jnp.array([jnp.inf, -jnp.inf, jnp.nan, 1.0, 1.0], BF16)
    u = jnp.array([1.0, 1.0, 1.0, jnp.nan, -jnp.inf], BF16)
    new, _ = stepping(optimizer)(p, optimizer.init(p), u)
    np.testing.assert_array_equal(np.float32(new), [np.inf, -np.inf, np.nan, np.nan, -np.inf])


def test_what_it_cannot_do_is_an_error():
    optimizer = optim.stochastic_rounding(optax.identity())
    w = jnp.ones(4, jnp.float8_e4m3fn)
    with pytest.raises(TypeError, match="float8_e4m3fn"):
        optimizer.update(w, optimizer.init(w), w)
    with pytest.raises(ValueError, match="params"):
        optimizer.update(w, optimizer.init(w))
    with pytest.raises(TypeError, match="PRNG key"):
        optim.stochastic_rounding(optax.identity(), "seed")


def test_srjit_is_imported_without_optax():
    code = "import sys, srjit.optim, srjit; srjit.srjit; assert 'optax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
