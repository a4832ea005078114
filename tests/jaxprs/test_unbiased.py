"""Averages of a decorated step's gradients converge to the gradients without the rounding."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srjit import Quantization, recipes, transform

DRAWS = 1024
BATCH = 64  # draws of one call
RECIPES = ("int8", "int8-channel", "int4", "fp8", "mxfp8", "mxfp4", "nvfp4-unbiased", "nvfp4-eden")


def _params() -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(s) / 8, jnp.float32) for s in ((64, 96), (96, 48))]


def _batch() -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((80, 64), (80, 48)))


def _loss(params: list[jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
    # Linear between the products: noise of one may not bias what the next makes of it.
    return jnp.mean((x @ params[0] @ params[1] - y) ** 2)


def _without_noise(role: str, kind: str, q: Quantization) -> Quantization:
    return dataclasses.replace(q, rounding="none") if q.rounding == "stochastic" else q


def _bits(recipe: str, draws: tuple[int, ...]) -> dict[int, np.ndarray]:
    """-1/2 log2 of the relative squared error of averages of so many draws, for each gradient."""
    exact = recipes.get(recipe).map_quantizations(_without_noise)
    reference = transform(jax.grad(_loss), recipe=exact)(_params(), *_batch())
    drawn = transform(jax.grad(_loss), recipe=recipe)

    @jax.jit
    def some(first: int) -> list[jax.Array]:
        steps = first + jnp.arange(BATCH, dtype=jnp.int32)
        return jax.vmap(lambda k: drawn(_params(), *_batch(), sr_key=k))(steps)

    batches = [some(first) for first in range(0, max(draws), BATCH)]
    gradients = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    found: dict[int, np.ndarray] = {}
    for count in draws:
        errors = [
            np.sum((g[:count].mean(0, np.float64) - r) ** 2) / np.sum(np.float64(r) ** 2)
            for g, r in zip(gradients, reference, strict=True)
        ]
        found[count] = -0.5 * np.log2(errors)
    return found


@pytest.mark.crossed(1, most=2)
@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_averaging_gains_one_bit_for_every_factor_of_four(recipe: str) -> None:
    draws = (1, 4, 16, 64, 256, DRAWS)
    found = _bits(recipe, draws)
    # Of n independent errors the relative standard deviation of their mean square is at most
    # sqrt(2/n'), n' the number of independent ones: elements of a product share the noise of a row
    # of the cotangent, so rows count. Five deviations of log2, for each of the two points.
    rows = min(p.shape[1] for p in _params())
    margin = 2 * 5 * 0.5 * np.sqrt(2 / rows) / np.log(2)
    for i, _ in enumerate(_params()):
        gained = found[DRAWS][i] - found[1][i]
        assert abs(gained - 5) < margin, (recipe, i, {k: v[i] for k, v in found.items()})
        late = found[DRAWS][i] - found[64][i]
        assert abs(late - 2) < margin, (recipe, i, {k: v[i] for k, v in found.items()})


@pytest.mark.slow
def test_nvfp4_as_published_reaches_a_plateau() -> None:
    found = _bits("nvfp4", (1, 64, DRAWS))
    gained = found[DRAWS] - found[64]
    assert np.all(gained < 1.7), found  # two bits without its clipped block maxima


@pytest.mark.crossed(1)
@pytest.mark.parametrize("target", ["cpu", "b200"])
@pytest.mark.parametrize("recipe", ["nvfp4", "nvfp4-4over6", "nvfp4-eden", "mxfp4"])
def test_small_gradients_keep_their_relative_error(recipe: str, target: str) -> None:
    gradient = jax.jit(jax.grad(lambda params, size, *batch: size * _loss(params, *batch)))
    rounded = jax.jit(transform(gradient, recipe=recipe, target=target))
    errors: list[float] = []
    for size in (1.0, 1e-3, 1e-6, 1e-9, 1e-12):
        got = rounded(_params(), size, *_batch(), sr_key=3)
        exact = gradient(_params(), size, *_batch())
        off = sum(float(jnp.sum(((g - e) / size) ** 2)) for g, e in zip(got, exact, strict=True))
        errors.append((off / sum(float(jnp.sum((e / size) ** 2)) for e in exact)) ** 0.5)
    # Which of their neighbours values go to differs with the size, unless it is a power of two.
    assert 0.05 < errors[0] < 0.5
    assert errors == pytest.approx([errors[0]] * len(errors), rel=0.1)
