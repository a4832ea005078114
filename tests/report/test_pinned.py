"""``report.pinned()`` is what ``auto`` chose, as a recipe that chooses nothing itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srjit
from srjit import Recipe, recipes, targets

V5E = targets.get("v5e")


@dataclasses.dataclass(frozen=True)
class Choosy:
    """Estimates by which products with a large enough contraction pay."""

    name: str = "choosy"
    clock: float = 1.0
    cycles_per_byte: float = 1.0
    least: int = 32

    def product(self, product: Any, shapes: Any, specs: Any) -> tuple[float, float]:
        pays = all(n >= self.least for shape in shapes for n in shape)
        return 100.0, 1.0 if pays else 1000.0

    def quantization(self, size: int, spec: Any, in_memory: bool) -> float:
        return 1.0


CHOOSY = dataclasses.replace(targets.get("cpu"), name="choosy", estimates=Choosy())
PARAMS = {"up": jnp.ones((64, 48)) / 8, "down": jnp.ones((48, 8)) / 7, "side": jnp.ones((64, 8))}
X = jax.random.normal(jax.random.key(0), (32, 64))


def step(params: Any, x: jax.Array, named: bool = True) -> Any:
    def loss(params: Any) -> jax.Array:
        with jax.named_scope("[u]p" if named else ""):
            hidden = jnp.tanh(x @ params["up"])
            out = x @ params["side"]
        with jax.named_scope("down" if named else ""):
            return jnp.sum(hidden @ params["down"] + out)

    return jax.grad(loss)(params)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
@pytest.mark.parametrize("named", [True, False])
def test_a_pinned_recipe_chooses_as_auto_did_and_gives_its_bits(named: bool, layer: Any):
    fun = lambda p, x: step(p, x, named)  # noqa: E731
    auto = srjit.srjit(fun, target=CHOOSY, layer=layer)
    report = auto.explain(PARAMS, X)
    assert {s.status for s in report.sites} == {"emulated", "kept"}
    recipe = report.pinned()
    assert recipe.pays_on == "" and Recipe.from_toml(recipe.to_toml()) == recipe
    # Here nothing is weighed.
    pinned = srjit.srjit(fun, target="cpu", recipe=recipe, layer=layer, strict=True)
    again = pinned.explain(PARAMS, X)
    assert [(s.status, s.lhs, s.rhs) for s in again.sites] == [
        (s.status, s.lhs, s.rhs) for s in report.sites
    ]
    assert again.pinned() == recipe
    for a, b in zip(
        jax.tree.leaves(auto(PARAMS, X, sr_key=3)),
        jax.tree.leaves(pinned(PARAMS, X, sr_key=3)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_gradients_outside_are_pinned_too():
    forward = srjit.srjit(lambda w, x: x @ w, target=CHOOSY)
    for w in (PARAMS["up"], PARAMS["down"]):
        report = forward.explain(w, X[:, : w.shape[0]])
        again = forward.copy(recipe=report.pinned()).explain(w, X[:, : w.shape[0]])
        rows, others = report.with_gradients, again.with_gradients
        assert [(s.status, s.rhs) for s in rows] == [(s.status, s.rhs) for s in others]


def test_what_weighs_nothing_is_pinned_as_it_is():
    report = srjit.srjit(step, recipe="int8", target="cpu").explain(PARAMS, X)
    assert report.pinned() == recipes.get("int8")
    with pytest.raises(ValueError, match="tells its recipe's name only"):
        dataclasses.replace(report, chosen=None).pinned()
