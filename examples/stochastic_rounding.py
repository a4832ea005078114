"""Four plots of what stochastic rounding does; docs/stochastic_rounding.md has the text to them.

    python examples/stochastic_rounding.py --out plots

A pool that is filled by teaspoons and measured in gallons; mean and variance of a rounded number;
the error of sums that grow; and a small network with bfloat16 weights.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jax import lax

import srjit

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # after the choice of what draws

RUNS = 64
NEAREST, STOCHASTIC = "tab:red", "tab:blue"
TEASPOONS = 768  # to a gallon


def pool(gallons: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The level after every teaspoon, in whole gallons: to nearest, and in RUNS random runs."""
    keys = keys_of(seed, gallons * TEASPOONS)

    def pour(levels: Any, key: jax.Array) -> Any:
        nearest, runs = (level.astype(jnp.float32) + 1 / TEASPOONS for level in levels)
        runs = srjit.stochastic_round(runs, "int8", key)
        return (jnp.rint(nearest).astype(jnp.int8), runs), (jnp.rint(nearest), runs)

    start = jnp.int8(0), jnp.zeros(RUNS, jnp.int8)
    _, levels = jax.jit(lambda keys: lax.scan(pour, start, keys))(keys)
    return np.asarray(levels[0]), np.asarray(levels[1])


def moments(xs: np.ndarray, seed: int = 0, draws: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every x, rounded to an integer many times."""
    copies = jnp.broadcast_to(jnp.asarray(xs, jnp.float32), (draws, len(xs)))
    rounded = np.asarray(srjit.stochastic_round(copies, "int8", jax.random.key(seed)), np.float64)
    return rounded.mean(0), rounded.var(0)


def errors_of_sums(ns: list[int], seed: int = 0) -> np.ndarray:
    """The root mean squared error of sums of the first n of many copies of 0.3, rounded each."""
    copies = jnp.full((RUNS, max(ns)), 0.3)
    rounded = np.asarray(srjit.stochastic_round(copies, "int8", jax.random.key(seed)))
    sums = np.cumsum(rounded, axis=1, dtype=np.int64)[:, np.asarray(ns) - 1]
    return np.sqrt(np.mean((sums - 0.3 * np.asarray(ns)) ** 2, axis=0))


def loss_fn(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """The loss of a network with one hidden layer."""
    return jnp.mean((jnp.tanh(x @ params["up"]) @ params["down"] - y) ** 2)


def train_step(params: Any, x: jax.Array, y: jax.Array) -> Any:
    """One step of gradient descent, in the dtype of the parameters."""
    loss, grads = jax.value_and_grad(loss_fn)(params, x, y)
    return jax.tree.map(lambda p, g: p - 0.01 * g.astype(p.dtype), params, grads), loss


def training(steps: int, seed: int = 0) -> dict[str, np.ndarray]:
    """The loss of every step, for each way to hold and to update the weights."""
    keys = jax.random.split(jax.random.key(seed), 5)
    teacher, start = (
        {"up": jax.random.normal(up, (16, 32)), "down": jax.random.normal(down, (32, 4))}
        for up, down in (keys[:2], keys[2:4])
    )
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), start)
    x = jax.random.normal(keys[4], (256, 16)) / 4
    y = jnp.tanh(x @ teacher["up"]) @ teacher["down"]
    plain, stochastic = jax.jit(train_step), srjit.srjit(train_step, recipe="bf16-sr")
    ways = {
        "float32": (start, lambda p, _: plain(p, x, y)),
        "bfloat16, nearest": (narrow, lambda p, _: plain(p, x, y)),
        "bfloat16, stochastic": (narrow, lambda p, key: stochastic(p, x, y, sr_key=key)),
    }
    losses: dict[str, np.ndarray] = {}
    for name, (params, step_of) in ways.items():
        seen = []
        for key in keys_of(seed, steps):
            params, loss = step_of(params, key)
            seen.append(loss)
        losses[name] = np.asarray(seen)
    return losses


def keys_of(seed: int, steps: int) -> jax.Array:
    """A key for every step of a run."""
    return jax.vmap(lambda step: jax.random.fold_in(jax.random.key(seed), step))(jnp.arange(steps))


def draw(steps: int, seed: int) -> Any:
    """The figure."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    (a, b), (c, d) = axes

    nearest, runs = pool(8, seed)
    teaspoons = np.arange(1, len(nearest) + 1)
    a.plot(teaspoons, runs[:, :8], color=STOCHASTIC, alpha=0.3, linewidth=0.8)
    a.plot(teaspoons, runs.mean(1), color=STOCHASTIC, label=f"stochastic, mean of {RUNS} runs")
    a.plot(teaspoons, nearest, color=NEAREST, label="nearest")
    a.plot(teaspoons, teaspoons / TEASPOONS, "k:", label="what was poured")
    a.set(title="A pool, in whole gallons", xlabel="teaspoons", ylabel="level")

    xs = np.linspace(0, 2, 81)
    mean, variance = moments(xs, seed)
    b.plot(xs, np.rint(xs), color=NEAREST, label="nearest")
    b.plot(xs, mean, ".", color=STOCHASTIC, label="stochastic, mean")
    b.plot(xs, variance, ".", color="tab:cyan", label="stochastic, variance")
    b.plot(xs, xs % 1 * (1 - xs % 1), "k:", label="p(1 − p)")
    b.set(title="x, rounded to an integer", xlabel="x")

    ns = [4**k for k in range(1, 9)]
    c.loglog(ns, 0.3 * np.asarray(ns), "o-", color=NEAREST, label="nearest: 0.3 N")
    c.loglog(ns, errors_of_sums(ns, seed), "o", color=STOCHASTIC, label="stochastic")
    c.loglog(ns, np.sqrt(0.21 * np.asarray(ns)), "k:", label="√(0.21 N)")
    c.set(title="The error of N copies of 0.3, on integers", xlabel="N")

    styles = {"float32": "k:", "bfloat16, nearest": NEAREST, "bfloat16, stochastic": STOCHASTIC}
    for name, losses in training(steps, seed).items():
        d.semilogy(losses, styles[name], label=name)
    d.set(title="Training with bfloat16 weights", xlabel="step", ylabel="loss")

    for axis in axes.flat:
        axis.legend(fontsize="small")
    return figure


def main() -> None:
    """Writes the figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("plots"))
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same plots")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "stochastic_rounding.png"
    draw(args.steps, args.seed).savefig(path, dpi=80)
    print(path)


if __name__ == "__main__":
    main()
