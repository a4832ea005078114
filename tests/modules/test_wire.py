"""Gradients of weights are added over devices as stochastically rounded codes, if a recipe asks."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import srjit
from small_programs import explain, normal
from srjit import Recipe, recipes
from srjit.products.dot import DotProduct
from srjit.products.quantized import multiply_values
from srjit.recipes import RecipeError
from srjit.targets import wire

MESH = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
W, X = normal(16, 8, seed=1), normal(32, 16)
NEAREST = recipes.get("int8").with_rounding(gradients="nearest")
EXACT = dataclasses.replace(NEAREST, reduce="exact")
LAYOUTS = {
    "copies": (P(), P("data")),
    "shards": (P("data"), P("data")),
    "both": (P(None, "model"), P("data")),
    "shards of copies": (P("model"), P(("data", "model"))),
}


def step(w: jax.Array, x: jax.Array) -> jax.Array:
    return w - jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w) ** 2))(w)


def over(name: Any, recipe: Recipe = NEAREST) -> Recipe:
    return dataclasses.replace(recipe, wire=name)


def placed(specs: Any, *args: Any, mesh: Any = MESH) -> list[jax.Array]:
    return [jax.device_put(x, NamedSharding(mesh, p)) for x, p in zip(args, specs, strict=True)]


@functools.cache
def compiled(layout: str, recipe: Recipe, layer: Any = "jaxpr") -> Any:
    fun = srjit.srjit(step, recipe=recipe, layer=layer)
    return fun.lower(*placed(LAYOUTS[layout], W, X), sr_key=0).compile()


def sent(text: str) -> dict[str, int]:
    """The bytes of arrays of more than 64 bytes that a device gives each kind of collective."""
    found: dict[str, int] = {}
    pattern = r"= (\S+|\([^)]*\)) (all-to-all|all-reduce|all-gather|reduce-scatter)\("
    for shapes, kind in re.findall(pattern, text):
        for name, dims in re.findall(r"([a-z]+\d+)\[([\d,]+)\]", shapes):
            size = int(np.prod([int(n) for n in dims.split(",")])) * int(name[1:].strip("f")) // 8
            found[kind] = found.get(kind, 0) + size
    return found


def drawn(layout: str, name: str, x: Any, count: int = 200) -> np.ndarray:
    """What rounding on the wire adds, key by key."""
    args = placed(LAYOUTS[layout], W, x)
    exact = np.asarray(compiled(layout, EXACT)(*args, sr_key=0))
    fun = compiled(layout, over(name))
    return np.stack([np.asarray(fun(*args, sr_key=key)) for key in range(count)]) - exact


CASES = [("copies", "fp8"), ("shards of copies", "bf16")]
OTHERS = [(a, b) for a in LAYOUTS for b in ("bf16", "fp8") if (a, b) not in CASES]
CROSSED = [*CASES, *(pytest.param(*each, marks=pytest.mark.nightly) for each in OTHERS)]


@pytest.mark.parametrize(("layout", "name"), CROSSED)
def test_sums_are_unbiased(layout: str, name: str):
    errors = drawn(layout, name, X)
    spread = errors.std(axis=0, ddof=1)
    size = np.abs(np.asarray(compiled(layout, EXACT)(*placed(LAYOUTS[layout], W, X), sr_key=0)))
    assert (spread > 0).mean() > 0.9  # it is rounded, and not always alike
    # Both ways: of 128 means of 200, none is beyond 6 of its standard errors; but for the order in
    # which float32 adds.
    limit = 6 * spread / np.sqrt(len(errors)) + 1e-6 * (1 + size)
    np.testing.assert_array_less(np.abs(errors.mean(axis=0)), limit)


def test_devices_draw_noise_of_their_own():
    """Parts that are all alike: the variances of their errors add up, and not the errors."""
    part = np.asarray(X[:8])
    alone = np.concatenate([part, np.zeros((24, 16), np.float32)])
    one, four = (drawn("shards", "fp8", x) for x in (alone, np.tile(part, (4, 1))))
    ratio = np.mean(four**2) / np.mean(one**2)
    # 200 times 128 squares on each side, each with a spread of at most 3 times its mean.
    assert abs(ratio / 4 - 1) < 6 * 3 * np.sqrt(2 / (200 * 128))


@pytest.mark.bits
@pytest.mark.parametrize(("layout", "name"), CROSSED)
def test_copies_are_alike_and_doors_agree(layout: str, name: str):
    args = placed(LAYOUTS[layout], W, X)
    a, b, other = (
        compiled(layout, over(name), layer)(*args, sr_key=key)
        for layer, key in (("jaxpr", 1), ("stablehlo", 1), ("jaxpr", 2))
    )
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, other)
    whole = np.asarray(a)
    for shard in a.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index])


def test_codes_are_what_devices_send():
    """A gradient of 512 bytes in float32: by fp8 a fourth of them, once or to all and back."""
    copies = sent(compiled("copies", over("fp8")).as_text())
    assert copies == {"all-to-all": 128 + 16, "all-gather": 128 + 16}  # codes, and four scales
    shards = sent(compiled("shards of copies", over("bf16")).as_text())
    assert shards == {"all-to-all": 256 + 128, "all-gather": 128 + 512}  # and the weight


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_nan_and_infinity_stay_visible(layout: str, name: str):
    args = placed(LAYOUTS[layout], W, X)
    for bad in (np.nan, np.inf):
        out = compiled(layout, over(name))(args[0], args[1].at[3, 5].set(bad), sr_key=0)
        assert not np.isfinite(np.asarray(out)).any(axis=None)


def test_one_device_sends_nothing():
    """The bits of a program that asks for nothing, whose gradient draws the same noise."""
    asks, does_not = (
        srjit.srjit(step, recipe=r)(W, X, sr_key=5)
        for r in (over("fp8", recipes.get("int8")), recipes.get("int8"))
    )
    np.testing.assert_array_equal(asks, does_not)


def test_explicit_axes_give_the_bits_of_automatic_ones():
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        args = placed(LAYOUTS["copies"], W, X, mesh=mesh)
        explicit = np.asarray(srjit.srjit(step, recipe=over("fp8"))(*args, sr_key=3))
    automatic = compiled("copies", over("fp8"))(*placed(LAYOUTS["copies"], W, X), sr_key=3)
    np.testing.assert_array_equal(explicit, automatic)


def test_what_cannot_be_sent_so_is_said():
    inside = jax.shard_map(
        lambda w, x: jax.lax.psum(step(w, x), "data"),
        mesh=MESH,
        in_specs=LAYOUTS["copies"],
        out_specs=P(),
        check_vma=False,
    )
    for fun, site in ((inside, 1), (lambda w, x: jnp.sum(x @ w), 0)):  # or differentiated outside
        (note,) = [n for n in explained(fun, over("fp8")).notes if "wire" in n]
        assert f"is not for sites {site}:" in note
    (note,) = [n for n in explained(step, over("fp8")).notes if "wire" in n]
    assert "of 1 weights" in note and "at most 6.2% of each part" in note
    tree = jax.tree.structure((X, W, (0, 0)))
    parts = wire.Parts(multiply_values, DotProduct((0, 1), (0, 2), (1, 2)), "fp8", "hash", tree)
    axes = ((("data",), ()), (("data",), ()), (), (), ((), ("data",)))
    with pytest.warns(UserWarning, match="of a 16x7 gradient are added in the program's own"):
        assert parts([(32, 16), (32, 7), (), (), (16, 7)], axes, {"data": 4}) is None


def test_so_it_is_where_nobody_knows_how_a_program_is_sharded():
    inner = srjit.srjit(step, recipe=over("fp8"))
    outer = jax.jit(lambda w, x: inner(w, x, sr_key=0))
    with pytest.warns(UserWarning, match="decorate the whole step"):
        outer.lower(*placed(LAYOUTS["copies"], W, X))


def test_so_it_is_under_vmap():
    quantized = srjit.transform(step, recipe=over("fp8"))
    each = jax.jit(jax.vmap(lambda w, key: quantized(w, X, sr_key=key)))
    with pytest.warns(UserWarning, match="put vmap inside"):
        each.lower(jnp.stack([W, W]), jax.random.split(jax.random.key(0)))


def explained(fun: Any, recipe: Recipe) -> Any:
    return explain(fun, W, X, recipe=recipe, params_argnums=0)


def test_a_recipe_says_it():
    assert Recipe.from_toml(over("fp8").to_toml()) == over("fp8")
    with pytest.raises(RecipeError, match="unknown wire 'fp4'"):
        Recipe(name="r", rules=(), wire="fp4")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="one or the other"):
        Recipe(name="r", rules=(), wire="fp8", reduce="exact")
