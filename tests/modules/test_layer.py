"""``layer="stablehlo"``: the decorator, rewriting what JAX lowers; the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import srjit
from steps import KEY, W, X, loss, same, step

RECIPES = [name for name in srjit.recipes.names() if "delayed" not in name]


def both(fun: Callable[..., Any], **options: Any) -> tuple[Any, Any]:
    """What one function is through both doors."""
    options = {"recipe": "int8", **options}
    return srjit.srjit(fun, **options), srjit.srjit(fun, layer="stablehlo", **options)


@pytest.mark.crossed(1, most=3)
@pytest.mark.parametrize("recipe", RECIPES)
def test_both_layers_compute_the_same_bits(recipe: str):
    by_jaxpr, by_module = both(step, recipe=recipe)
    for key in (KEY, 3, 2**40) if recipe == "int8" else (3,):  # each kind of key is a program
        assert same(by_module(W, X, sr_key=key), by_jaxpr(W, X, sr_key=key))


def test_delayed_scales_are_the_same_state():
    by_jaxpr, by_module = both(step, recipe="fp8-delayed")
    states = [f.init_state(W, X) for f in (by_jaxpr, by_module)]
    for key in range(3):
        x = X * 2**key
        results, states = zip(
            *[
                f(W, x, sr_key=key, sr_state=state)
                for f, state in zip((by_jaxpr, by_module), states, strict=True)
            ],
            strict=True,
        )
        assert same(*results)
        assert same(*states)
    with pytest.raises(TypeError, match="has delayed scales"):
        by_module(W, X, sr_key=0)


def looping(w: jax.Array, x: jax.Array) -> jax.Array:
    def layers(w: jax.Array) -> jax.Array:
        body = jax.checkpoint(lambda c, _: (jnp.tanh(c @ w), None))
        return lax.scan(body, x, length=3)[0].sum()

    return jax.grad(layers)(w)


def branching(w: jax.Array, x: jax.Array) -> jax.Array:
    chosen = lax.cond(x.sum() > 0, lambda: jax.grad(loss)(w, x), lambda: jax.grad(loss)(w, -2 * x))
    return jax.jit(step)(w, x) + chosen


def experts(w: jax.Array, x: jax.Array) -> jax.Array:
    sizes = jnp.array([1, 3])
    return jax.grad(lambda w: (lax.ragged_dot(x, jnp.stack([w, w * 2]), sizes) ** 2).sum())(w)


@pytest.mark.parametrize("program", [looping, branching, experts])
def test_control_flow_and_ragged_products_compute_the_same_bits(program: Callable[..., Any]):
    by_jaxpr, by_module = both(program)
    assert same(by_module(W, X, sr_key=3), by_jaxpr(W, X, sr_key=3))
    explained = [(s.site.role, s.lhs, s.rhs) for s in by_jaxpr.explain(W, X).sites]
    assert [(s.site.role, s.lhs, s.rhs) for s in by_module.explain(W, X).sites] == explained


def test_it_works_inside_another_jit_and_twice_in_one():
    by_jaxpr, by_module = both(step)

    @jax.jit
    def outer(w: jax.Array, x: jax.Array, key: jax.Array) -> jax.Array:
        w = by_module(w, x, sr_key=key)
        return lax.fori_loop(0, 2, lambda i, w: by_module(w, x, sr_key=jnp.uint32(i)), w)

    expected = by_jaxpr(W, X, sr_key=KEY)
    for i in range(2):
        expected = by_jaxpr(expected, X, sr_key=i)
    assert same(outer(W, X, KEY), expected)


def test_arrays_of_an_enclosing_jit_may_be_captured():
    def outer(w: jax.Array, x: jax.Array, layer: Any) -> jax.Array:
        return srjit.srjit(lambda w: step(w, x), recipe="int8", layer=layer)(w, sr_key=1)

    def capturing(w: jax.Array, x: jax.Array, layer: Any) -> jax.Array:
        return srjit.srjit(lambda x: x @ w, recipe="int8", layer=layer)(x, sr_key=1)

    for program in (outer, capturing):
        results = [jax.jit(program, static_argnums=2)(W, X, la) for la in ("jaxpr", "stablehlo")]
        assert same(*results)


def test_what_is_captured_of_an_enclosing_jit_is_a_constant_beside_parameters():
    reports: list[str] = []

    @jax.jit
    def outer(w: jax.Array, x: jax.Array, tableau: jax.Array) -> None:
        for layer in ("jaxpr", "stablehlo"):
            options: dict[str, Any] = {"recipe": "int8", "mode": "inference", "layer": layer}
            f = srjit.srjit(lambda w, x: tableau @ (x @ w), **options)
            reports.append(str(f.explain(w, x)))

    outer(W, X, X @ X.T)
    assert reports[0] == reports[1] and "a constant beside its parameters" in reports[1]


def test_what_cannot_be_differentiated_or_batched_says_what_to_do():
    _, by_module = both(step)
    to_do = "inside of the decorated function, or use layer='jaxpr'"
    for derivative in (
        lambda: jax.grad(lambda w: by_module(w, X, sr_key=0).sum())(W),
        lambda: jax.jvp(lambda w: by_module(w, X, sr_key=0), (W,), (W,)),
        lambda: jax.jit(jax.grad(lambda w: by_module(w, X, sr_key=0).sum()))(W),
    ):
        with pytest.raises(NotImplementedError, match=f"step .*layer='stablehlo'.*{to_do}"):
            derivative()
    with pytest.raises(NotImplementedError, match=f"no longer batch it with vmap.*{to_do}"):
        jax.vmap(lambda x: by_module(W, x, sr_key=0))(X[None])


def test_ordered_callbacks_stay_in_order_around_and_inside(capfd: pytest.CaptureFixture[str]):
    def printing(w: jax.Array, x: jax.Array) -> jax.Array:
        jax.debug.print("in", ordered=True)
        w = step(w, x)
        jax.debug.print("unordered")
        jax.debug.print("out {}", w.shape[0], ordered=True)
        return jax.pure_callback(lambda w: np.asarray(w) * 2, w, w)

    _, by_module = both(printing)

    @jax.jit
    def outer(w: jax.Array, x: jax.Array) -> jax.Array:
        jax.debug.print("before", ordered=True)
        w = by_module(w, x, sr_key=1)
        jax.debug.print("between", ordered=True)
        w = by_module(w, x, sr_key=2)
        jax.debug.print("after", ordered=True)
        return w

    result = outer(W, X)
    jax.effects_barrier()
    assert same(result, by_module(by_module(W, X, sr_key=1), X, sr_key=2))
    jax.effects_barrier()
    printed = [line for line in capfd.readouterr().out.split("\n") if line != "unordered"]
    inside = ["in", "out 16"]
    assert printed == ["before", *inside, "between", *inside, "after", *inside * 2, ""]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_shardings_and_donation_are_the_functions_on_eight_devices(kind: AxisType):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*s)) for s in (("d",), ()))
    x = jnp.concatenate([X] * 2)
    by_jaxpr, by_module = both(
        step, in_shardings=(whole, rows), out_shardings=whole, donate_argnums=0
    )
    w = jax.device_put(W + 0, whole)
    result = by_module(w, x, sr_key=3)
    assert w.is_deleted() and result.sharding == whole
    assert same(result, by_jaxpr(jax.device_put(W + 0, whole), x, sr_key=3))


def _sharded(fun: Callable[..., Any], check: bool) -> Callable[..., Any]:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    return jax.shard_map(
        lambda w, x: fun(w, x)[None],
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec("d")),
        out_specs=PartitionSpec("d"),
        check_vma=check,
    )


SHARDS = jnp.concatenate([X] * 8)


@pytest.mark.parametrize("check", [True, False], ids=["checked", "unchecked"])
def test_shards_inside_of_the_function_compute_the_same_bits(check: bool):
    by_jaxpr, by_module = both(_sharded(step, check))
    assert same(by_module(W, SHARDS, sr_key=1), by_jaxpr(W, SHARDS, sr_key=1))


def test_noise_inside_of_another_shard_map_is_an_error_that_says_what_to_do():
    by_jaxpr, by_module = both(step)
    with pytest.raises(NotImplementedError, match="shard_map or pmap over d, where"):
        jax.jit(_sharded(lambda w, x: by_module(w, x, sr_key=1), True))(W, SHARDS)
    by_jaxpr, by_module = both(step, mode="inference")
    results = [jax.jit(_sharded(f, True))(W, SHARDS) for f in (by_jaxpr, by_module)]
    assert same(*results)


def test_static_arguments_keywords_and_pytrees_are_the_functions():
    def fun(p: dict[str, jax.Array], x: jax.Array, *, n: int, y: Any = None) -> Any:
        return {"w": step(p["w"], x) * n, "y": y}, None

    by_jaxpr, by_module = both(fun, static_argnames="n")
    given = {"n": 2, "y": (X, [W])}
    results = [f({"w": W}, X, sr_key=1, **given) for f in (by_jaxpr, by_module)]
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    assert same(*results)


def test_parameters_are_those_that_the_decorator_is_told():
    def fun(x: jax.Array, w: jax.Array) -> jax.Array:
        return step(w, x)

    for numbers in (1, (), (0, 1)):
        by_jaxpr, by_module = both(fun, params_argnums=numbers)
        roles = [s.site.role for s in by_jaxpr.explain(X, W).sites]
        assert [s.site.role for s in by_module.explain(X, W).sites] == roles
        assert same(by_module(X, W, sr_key=1), by_jaxpr(X, W, sr_key=1))


def test_keys_are_needed_where_noise_is_drawn():
    _, by_module = both(step)
    with pytest.raises(TypeError, match="step rounds stochastically and needs a key"):
        by_module(W, X)
    counting_jaxpr, counting = both(step, key=KEY)
    assert same([counting(W, X) for _ in range(2)], [counting_jaxpr(W, X) for _ in range(2)])
    by_jaxpr, forward = both(lambda w, x: x @ w)
    assert same(forward(W, X), by_jaxpr(W, X))
    by_jaxpr, inference = both(step, mode="inference")
    assert same(inference(W, X), by_jaxpr(W, X))
    with pytest.raises(TypeError, match="takes no sr_key"):
        inference(W, X, sr_key=0)


def test_lower_compile_and_rewritten_are_the_layers():
    by_jaxpr, by_module = both(step)
    compiled = by_module.lower(W, X).compile()
    assert same(compiled(W, X, sr_key=KEY), by_jaxpr(W, X, sr_key=KEY))
    text = by_module.rewritten(W, X)
    assert text.startswith("module @jit_step") and "xi8>" in text
    assert by_module.eval_shape(W, X, sr_key=0).shape == W.shape


def test_strict_and_warnings_are_as_of_the_jaxpr_layer():
    def kept(w: jax.Array) -> jax.Array:
        return jnp.einsum("ij,jk->ik", w.astype(jnp.complex64), w.astype(jnp.complex64)).real

    def unclear(w: jax.Array, x: jax.Array) -> jax.Array:
        return lax.custom_linear_solve(lambda v: w @ v, x[0], lambda _, b: b)

    for program, args in ((kept, (W,)), (unclear, (W, X))):
        said: list[str] = []
        for function in both(program, strict=True):
            try:
                function(*args, sr_key=1)
                said.append("")
            except srjit.UnsupportedSiteError as error:
                said.append(str(error))
        assert said[0] == said[1]


def test_every_pass_is_dumped_in_order(tmp_path: Path):
    _, by_module = both(step, dump_to=tmp_path)
    for _ in range(2):
        by_module(W, X, sr_key=1)
    by_module.explain(W, X)
    assert [path.name.split(".", 2)[2] for path in sorted(tmp_path.iterdir())] == [
        "original.jaxpr",
        "dead-code-eliminated.jaxpr",
        "plan.txt",
        "plan.json",
        "lowered.mlir",
        "srjit-eliminate-dead-code.mlir",
        "srjit-annotate-matmuls.mlir",
        "srjit-insert-quantize.mlir",
        "srjit-share-quantized.mlir",
        "srjit-legalize.mlir",
        "stablehlo.mlir",
    ]
    first = next(iter(sorted(tmp_path.glob("*.lowered.mlir")))).read_text()
    assert "func.func public @main" in first and "loc(" in first


def test_jax_keeps_the_function_itself_as_it_was():
    def fun(w: jax.Array, x: jax.Array) -> jax.Array:
        return step(w, x) * 3

    for before in (True, False):
        if before:
            plain = jax.jit(fun)(W, X)
        rewritten = both(fun)[1](W, X, sr_key=1)
        assert same(jax.jit(fun)(W, X), plain) and not same(plain, rewritten)


def test_the_layer_is_a_known_one():
    with pytest.raises(ValueError, match=r"unknown layer 'stabelhlo'.*stablehlo"):
        srjit.srjit(step, layer="stabelhlo")  # type: ignore[arg-type]


def test_it_runs_where_jit_is_disabled():
    _, by_module = both(step)
    with jax.disable_jit():
        result = by_module(W, X, sr_key=1)
    assert same(result, by_module(W, X, sr_key=1))
