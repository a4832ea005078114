"""``recipe="auto"`` quantizes what a chip's estimates say is faster so, and says what is not."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import srjit
from srjit import recipes, targets
from srjit.numerics.quantization import Quantization
from srjit.planning.profit import Candidate, Codes, not_worth
from srjit.products.dot import DotProduct

PRODUCT = DotProduct((0, 1), (1, 2), (0, 2))
SPEC = Quantization(format="int8")


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


@dataclasses.dataclass(frozen=True)
class Prices:
    """Estimates that say what they are told to."""

    plain: float
    quantized: float | None
    codes: float
    name: str = "somewhere"
    cycles_per_byte: float = 1.0

    def product(self, product: Any, shapes: Any, specs: Any) -> tuple[float, float | None]:
        return self.plain, self.quantized

    def quantization(self, size: int, spec: Quantization, in_memory: bool) -> float:
        return self.codes


def candidates(*pairs: tuple[str, str]) -> list[Candidate]:
    codes = [tuple(Codes(key, SPEC, 64, False) for key in pair) for pair in pairs]
    return [Candidate(PRODUCT, ((8, 8), (8, 8)), (a, b), 1) for a, b in codes]


def test_what_shares_codes_is_weighed_together():
    triangle = candidates(("x", "w"), ("g", "w"), ("x", "g"))
    # By itself each loses 2 * 4 to gain 6; together they lose 3 * 4 to gain 18.
    assert not_worth(triangle, Prices(10, 4, 4)) == [None] * 3
    assert all(not_worth(candidates(("x", "w")), Prices(10, 4, 4)))
    assert all(not_worth(candidates(("a", "b"), ("c", "d")), Prices(10, 4, 4)))


def test_a_branch_that_costs_more_than_it_gains_is_cut_off():
    # The fourth shares x, and needs codes of its own that cost more than it gains.
    class Dear(Prices):
        def quantization(self, size: int, spec: Quantization, in_memory: bool) -> float:
            return 100.0 if size == 65 else 4.0

    *three, fourth = candidates(("x", "w"), ("g", "w"), ("x", "g"), ("x", "big"))
    dear = Codes("big", SPEC, 65, False)
    four = [*three, dataclasses.replace(fourth, codes=(fourth.codes[0], dear))]
    reasons = not_worth(four, Dear(10, 4, 4))
    assert reasons[:3] == [None] * 3 and reasons[3] is not None
    assert "somewhere" in reasons[3] and "100 to quantize" in reasons[3]


def test_products_of_which_nothing_is_known_stay():
    (reason,) = not_worth(candidates(("x", "w")), Prices(10, None, 1))
    assert reason is not None and "nothing is known" in reason


def test_a_gain_within_the_margin_is_none():
    for quantized, kept in ((91.0, True), (89.0, False)):
        (reason,) = not_worth(candidates(("x", "w")), Prices(100, quantized, 0))
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
