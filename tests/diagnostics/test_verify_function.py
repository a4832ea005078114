"""``verify_function``: the same tests on any function that rounds, on ours and on others'."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srjit import Quantization, quantize, stochastic_round, verify_function
from srjit.diagnostics.verify.residuals import SAMPLE, TINY, Grid
from srjit.numerics.elements import ELEMENTS

X = jax.random.normal(jax.random.key(0), (64, 128)).at[0, 0].set(5.0)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("dtype", sorted(ELEMENTS))
def test_stochastic_round_is_unbiased_to_every_dtype(dtype: str):
    found = verify_function(lambda key: stochastic_round(X, dtype, key), X, dtype=dtype)
    assert found.passed, found.verdict
    assert found.bits >= 7


def test_steps_may_be_given_in_place_of_a_dtype():
    def draw(key: Any) -> jax.Array:
        return jnp.floor(X * 8 + jax.random.uniform(key, X.shape)) / 8

    assert verify_function(draw, X, step=1 / 8).passed
    half_a_bit_off = verify_function(lambda key: draw(key) + 1 / 64, X, step=1 / 8)
    assert "biased by" in half_a_bit_off.verdict
    all_elements = next(t for t in half_a_bit_off.tests if t.where == "all elements")
    assert all_elements.found == pytest.approx(1 / 8, abs=all_elements.limit)


def test_large_tensors_are_sampled():
    x = jax.random.normal(jax.random.key(1), (512, 300))
    found = verify_function(
        lambda key: stochastic_round(x, jnp.int8, key), x, dtype="int8", draws=16
    )
    assert found.passed and found.sampled == SAMPLE
    assert found.underflow == pytest.approx(float(jnp.mean(jnp.abs(x) < 1)), abs=1e-6)


def test_noise_that_columns_share_is_found():
    def draw(key: Any) -> jax.Array:
        return jnp.floor(X + jax.random.uniform(key, X.shape[1:]))

    verdict = verify_function(draw, X, dtype="int8").verdict
    assert "neighbouring elements share noise" in verdict and "dimension -2" in verdict


def uniform(key: Any, *shape: int) -> jax.Array:
    return jax.random.uniform(key, shape)


N = 48
FAR = {
    "every second column": (lambda k: jnp.tile(uniform(k, N, 2), (1, N // 2)), "-1, 2 apart"),
    "tiles": (lambda k: jnp.tile(uniform(k, 16, 16), (3, 3)), "16 apart"),
    "tiles of another size": (lambda k: jnp.tile(uniform(k, 20, 20), (3, 3))[:N, :N], "20 apart"),
    "transposed": (
        lambda k: (lambda v: jnp.where(jnp.tri(N) > 0, v, v.T))(uniform(k, N, N)),
        "transposed",
    ),
    "antithetic halves": (
        lambda k: (lambda v: jnp.concatenate([v, 1 - v]))(uniform(k, N // 2, N)),
        f"-2, {N // 2} apart",
    ),
    "rows reversed": (
        lambda k: (lambda v: jnp.concatenate([v, v[:, ::-1]], 1))(uniform(k, N, N // 2)),
        "mirrored",
    ),
    "every seventh element": (
        lambda k: (lambda v: v.at[::7].set(v[0]))(uniform(k, N * N)).reshape(N, N),
        "apart",
    ),
    "any order": (
        lambda k: (lambda v: jnp.concatenate([v, v[ORDER]]))(uniform(k, N * N // 2)).reshape(N, N),
        "",
    ),
    "a fifth of a row": (
        lambda k: jnp.where(
            uniform(jax.random.fold_in(k, 2), N, N) < 0.2,
            uniform(jax.random.fold_in(k, 1), N, 1),
            uniform(k, N, N),
        ),
        "",
    ),
}
ORDER = jax.random.permutation(jax.random.key(7), N * N // 2)
FAR_X = jax.random.normal(jax.random.key(1), (N, N)) * 12
WORDS = {
    "distances": "elements at a distance share noise",
    "sums": "sums of elements vary more, or less",
    "twins": "some elements tell what others are",
}
SEEN_BY = {
    "any order": ["twins"],
    "a fifth of a row": ["sums"],
    "tiles": list(WORDS),
    "every seventh element": list(WORDS),
}


@pytest.mark.crossed(1, most=3)
@pytest.mark.parametrize("fault", FAR)
def test_noise_that_comes_again_far_away_is_found(fault: str):
    noise, where = FAR[fault]

    def draw(key: Any) -> jax.Array:
        down = jnp.floor(FAR_X)
        return down + (noise(key) < FAR_X - down)

    found = verify_function(draw, FAR_X, step=1.0)
    for what in SEEN_BY.get(fault, ["distances"]):
        assert WORDS[what] in found.verdict
    failed = [t for t in found.tests if not t.passed]
    assert any(where in t.where for t in failed)
    # Power is stated: what is twice a limit and more is not missed.
    assert all(t.visible == 2 * t.limit for t in found.tests)


def test_a_step_that_repeats_the_noise_of_the_one_before_is_found():
    def draw(key: Any) -> jax.Array:
        which = jax.random.key_data(key).sum() % 2  # two noises in all
        return jnp.floor(X + jax.random.uniform(jax.random.key(which), X.shape))

    # Half of the pairs of steps share their noise.
    assert "one step's noise comes again" in verify_function(draw, X, dtype="int8").verdict


@pytest.mark.parametrize("given", [{}, {"step": 1, "dtype": "int8"}])
def test_what_is_rounded_to_is_said_once(given: dict[str, Any]):
    with pytest.raises(ValueError, match="step=, or dtype="):
        verify_function(lambda key: X, X, **given)


# ------------------------------------------------------------------------- other people's functions


def _qwix(x: jax.Array, dtype: Any, axes: tuple[int, ...]) -> Any:
    qarray = pytest.importorskip("qwix._src.core.qarray")
    from qwix._src.core import stochastic_rounding

    def draw(key: Any) -> jax.Array:
        noise = stochastic_rounding.get_noise_fn("uniform", key, channelwise_noise_axes=axes)
        how = qarray.HowToQuantize(qtype=dtype, noise_fn=noise)
        return qarray.dequantize(qarray.quantize(x, how))

    scale = qarray.quantize(x, qarray.HowToQuantize(qtype=dtype)).scale
    return verify_function(draw, x, dtype=dtype, scale=scale)


@pytest.mark.parametrize(
    "dtype, axes, wrong",
    [
        (jnp.int8, (0,), "neighbouring elements share noise"),  # its default
        (jnp.int8, (0, 1), "beyond the largest value"),  # and goes half a step down
        (jnp.float8_e4m3fn, (0, 1), "the noise is ignored"),
    ],
)
def test_what_is_wrong_with_qwix(dtype: Any, axes: tuple[int, ...], wrong: str):
    assert wrong in _qwix(X, dtype, axes).verdict


def test_our_int8_of_the_same_tensor_is_right():
    spec = Quantization(format="int8", rounding="stochastic")
    scale = quantize(X, spec, 0).scale
    found = verify_function(
        lambda k: quantize(X, spec, k).dequantize(), X, dtype="int8", scale=scale
    )
    assert found.passed, found.verdict


# ------------------------------------------------------------------------------------- the grid


@pytest.mark.parametrize("dtype", sorted(ELEMENTS))
def test_a_step_leads_from_one_value_of_the_grid_to_the_next(dtype: str):
    element = ELEMENTS[dtype]
    up = jnp.arange(1, 128) if element.is_integer else _positive_values(jnp.dtype(dtype))
    values = np.asarray(up, np.float64)
    values = values[values <= element.max]
    between = values[:-1] + 0.25 * np.diff(values)
    grid = Grid.of(np.concatenate([between, -between]) * 0.5, 0.5, element)
    np.testing.assert_array_equal(grid.step, np.tile(np.diff(values) * 0.5, 2))
    np.testing.assert_array_equal(grid.fraction[grid.step >= TINY], 0.25)
    assert not grid.fraction[grid.step < TINY].any()  # of which float32 cannot tell
    assert not grid.clipped.any()
    assert Grid.of([element.max * 1.001, element.max], 1.0, element).clipped.tolist() == [
        True,
        False,
    ]


def _positive_values(dtype: Any) -> np.ndarray:
    dtype = jnp.dtype(dtype)
    bits = 4 if dtype.name.startswith("float4") else 8 * dtype.itemsize
    codes = np.arange(2 ** (bits - 1), dtype=np.uint8 if bits <= 8 else np.uint16)
    with np.errstate(invalid="ignore"):  # NaNs are among them
        values = codes.view(dtype).astype(np.float64)
    return np.unique(values[np.isfinite(values) & (values > 0)])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_noise_that_any_dimension_shares_is_found(axis: int):
    x = jax.random.normal(jax.random.key(1), (8, 16, 24)) * 3
    shape = tuple(1 if d == axis else n for d, n in enumerate(x.shape))
    found = verify_function(lambda key: jnp.floor(x + jax.random.uniform(key, shape)), x, step=1.0)
    assert "neighbouring elements share noise" in found.verdict
    assert f"dimension {axis - 3}" in found.verdict


def test_what_cannot_be_compared_is_an_error():
    x = jax.random.normal(jax.random.key(1), (8, 16))

    def draw(key: Any) -> jax.Array:
        return jnp.floor(x + jax.random.uniform(key, x.shape))

    with pytest.raises(ValueError, match=r"draw returns \(4, 16\), and expected .* \(8, 16\)"):
        verify_function(lambda key: draw(key)[:4], x, step=1.0)
    for expected, step in ((x.at[0].set(jnp.nan), 1.0), (x, 0.0), (x, -1.0), (x, jnp.inf)):
        with pytest.raises(ValueError, match="finite"):
            verify_function(draw, expected, step=step)
