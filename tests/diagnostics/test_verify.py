"""``verify``: correct programs pass, and every planted defect is named."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from srjit import Certificate, Quantization, recipes, srjit, stochastic_round, targets
from srjit.jaxprs import evaluator
from srjit.numerics import random_bits, rounding, scale_layouts
from srjit.targets import operand as operands

X = jax.random.normal(jax.random.key(0), (64, 48))
W = jax.random.normal(jax.random.key(1), (48, 96)) / 7
V = jax.random.normal(jax.random.key(2), (96, 32)) / 10
Y = jax.random.normal(jax.random.key(3), (64, 32))


def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    w, v = params
    return jnp.mean((x @ w @ v - y) ** 2)  # linear between the products


def one_layer(w: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((x @ w - y) ** 2)


def verified(recipe: str, **options: Any) -> Certificate:
    """Of a step with two or three stochastic operands."""
    return srjit(jax.grad(loss), recipe=recipe).verify((W, V), X, Y, **options)


def verified_alone(recipe: str) -> Certificate:
    """Of a step with one stochastic operand."""
    return srjit(jax.grad(one_layer), recipe=recipe).verify(V, X @ W, Y)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Plants a defect in a module; what has been traced of the numerics is forgotten."""

    def plant(module: Any, name: str, defect: Any) -> None:
        monkeypatch.setattr(module, name, defect)
        operands._quantizer.cache_clear()

    yield plant
    monkeypatch.undo()
    operands._quantizer.cache_clear()


# ---------------------------------------------------------------------------- correct programs


@pytest.mark.crossed(1, most=1)
@pytest.mark.parametrize("recipe", ["int8", "fp8", "mxfp8", "nvfp4-unbiased"])
def test_a_correct_program_passes(recipe: str):
    certificate = verified(recipe)
    assert certificate.passed, str(certificate)
    assert len(certificate.operands) == (2 if recipe in ("int8", "fp8") else 3)
    assert certificate.verdict == f"unbiased to {min(o.bits for o in certificate.operands)} bits"
    assert all(o.bits >= 6 and o.saturation == 0 for o in certificate.operands)
    for averages in [*certificate.outputs.values(), *(o.averages for o in certificate.operands)]:
        assert list(averages.bits) == [1, 4, 16, 64, 256]
        assert averages.plateau is None and 0.75 < averages.slope < 1.25, str(averages)


def test_nothing_is_wrong_where_nothing_is_rounded_stochastically():
    certificate = verified("int8-qat", draws=4)
    assert certificate.operands == () and certificate.passed
    assert certificate.verdict == "nothing is rounded stochastically"
    inference = srjit(loss, recipe="int8", mode="inference").verify((W, V), X, Y, draws=4)
    assert inference.operands == ()


def adam(w: jax.Array, m: jax.Array, x: jax.Array) -> Any:
    """A step with a cast in its backward pass, a moment, and a parameter, all bfloat16."""
    g = jax.grad(lambda w: jnp.sum(jnp.tanh((x @ w).astype(jnp.float32))))(w)
    m = 0.9 * m + 0.1 * g
    return w - 0.01 * m, m


STEP = W.astype(jnp.bfloat16), 0.1 * W.astype(jnp.bfloat16), X.astype(jnp.bfloat16)
IGNORED = "the noise is ignored: every draw rounds alike, as rounding to nearest would"
EVERYTHING = dataclasses.replace(
    recipes.get("bf16-sr"), moments="stochastic", casts="stochastic", name="all that is written"
)


def test_write_backs_moments_and_casts_are_verified():
    certificate = srjit(adam, recipe=EVERYTHING, params_argnums=0).verify(*STEP)
    assert certificate.passed, str(certificate)
    kinds = [(o.role, o.kind, o.path) for o in certificate.operands]
    assert sorted(kinds)[1:] == [("update", "moment", "m"), ("update", "parameter", "w")]
    assert sorted(kinds)[0][:2] == ("cast", "gradient")
    assert all(o.format == "bfloat16" and o.bits >= 7 for o in certificate.operands)
    assert not certificate.notes
    # Averages are those of what the products are, and nothing of that is random here.
    for averages in certificate.outputs.values():
        assert set(averages.bits.values()) == {float("inf")}


def test_write_backs_come_after_the_operands_of_products():
    recipe = dataclasses.replace(recipes.get("int8"), weights="stochastic", name="both")

    def step(w: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
        return w - (0.1 * jax.grad(one_layer)(w, x, y)).astype(w.dtype)

    certificate = srjit(step, recipe=recipe).verify(V.astype(jnp.bfloat16), X @ W, Y)
    assert certificate.passed, str(certificate)
    assert [o.name for o in certificate.operands] == ["site 1 wgrad lhs", "update 0 w"]
    (averages,) = certificate.outputs.values()
    assert averages.bits[256] > averages.bits[1]  # of the gradient's noise alone


def test_fewer_than_four_draws_are_refused():
    with pytest.raises(ValueError, match="draws=3"):
        verified("int8", draws=3)


# ------------------------------------------------------------------------------ planted defects


def test_clipping_at_the_block_maximum_is_found():
    certificate = verified("nvfp4")
    assert not certificate.passed and certificate.by_design
    assert certificate.verdict.startswith("by design: 3 quantizers clip ")
    assert "as nvfp4 specifies; with scales rounded up none would" in certificate.verdict
    for operand in certificate.operands:
        assert "beyond the largest value of nvfp4" in operand.verdict
        assert 0.01 < operand.saturation < 0.1
        assert not dataclasses.replace(operand, allowed="").by_design
        shared = (*operand.wrong, "neighbouring elements share noise")
        assert not dataclasses.replace(operand, wrong=shared).by_design
        assert operand.averages.plateau is not None and operand.averages.plateau < 7.5
        inside = [t for t in operand.tests if "beyond" not in t.where]
        # Nothing else is wrong, and nothing else is said.
        assert inside and all(t.passed for t in inside)


def test_noise_that_a_row_shares_is_found(planted: Callable[..., None]):
    def shared(key: Any, like: jax.Array, rng: Any) -> jax.Array:
        column = random_bits.random_bits(key, like[..., :1], rng)
        return jnp.broadcast_to(column, like.shape)

    planted(random_bits, "random_bits", _swapped(shared))
    certificate = verified_alone("int8")
    assert "neighbouring elements share noise" in certificate.verdict
    assert "dimension -1" in certificate.verdict


def test_noise_that_comes_again_after_some_rows_is_found(planted: Callable[..., None]):
    def again(key: Any, like: jax.Array, rng: Any) -> jax.Array:
        few = random_bits.random_bits(key, like[:1, :1], rng)  # of a shape that is not replaced
        row = few + jnp.arange(like.shape[0], dtype=jnp.uint32)[:, None] % 8
        return random_bits.hash_bits((row, row), jnp.arange(like.shape[1], dtype=jnp.uint32))

    planted(random_bits, "random_bits", _swapped(again))
    verdict = verified_alone("int8").verdict
    assert "elements at a distance share noise" in verdict
    assert "neighbouring elements" not in verdict


def _swapped(defect: Callable[..., Any]) -> Callable[..., Any]:
    """The defect, which may itself call what it stands for."""
    original = random_bits.random_bits

    def random(key: Any, like: jax.Array, rng: Any = "hash") -> jax.Array:
        if like.ndim and like.shape[-1] == 1:
            return original(key, like, rng)
        return defect(key, like, rng)

    return random


@pytest.mark.parametrize("recipe", ["mxfp8", "nvfp4-unbiased"])
def test_noise_that_is_added_in_bfloat16_is_found(planted: Callable[..., None], recipe: str):
    def added(t: jax.Array, bits: jax.Array) -> jax.Array:
        noise = rounding.uniform(bits, t.dtype).astype(jnp.bfloat16)
        return jnp.floor(t.astype(jnp.bfloat16) + noise).astype(t.dtype)

    planted(rounding, "_round_units", added)
    certificate = verified_alone(recipe)
    assert not certificate.passed
    assert "biased by" in certificate.verdict


def test_noise_that_is_added_to_integers_in_bfloat16_is_found(planted: Callable[..., None]):
    def added(y: jax.Array, bits: jax.Array) -> jax.Array:
        noise = rounding.uniform(bits, y.dtype).astype(jnp.bfloat16)
        return jnp.floor(y.astype(jnp.bfloat16) + noise).astype(jnp.int32)

    planted(rounding, "round_to_integer", added)
    assert "biased by" in verified_alone("int8").verdict


def test_a_bias_of_subnormal_numbers_is_found(planted: Callable[..., None]):
    original = rounding.round_to_grid

    def biased(y: jax.Array, element: Any, bits: Any = None) -> jax.Array:
        small = jnp.abs(y) < 2.0**element.min_exponent
        return jnp.where(small, original(y, element), original(y, element, bits))

    planted(scale_layouts, "round_to_grid", biased)
    certificate = verified_alone("nvfp4-unbiased")
    assert "biased by" in certificate.verdict and "subnormal" in certificate.verdict
    failed = [t.where for t in certificate.operands[0].tests if not t.passed]
    assert not [where for where in failed if "binade" in where]


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("recipe", ["fp8", "mxfp8", "nvfp4-unbiased"])
def test_a_float_format_that_ignores_the_noise_is_found(planted: Callable[..., None], recipe: str):
    original = rounding.round_to_grid
    nearest = lambda y, element, bits=None: original(y, element)  # noqa: E731
    planted(scale_layouts, "round_to_grid", nearest)
    certificate = verified_alone(recipe)
    assert "the noise is ignored" in certificate.verdict


def test_one_key_for_two_sites_is_found(planted: Callable[..., None]):
    original = evaluator.mix
    planted(
        evaluator,
        "mix",
        lambda key, number: key if isinstance(number, int) else original(key, number),
    )
    certificate = verified("nvfp4-unbiased")
    first, second, third = certificate.operands
    assert first.passed
    assert f"its key is that of {first.name}" in second.verdict
    assert f"its key is that of {second.name}" in third.verdict
    # Also where keys are not looked at: their noise is the same.
    assert any(t.what == "sites" and not t.passed for t in second.tests)


def test_write_backs_that_share_a_key_or_ignore_it_are_found(planted: Callable[..., None]):
    original = evaluator.round_write_back
    step = srjit(adam, recipe=EVERYTHING, params_argnums=0)

    def nearest(dtype: str, rng: Any, key: Any, x: jax.Array) -> jax.Array:
        del rng, key
        return x.astype(dtype)

    planted(evaluator, "round_write_back", nearest)
    for operand in step.verify(*STEP, draws=64).operands:
        assert operand.wrong == (IGNORED,)

    def tilted(dtype: str, rng: Any, key: Any, x: jax.Array) -> jax.Array:
        """Off by a sixteenth to a thirty-second of a step."""
        return original(dtype, rng, key, x * (1 + 2.0**-12))

    planted(evaluator, "round_write_back", tilted)
    for operand in step.verify(*STEP).operands:
        assert "biased by" in operand.verdict

    planted(evaluator, "round_write_back", original)
    planted(evaluator, "mix", lambda key, number: key)
    first, second, _ = step.verify(*STEP, draws=64).operands
    assert second.wrong[0] == f"its key is that of {first.name}"


def test_a_step_that_is_not_in_the_key_is_found(planted: Callable[..., None]):
    from srjit.api import transformation

    planted(transformation, "key_words", lambda key: random_bits.as_key(7))
    certificate = verified_alone("int8")
    assert "one key serves several steps" in certificate.verdict


# --------------------------------------------------------------------------- all of a program


def _layers(ws: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    def layer(h: jax.Array, w: jax.Array) -> Any:
        return h @ w, None

    return jnp.mean((jax.lax.scan(jax.checkpoint(layer), x, ws)[0] - y) ** 2)


def test_the_iterations_of_a_loop_are_looked_at_apart():
    ws = jnp.stack([jnp.eye(48) + W[:, :48] / 4] * 6)
    certificate = srjit(jax.grad(_layers), recipe="int8").verify(ws, X, X, draws=64)
    assert certificate.passed, str(certificate)
    assert len({o.where for o in certificate.operands}) == 4
    assert any("2 more executions" in note for note in certificate.notes)
    between = [t for o in certificate.operands for t in o.tests if t.what == "sites"]
    assert len(between) == 4 * 3 // 2 * 2


def test_verifying_neither_counts_calls_nor_takes_arguments_away():
    step = srjit(jax.grad(one_layer), recipe="int8", key=jax.random.key(5), donate_argnums=0)
    given = V + 0
    first = step.verify(given, X @ W, Y, draws=4)
    assert step.calls == 0 and not given.is_deleted()
    assert first == step.verify(given, X @ W, Y, draws=4)
    assert first != step.verify(given, X @ W, Y, draws=4, sr_key=jax.random.key(6))


def test_delayed_scales_and_lowered_modules_are_verified():
    for options in ({"recipe": "fp8-delayed"}, {"recipe": "int8", "layer": "stablehlo"}):
        certificate = srjit(jax.grad(one_layer), **options).verify(V, X @ W, Y, draws=64)
        assert certificate.passed and len(certificate.operands) == 1, str(certificate)
        assert list(certificate.outputs) == ["output"]


def test_a_loss_whose_gradient_would_draw_noise_says_what_to_verify():
    certificate = srjit(one_layer, recipe="int8").verify(V, X @ W, Y, draws=4)
    assert not certificate.operands
    assert any("verify the function that differentiates it" in n for n in certificate.notes)


def test_what_a_chip_that_is_not_here_would_do_otherwise_is_said():
    step = srjit(jax.grad(one_layer), recipe="nvfp4-unbiased", target="b200")
    certificate = step.verify(V, X @ W, Y, draws=4)
    (note,) = certificate.notes
    assert "cvt.rs" in note and note.endswith("here it was rounded by the formula")
    spec = Quantization(format="nvfp4", rounding="stochastic")
    b200, h200 = targets.get("b200"), targets.get("h200")
    assert b200.noise_bits(spec) == 16 and not b200.is_attached
    assert h200.noise_bits(spec) == rounding.NOISE_BITS  # it has no such instruction


def test_an_operand_that_is_not_finite_is_no_success():
    certificate = srjit(jax.grad(one_layer), recipe="int8").verify(
        V, X @ W, Y.at[0, 0].set(jnp.nan), draws=4
    )
    assert not certificate.passed and "no element is finite" in certificate.verdict
    update = srjit(lambda p, g: p - 1e-3 * g, recipe="bf16-sr")
    w = W.astype(jnp.bfloat16)
    certificate = update.verify(w.at[3, 3].set(jnp.inf), w, draws=32)
    assert certificate.passed and "% of the elements are not finite" in certificate.notes[0]


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("tiny", [0.0, 1e-37, 1e-39])
def test_zeros_and_the_smallest_numbers_are_no_false_alarm(tiny: float):
    """The steps of bfloat16 there have no inverse in float32."""
    w = W.astype(jnp.bfloat16)
    update = srjit(lambda p, g: p - 1e-3 * g, recipe="bf16-sr")
    certificate = update.verify((w * tiny).at[0].set(w[0]), w.at[1:].set(0), draws=64)
    assert certificate.passed, certificate.verdict
    step = srjit(jax.grad(lambda w, x: jnp.mean(jax.nn.relu(x @ w)[:8] ** 2)), recipe="mxfp8")
    assert step.verify(V, X @ W, draws=64).passed


def test_what_is_on_the_grid_already_is_not_called_unbiased():
    def rounded_before(p: jax.Array, g: jax.Array) -> jax.Array:
        wide = p.astype(jnp.float32) - 1e-3 * g.astype(jnp.float32)
        return stochastic_round(wide, jnp.bfloat16, 0)

    w = W.astype(jnp.bfloat16)
    certificate = srjit(rounded_before, recipe="bf16-sr").verify(w, w, draws=8)
    assert certificate.passed and certificate.verdict.startswith("nothing to round")


# ---------------------------------------------------------------------------------- the report


def test_the_certificate_says_the_same_as_text_json_and_html():
    certificate = verified("nvfp4", draws=64)
    assert str(certificate).startswith("srjit: biased: by design: 3 quantizers clip ")
    assert "wgrad gradient" in str(certificate)
    page = certificate.to_html()
    assert page.startswith("<!doctype html>") and html.escape(certificate.verdict) in page
    told = json.loads(certificate.to_json())
    assert told["verdict"] == certificate.verdict and told["passed"] is False
    assert told["false_alarm"] == 1e-6 and told["tests"] == certificate.tests
    for operand, found in zip(told["operands"], certificate.operands, strict=True):
        assert operand["shape"] == list(found.shape)
        assert operand["averages"]["bits"]["64"] == found.averages.bits[64]
        assert [t["passed"] for t in operand["tests"]] == [t.passed for t in found.tests]


def test_every_test_has_its_share_of_the_probability_of_a_false_alarm():
    certificate = verified_alone("int8")
    (operand,) = certificate.operands
    assert certificate.tests == len(operand.tests) + 1
