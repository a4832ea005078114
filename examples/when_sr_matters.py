"""When stochastic rounding matters: small gradients beside large ones, in one tensor.

A linear layer learns many outputs at once. One output is noise a few hundred times larger than the
others, as outlier channels are, and nothing can be learned from it; but it sets the scale of the
int8 gradient. Rounded to nearest, the gradients of all other outputs are less than half a step:
they become zero, at every step, and nothing is learned. Rounded stochastically they are right on
average, and the layer learns.

    python examples/when_sr_matters.py
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from srjit import Recipe, recipes, srjit

INPUTS, OUTPUTS, BATCH = 32, 16, 256
OUTLIER = 3000.0


def batch(step: int, truth: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inputs, and targets whose first column is large noise."""
    rng = np.random.default_rng(step)
    x = jnp.asarray(rng.standard_normal((BATCH, INPUTS)), jnp.float32)
    noise = jnp.asarray(rng.standard_normal(BATCH) * OUTLIER, jnp.float32)
    return x, (x @ truth).at[:, 0].set(noise)


def train_step(w: jax.Array, x: jax.Array, y: jax.Array, rate: float) -> jax.Array:
    """One step of gradient descent on the mean squared error."""
    loss = lambda w: 0.5 * jnp.sum((x @ w - y) ** 2) / BATCH  # noqa: E731
    return w - rate * jax.grad(loss)(w)


def learn(recipe: str | Recipe | None, steps: int, seed: int = 0) -> float:
    """The mean squared error of the learnable weights, relative to knowing nothing."""
    truth = jnp.asarray(np.random.default_rng(1).standard_normal((INPUTS, OUTPUTS)), jnp.float32)
    w = jnp.zeros_like(truth)
    plain = jax.jit(train_step)
    step_of = srjit(train_step, recipe=recipe) if recipe else None
    for step in range(steps):
        rate = 0.1 / (1 + step / 100)
        x, y = batch(step, truth)
        if step_of is None:
            w = plain(w, x, y, rate)
        else:
            w = step_of(w, x, y, rate, sr_key=seed * steps + step)
    error = (w - truth)[:, 1:]
    return float(jnp.mean(error**2) / jnp.mean(truth[:, 1:] ** 2))


def errors(steps: int) -> dict[str, float]:
    """The error of each way to round."""
    int8 = recipes.get("int8")
    ways: dict[str, str | Recipe | None] = {
        "float32": None,
        "int8, nearest gradients": int8.with_rounding(gradients="nearest"),
        "int8, stochastic gradients": int8,
    }
    return {name: learn(recipe, steps) for name, recipe in ways.items()}


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    print("error of the learnable weights (1: nothing learned)")
    for name, error in errors(parser.parse_args().steps).items():
        print(f"  {name:28s} {error:.4f}")


if __name__ == "__main__":
    main()
