"""``recipe="auto"`` quantizes what a chip's estimates say is faster so, and says what is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import srjit
from srjit import recipes, targets
from srjit.planning.profit import Candidate, not_worth


def layer(w: Any, x: Any, ct: Any) -> Any:
    y, pullback = jax.vjp(lambda w, x: x @ w, w, x)
    return y, pullback(ct)


def shapes(tokens: int, width: int, hidden: int) -> tuple[Any, ...]:
    dims = (width, hidden), (tokens, width), (tokens, hidden)
    return tuple(jax.ShapeDtypeStruct(d, jnp.bfloat16) for d in dims)


def explained(size: tuple[int, int, int], chip: str, **options: Any) -> Any:
    return srjit.srjit(layer, target=chip, **options).explain(*shapes(*size))


@pytest.mark.parametrize("layer_of", ["jaxpr", "stablehlo"])
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e", "tpu7x"])
def test_small_products_stay_as_they_are_and_the_report_has_the_numbers(chip: str, layer_of: str):
    report = explained((256, 256, 256), chip, layer=layer_of)
    assert [s.status for s in report.sites] == ["kept"] * 3
    assert all(f"faster in high precision on {chip}: " in s.reason for s in report.sites)
    assert all("cycles" in s.reason and not s.asked for s in report.sites)
    named = explained((256, 256, 256), chip, recipe=targets.get(chip).recipe)
    assert "kept" not in [s.status for s in named.sites]


@pytest.mark.parametrize("chip", ["v5e", "v5p", "tpu7x"])
def test_large_products_are_quantized(chip: str):
    report = explained((8192, 4096, 16384), chip)
    assert "kept" not in [s.status for s in report.sites]


def test_gradients_of_a_function_are_weighed_with_it():
    forward = srjit.srjit(lambda w, x: x @ w, target="v5e")
    for size, kept in ((256, True), (8192, False)):
        args = shapes(size, size, size)[:2]
        report = forward.explain(*args)
        assert [s.status == "kept" for s in report.with_gradients] == [kept] * 3


def experts(w: Any, x: Any, ct: Any, sizes: Any) -> Any:
    y, pullback = jax.vjp(lambda w, x: jax.lax.ragged_dot(x, w, sizes), w, x)
    return y, pullback(ct)


def test_experts_are_weighed_by_the_rows_that_each_can_expect():
    def of(rows: int, width: int, hidden: int, count: int) -> Any:
        dims = (count, width, hidden), (rows, width), (rows, hidden)
        args = [jax.ShapeDtypeStruct(d, jnp.bfloat16) for d in dims]
        sizes = jax.ShapeDtypeStruct((count,), jnp.int32)
        return srjit.srjit(experts, target="v5e").explain(*args, sizes).sites

    few = of(2048, 2048, 1408, 64)
    assert [s.status for s in few] == ["kept"] * 3
    assert all(", 32 rows expected of each expert" in s.reason for s in few)
    assert [s.status for s in of(65536, 8192, 16384, 2)] == ["native"] * 3


Operand = tuple[str, float]  # by what it is shared, cycles to quantize it


def weighed(plain: float, quantized: float | None, *products: tuple[Operand, ...]) -> Any:
    return not_worth([Candidate(plain, quantized, dict(p)) for p in products], "somewhere")


def test_what_shares_codes_is_weighed_together():
    a, b, g, w, x = ((name, 4.0) for name in "abgwx")
    # By itself each loses 2 * 4 to gain 6; together they lose 3 * 4 to gain 18.
    assert weighed(10, 4, (x, w), (g, w), (x, g)) == [None] * 3
    assert all(weighed(10, 4, (x, w)))
    assert all(weighed(10, 4, (a, b), (g, w)))


def test_a_branch_that_costs_more_than_it_gains_is_cut_off():
    # The fourth shares x, and needs codes of its own that cost more than it gains.
    g, w, x = ((name, 4.0) for name in "gwx")
    reasons = weighed(10, 4, (x, w), (g, w), (x, g), (x, ("big", 100.0)))
    assert reasons[:3] == [None] * 3 and reasons[3] is not None
    assert "somewhere" in reasons[3] and "100 to quantize" in reasons[3]


def test_products_of_which_nothing_is_known_stay():
    (reason,) = weighed(10, None, (("x", 1.0), ("w", 1.0)))
    assert reason is not None and "nothing is known" in reason


def test_a_gain_within_the_margin_is_none():
    for quantized, kept in ((91.0, True), (89.0, False)):
        (reason,) = weighed(100, quantized, (("x", 0.0), ("w", 0.0)))
        assert (reason is not None) == kept


def test_a_recipe_says_where_it_pays_in_toml_too():
    recipe = dataclasses.replace(recipes.get("int8"), pays_on="v5e")
    assert recipes.Recipe.from_toml(recipe.to_toml()) == recipe
    args = shapes(256, 256, 256)
    report = srjit.srjit(layer, recipe=recipe, target="cpu").explain(*args)
    assert {s.status for s in report.sites} == {"kept"}
    with pytest.raises(ValueError, match="v5e"):
        wrong = dataclasses.replace(recipe, pays_on="v5")
        srjit.srjit(layer, recipe=wrong, target="cpu").explain(*args)
