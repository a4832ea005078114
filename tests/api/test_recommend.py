"""A recipe is recommended by what it does to the user's own program."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srjit
from srjit.api import recommend as recommending
from srjit.api.recommend import HIGH_PRECISION, Trial

W = jax.random.normal(jax.random.key(0), (32, 32)) / 6
X = jax.random.normal(jax.random.key(1), (64, 32))


def step(w, x):
    value, grads = jax.value_and_grad(lambda w: jnp.mean((x @ w - jnp.roll(x, 1, 1)) ** 2))(w)
    return w - 0.5 * grads, value


def test_the_cheapest_of_those_that_learn_as_well_is_recommended():
    names = ["int8", "nvfp4", "fp8-delayed"]
    found = srjit.recommend(step, W, X, budget=12, recipes=names, within=0.05, tolerance=1)
    assert {t.recipe for t in found.trials} == {*names, HIGH_PRECISION}
    losses = {t.recipe: t.loss for t in found.trials}
    best = min(loss for name, loss in losses.items() if name in names)
    good = {name for name in names if losses[name] <= 1.05 * best}
    assert found.recipe is not None and found.recipe.name in good
    bits = {t.recipe: t.bits for t in found.trials}
    assert bits[found.recipe.name] == min(bits[name] for name in good)
    plain = next(t for t in found.trials if t.recipe == HIGH_PRECISION)
    assert plain.losses[0] == pytest.approx(float(step(W, X)[1]), rel=1e-6)
    assert plain.losses[-1] < plain.losses[0]  # it went on with what it learned
    assert not W.is_deleted()
    assert found.recipe.name in str(found)
    assert json.loads(found.to_json())["recipe"] == found.recipe.name


class Trainer:
    @srjit.srjit(static_argnums=0)
    def step(self, w, x):
        return step(w, x)


def test_a_method_goes_on_with_what_it_learned_too():
    found = srjit.recommend(Trainer().step, W, X, budget=2, recipes=["fp8-delayed"])
    plain = srjit.recommend(step, W, X, budget=2, recipes=["fp8-delayed"])
    assert [t.losses for t in found.trials] == [t.losses for t in plain.trials]


def test_costs_are_of_the_target():
    found = srjit.recommend(step, W, X, budget=1, recipes=["int8"], target="v5e")
    costs = {t.recipe: t.cost for t in found.trials}
    assert 0.5 <= costs["int8"] < 1 == costs[HIGH_PRECISION]  # one order of the products is slow


def test_data_and_losses_may_come_from_elsewhere():
    batches = []

    def advance(number, args, out):
        batches.append(number)
        return out["w"], X + number

    found = srjit.recommend(
        srjit.srjit(lambda w, x: dict(zip(("w", "loss"), step(w, x), strict=True)), recipe="fp8"),
        W,
        X,
        budget=3,
        recipes=["int8"],
        advance=advance,
        loss=lambda out: out["loss"],
    )
    assert batches == [0, 1, 2] * 2 and len(found.trials) == 2


def trial(recipe, loss, cost, bits=8.0):
    return Trial(recipe, loss, (loss,), 1.0, cost, bits, 1.0)


def recommended(trials):
    recipes = {t.recipe: srjit.recipes.get(t.recipe) for t in trials if t.recipe != HIGH_PRECISION}
    by_name = {t.recipe: t for t in trials}
    return recommending._recommended(by_name, recipes, 0.003, 0.01, 1, "cpu")


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([trial("int8", 1.0, 0.5), trial("nvfp4", 1.002, 0.25)], "nvfp4"),
        ([trial("int8", 1.0, 0.5), trial("nvfp4", 1.004, 0.25)], "int8"),
        ([trial("int8", 1.0, 1.0, 8.0), trial("nvfp4", 1.0, 1.0, 4.0)], "nvfp4"),
        ([trial("int8", -1.0, 0.5), trial("nvfp4", -0.998, 0.25)], "nvfp4"),
        ([trial("int8", float("inf"), 0.5)], None),
    ],
)
def test_which_is_recommended(trials, chosen):
    found = recommended([*trials, trial(HIGH_PRECISION, trials[0].loss, 1.0)])
    assert (found.recipe and found.recipe.name) == chosen


@pytest.mark.parametrize(
    ("loss", "plain", "chosen"),
    [
        (1.01, 1.0, "int8"),
        (1.011, 1.0, None),
        (-0.99, -1.0, "int8"),
        (-0.98, -1.0, None),
        (0.0, 0.0, "int8"),
        (1.0, float("inf"), "int8"),
    ],
)
def test_a_recipe_far_above_high_precision_is_not_recommended(loss, plain, chosen):
    worse = trial("nvfp4", loss + 1, 0.25)
    found = recommended([trial("int8", loss, 0.5), worse, trial(HIGH_PRECISION, plain, 1.0)])
    assert (found.recipe and found.recipe.name) == chosen


def test_a_recipe_that_fails_is_named_in_the_reason():
    target = jnp.roll(X, 1, 1)

    def toy(w, x):
        value, grads = jax.value_and_grad(lambda w: jnp.mean((x @ w - target) ** 2))(w)
        return w - 8 * grads, value

    found = srjit.recommend(toy, W, X, budget=48, recipes=["int4-qat"])
    assert found.recipe is None and json.loads(found.to_json())["recipe"] is None
    for part in ("the best recipe, int4-qat,", "% to high precision's", "1 % may be", "stay in"):
        assert part in found.reason
    assert srjit.recommend(toy, W, X, budget=48, recipes=["int4-qat"], tolerance=1e9).recipe


def test_a_loss_that_is_not_finite_is_null_in_json():
    found = recommended([trial("int8", float("inf"), 0.5), trial(HIGH_PRECISION, 1.0, 1.0)])
    assert found.reason == "no recipe has a finite loss: stay in high precision"
    assert json.loads(found.to_json())["trials"][1]["loss"] is None


def test_a_step_that_returns_something_else_is_explained():
    with pytest.raises(ValueError, match="pass loss="):
        srjit.recommend(lambda w, x: (w, x @ w), W, X, budget=1, recipes=["int8"])
    with pytest.raises(ValueError, match="pass advance="):
        srjit.recommend(lambda w, x: jnp.sum(x @ w), W, X, budget=1, recipes=["int8"])
    for out in ({"loss": 1.0}, (), (1.0, {"loss": 1.0}), (1.0, None)):
        with pytest.raises(ValueError, match="pass loss="):
            srjit.recommend(lambda w, x, out=out: out, W, X, budget=1, recipes=["int8"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budget": 0}, "budget=0: it is a number of steps, 1 at least"),
        ({"budget": 2.5}, "budget=2.5: it is a number of steps, 1 at least"),
        ({"within": -0.1}, "within=-0.1: it is a fraction of a loss, 0 at least"),
        ({"within": float("nan")}, "within=nan: it is a fraction of a loss, 0 at least"),
        ({"tolerance": -1}, "tolerance=-1: it is a fraction of a loss, 0 at least"),
        ({"recipes": []}, "recipes=.* one at least"),
        ({"recipes": ["int8", "int9"]}, "int9"),
    ],
)
def test_bad_input_is_explained_before_anything_runs(given, said):
    with pytest.raises(ValueError, match=said):
        srjit.recommend(pytest.fail, W, X, **given)


def test_a_single_recipe_needs_no_list():
    for one in ("int8", srjit.recipes.get("int8")):
        found = srjit.recommend(step, W, X, budget=np.int64(1), recipes=one)
        assert {t.recipe for t in found.trials} == {"int8", HIGH_PRECISION}


def rated(rate, w, x, kind="square"):
    """A step with two static arguments; parameters are its second one."""
    powers = {"square": 2}

    def loss(w):
        return jnp.mean((x @ w - jnp.roll(x, 1, 1)) ** powers[kind])

    value, grads = jax.value_and_grad(loss)(w)
    return (w - rate * grads).astype(w.dtype), value


def proceed(number, args, out):
    return args[0], out[0], *args[2:]


def test_options_of_a_decorated_step_are_kept():
    options = {"static_argnums": 0, "static_argnames": "kind", "donate_argnums": 1}
    fun = srjit.srjit(rated, recipe="fp8", params_argnums=1, target="v5e", **options)
    narrow = W.astype(jnp.bfloat16)

    def losses(name, **given):
        found = srjit.recommend(
            fun, 0.5, narrow, X, kind="square", budget=3, recipes=name, advance=proceed, **given
        )
        assert found.target == given.get("target", "v5e") and not narrow.is_deleted()
        return {t.recipe: t.losses for t in found.trials}

    def run(recipe, number):
        own = srjit.srjit(rated, recipe=recipe, params_argnums=number, static_argnums=(0, 3))
        w, out = narrow, []
        for i in range(3):
            w, value = own(0.5, w, X, "square", sr_key=jax.random.fold_in(jax.random.key(0), i))
            out.append(float(value))
        return tuple(out)

    found = losses("bf16-sr")
    assert found["bf16-sr"] == run("bf16-sr", 1) != found[HIGH_PRECISION]
    assert losses("bf16-sr", params_argnums=2)["bf16-sr"] == run("bf16-sr", 2)
    assert losses("int8", target="cpu")


def test_a_step_that_draws_no_noise_is_tried_without_a_key():
    fun = srjit.srjit(step, recipe="fp8", mode="inference")
    found = srjit.recommend(fun, W, X, budget=2, recipes="int8", tolerance=1)
    value = srjit.srjit(step, recipe="int8", mode="inference")(W, X)[1]
    assert next(t for t in found.trials if t.recipe == "int8").losses[0] == float(value)


def test_the_loss_replaces_no_argument():
    def with_rate(w, rate, x):
        return rated(rate, w, x)

    def with_name(w, name, x):
        w, value = rated(0.5, w, x)
        return w, jnp.zeros(()), value

    found = [
        srjit.recommend(fun, W, given, X, budget=4, recipes="int8")
        for fun, given in (
            (with_rate, 0.5),
            (srjit.srjit(with_rate, static_argnums=1), 0.5),
            (srjit.srjit(with_name, static_argnums=1), "square"),
        )
    ]
    found.append(srjit.recommend(step, W, X, budget=4, recipes="int8"))
    *others, want = [{t.recipe: t.losses for t in f.trials}[HIGH_PRECISION] for f in found]
    assert all(other == pytest.approx(want, rel=1e-5) for other in others)
