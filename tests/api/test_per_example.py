"""Per-example gradients: no example changes a bit of another's."""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import srjit
from srjit.recipes import Operands, Recipe, Rule

B, S, D, F = 6, 4, 16, 8
KEY = jax.random.key(0)
W = jax.random.normal(KEY, (D, F)) / 4
MLP = {"a": jax.random.normal(KEY, (D, D)) / 4, "b": W}
LAYERS = {"layers": jax.random.normal(KEY, (3, D, D)) / 4}
X = jax.random.normal(jax.random.key(1), (B, S, D))
RECIPES = ("int8", "fp8", "nvfp4", "nvfp4-4over6", "nvfp4-eden", "int8-channel")


def per_example(loss: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, x: jax.vmap(jax.grad(loss), (None, 0))(params, x)


def mlp(p: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - 1) ** 2)


def adapted(p: Any, x: jax.Array) -> jax.Array:
    """The first layer is frozen: no gradient of it shows the examples."""
    return jnp.mean((jnp.tanh(x @ lax.stop_gradient(p["a"])) @ p["b"] - 1) ** 2)


def scanned(p: Any, x: jax.Array) -> jax.Array:
    return jnp.mean(lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["layers"])[0] ** 2)


def by_hand(w: jax.Array, x: jax.Array) -> jax.Array:
    """Rows of all examples in one matrix, and examples apart in the gradient alone."""
    y = (x.reshape(-1, D) @ w).reshape(B, S, F)
    return jnp.einsum("bsd,bsf->bdf", x, jax.grad(lambda y: jnp.sum((y - 1) ** 2))(y))


def two_levels(w: jax.Array, x: jax.Array) -> jax.Array:
    grad = jax.grad(lambda w, x: jnp.mean((x @ w - 1) ** 2))
    pairs = x.reshape(B, 2, S // 2, D)
    return jax.vmap(jax.vmap(grad, (None, 0)), (None, 0))(w, pairs)


PROGRAMS: dict[str, tuple[Callable[..., Any], Any]] = {
    "one layer": (per_example(lambda w, x: jnp.mean((x @ w - 1) ** 2)), W),
    "vectors": (per_example(lambda w, x: jnp.mean((x[0] @ w - 1) ** 2)), W),
    "mlp": (per_example(mlp), MLP),
    "a frozen layer": (per_example(adapted), MLP),
    "scanned layers": (per_example(scanned), LAYERS),
    "by hand": (by_hand, W),
    "two levels": (two_levels, W),
    "examples last": (
        lambda w, x: jax.vmap(jax.grad(lambda w, x: jnp.mean((x @ w) ** 2)), (None, 2))(
            w, jnp.moveaxis(x, 0, 2)
        ),
        W,
    ),
}


def others_keep_their_bits(function: Any, params: Any, **given: Any) -> None:
    run = lambda x: jax.tree.leaves(function(params, x, sr_key=0, **given))  # noqa: E731
    before = run(X)
    for bad in (X.at[3].multiply(1e6), X.at[3, 0, 0].set(jnp.nan), X.at[3, 0, 0].set(jnp.inf)):
        pairs = [(a, b) for a, b in zip(before, run(bad), strict=True) if a.shape[:1] == (B,)]
        for a, b in pairs:  # and no histories
            rest = np.arange(B) != 3
            np.testing.assert_array_equal(np.asarray(a)[rest], np.asarray(b)[rest])
        assert not all(np.array_equal(a[3], b[3]) for a, b in pairs)


@pytest.mark.crossed(1, most=3)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("program", "recipe"),
    [(p, r) for p in PROGRAMS for r in (RECIPES if p == "mlp" else ("int8", "nvfp4"))],
)
def test_no_example_changes_the_bits_of_another(program: str, recipe: str):
    fun, params = PROGRAMS[program]
    function = srjit.srjit(fun, recipe=recipe)
    others_keep_their_bits(function, params)
    exact = jax.tree.leaves(fun(params, X))
    for got, plain in zip(jax.tree.leaves(function(params, X, sr_key=0)), exact, strict=True):
        assert jnp.linalg.norm(got - plain) <= 0.5 * jnp.linalg.norm(plain)


@pytest.mark.crossed(1)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("recipe", ["int8", "nvfp4"])
@pytest.mark.parametrize("program", ["mlp", "scanned layers"])
def test_examples_are_apart_through_both_doors(program: str, recipe: str):
    fun, params = PROGRAMS[program]
    results = [
        srjit.srjit(fun, recipe=recipe, layer=layer)(params, X, sr_key=0)
        for layer in ("jaxpr", "stablehlo")
    ]
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("recipe", ["int8", "fp8", "nvfp4"])
def test_the_numbers_are_those_of_srjit_inside_of_vmap(recipe: str):
    """But for the noise, which is drawn from other sites' numbers: so without any."""
    given = srjit.recipes.get(recipe).with_rounding(gradients="nearest")
    grad = jax.grad(mlp)
    outside = srjit.srjit(PROGRAMS["mlp"][0], recipe=given)(MLP, X, sr_key=0)
    inside = jax.vmap(srjit.srjit(grad, recipe=given), (None, 0))
    jax.tree.map(np.testing.assert_array_equal, outside, inside(MLP, X))


def test_histories_are_of_all_examples_and_scales_of_one_step_are_not():
    fun, params = PROGRAMS["mlp"]
    function = srjit.srjit(fun, recipe="fp8-delayed")
    state = function.init_state(params, X)
    others_keep_their_bits(function, params, sr_state=state)  # whose scales are dynamic
    (_, state) = function(params, X, sr_key=0, sr_state=state)
    others_keep_their_bits(function, params, sr_state=state)
    assert all(v.ndim == 1 for v in state.values())
    notes = function.explain(params, X).notes
    assert any("earlier steps" in note for note in notes)


def test_products_of_two_activations_are_apart_too():
    spec = srjit.Quantization(format="int8")
    rule = Rule(
        fprop=Operands(activation=spec, weight=spec),
        dgrad=Operands(gradient=spec, weight=spec),
        wgrad=Operands(activation=spec, gradient=spec),
    )
    recipe = Recipe(name="all", rules=(rule,))

    def attention(p: Any, x: jax.Array) -> jax.Array:
        q, k = x @ p["a"], x @ p["a"].T
        return jnp.mean((jax.nn.softmax(q @ k.T) @ x @ p["b"]) ** 2)

    function = srjit.srjit(per_example(attention), recipe=recipe)
    others_keep_their_bits(function, MLP)
    rows = function.explain(MLP, X).sites
    assert sum(r.lhs_kind == r.rhs_kind == "activation" and r.lhs is not None for r in rows) == 2


def test_convolutions_whose_examples_cannot_be_kept_apart_are_kept_and_said():
    w = jax.random.normal(KEY, (3, D, D)) / 4

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        numbers = ("NWC", "WIO", "NWC")
        return jnp.mean(
            lax.conv_general_dilated(x[None], w, (1,), "SAME", None, None, numbers) ** 2
        )

    fun = per_example(loss)
    for recipe in ("int8", "nvfp4"):
        function = srjit.srjit(fun, recipe=recipe)
        with pytest.warns(UserWarning, match="from one example to another"):
            others_keep_their_bits(function, w)
        with pytest.raises(Exception, match="from one example to another"):
            srjit.srjit(fun, recipe=recipe, strict=True)(w, X, sr_key=0)


@pytest.mark.parametrize("name", ["a batch", "experts", "attention"])
def test_batches_that_no_gradient_keeps_have_one_scale(name: str):
    experts = jax.random.normal(KEY, (B, D, F))
    losses: dict[str, tuple[Callable[..., Any], Any]] = {
        "a batch": (lambda p, x: jnp.mean(jax.vmap(lambda x: mlp(p, x))(x)), MLP),
        "experts": (lambda p, x: jnp.mean(jnp.einsum("bsd,bdf->bsf", x, p) ** 2), experts),
        "attention": (
            lambda p, x: jnp.mean(jax.nn.softmax(x @ jnp.swapaxes(x @ p, 1, 2))),
            MLP["a"],
        ),
    }
    loss, params = losses[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = srjit.srjit(jax.grad(loss), recipe="int8").explain(params, X)
    specs = [q for row in report.sites for q in (row.lhs, row.rhs) if q]
    assert specs and not any(q.apart for q in specs)
    assert not any("example" in note for note in report.notes)
