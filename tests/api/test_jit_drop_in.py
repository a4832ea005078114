"""Whatever ``jax.jit`` takes and gives, ``srjit`` takes and gives, for the user's own arguments."""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from srjit import Compiled, Lowered, srjit
from steps import KEY, W, X, loss, same, step


def message_of(call: Callable[[], Any]) -> tuple[str, str]:
    """What an error says, without addresses in memory."""
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    return type(error.value).__name__, re.sub("0x[0-9a-f]+", "", str(error.value))


# ---------------------------------------------------------------------------------- arguments


def every_kind(a: Any, /, b: Any, *rest: Any, scale: Any = 1.0, **more: Any) -> Any:
    return (a @ b + sum(rest)) * scale, more


class Weights(NamedTuple):
    w: jax.Array
    nothing: None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Batch:
    x: jax.Array
    name: str = dataclasses.field(metadata={"static": True})


CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = {
    "every kind of parameter": (
        every_kind,
        (X, W, 1.0, X),
        {"scale": 2.0, "other": W, "list": [X]},
    ),
    "lambda": (lambda w, x: x @ w, (W, X), {}),
    "keywords only": (lambda *, w, x: x @ w, (), {"w": W, "x": X}),
    "partial": (functools.partial(every_kind, X), (W,), {"scale": 3.0}),
    "partial of keywords": (functools.partial(loss, x=X), (W,), {}),
    "named tuple and None": (lambda p, x: Weights(x @ p.w), (Weights(W), X), {}),
    "dataclass": (lambda w, b: Batch(b.x @ w, b.name), (W, Batch(X, "b")), {}),
    "nested dict": (lambda p, x: {"out": [x @ p["a"]["w"], None]}, ({"a": {"w": W}}, X), {}),
    "numpy and Python numbers": (lambda w, n, m: (w @ w * n, m), (np.asarray(W), 3, True), {}),
    "default": (lambda w, x=X: x @ w, (W,), {}),
    "nothing": (lambda: (jnp.ones(3), 4, 2.5, True, np.float32(1)), (), {}),
    "builtin": (jnp.matmul, (X, W), {}),
    "scalars": (lambda x: x + 1, (1.0,), {}),
    "identity": (lambda x: x, (2,), {}),
    "complex": (lambda w: (w + 0j) @ (w + 1j), (W,), {}),
    "zero size": (lambda w, x: x[:0] @ w, (W, X), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_return_what_jit_returns(name: str):
    """The same structure, shapes, dtypes and weak types, and nearly the same values."""
    fun, args, kwargs = CALLS[name]
    ours, jits = srjit(fun, recipe="int8")(*args, **kwargs), jax.jit(fun)(*args, **kwargs)
    assert jax.tree.structure(ours) == jax.tree.structure(jits)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(jits), strict=True):
        assert a.aval == b.aval, (a.aval, b.aval)
        np.testing.assert_allclose(a, b, rtol=0.1, atol=0.1 * float(jnp.max(jnp.abs(b), initial=1)))
    shapes = srjit(fun, recipe="int8").eval_shape(*args, **kwargs)
    assert shapes == jax.jit(fun).eval_shape(*args, **kwargs)


class Callable3:
    def __call__(self, w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ w


class Layer:
    """Methods in the way that jax.jit decorates them."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    @functools.partial(srjit, recipe="int8", static_argnums=0, params_argnums=1)
    def method(self, w: jax.Array, x: jax.Array) -> jax.Array:
        return self.scale * (x @ w)

    @classmethod
    @functools.partial(srjit, recipe="int8", static_argnums=0, params_argnums=1)
    def of_class(cls, w: jax.Array, x: jax.Array) -> jax.Array:
        return len(cls.__name__) * (x @ w)

    @staticmethod
    @srjit(recipe="int8")
    def static(w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ w


def test_methods_and_callable_objects():
    layer = Layer(2.0)
    for result, factor in (
        (layer.method(W, X), 2),
        (layer.of_class(W, X), 5),
        (Layer.of_class(W, X), 5),
        (layer.static(W, X), 1),
        (srjit(Callable3(), recipe="int8")(W, X), 1),
        (srjit(layer.method.__wrapped__, static_argnums=0, params_argnums=1)(layer, W, X), 2),
    ):
        np.testing.assert_allclose(result, factor * (X @ W), atol=0.2 * factor)
    assert layer.method.explain(layer, W, X).sites[0].rhs_kind == "weight"


BAD_CALLS: dict[str, Callable[[Any], Any]] = {
    "missing argument": lambda jit: jit(step)(W),
    "too many arguments": lambda jit: jit(step)(W, X, X),
    "unknown keyword": lambda jit: jit(step)(W, X, y=1),
    "not an array": lambda jit: jit(step)(W, "x"),
    "not an array in a tree": lambda jit: jit(lambda p: p["w"])({"w": object}),
    "unsortable keys": lambda jit: jit(lambda p: p)({1: W, "a": X}),
    "result is not an array": lambda jit: jit(lambda w: "text")(W),
    "unhashable static argument": lambda jit: jit(lambda w, n: w, static_argnums=1)(W, [1]),
    "unhashable static keyword": lambda jit: jit(lambda w, n: w, static_argnames="n")(W, n=[1]),
    "static position out of range": lambda jit: jit(step, static_argnums=5),
    "unknown static name": lambda jit: jit(step, static_argnames="zz"),
    "donated position out of range": lambda jit: jit(step, donate_argnums=(0, 7)),
    "unknown donated name": lambda jit: jit(step, donate_argnames="zz"),
    "donated and static": lambda jit: jit(step, donate_argnums=0, static_argnums=0),
    "keywords beside in_shardings": lambda jit: jit(step, in_shardings=(None, None))(W, x=X),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_are_jits_own(name: str):
    bad = BAD_CALLS[name]
    with_key = functools.partial(srjit, recipe="int8", key=KEY)
    assert message_of(lambda: bad(with_key)) == message_of(lambda: bad(jax.jit))


# ------------------------------------------------------------------------------------ options


def powers(w: jax.Array, n: int, x: jax.Array, *, flag: bool = False) -> jax.Array:
    assert type(n) is int and type(flag) is bool
    for _ in range(n):
        x = x @ w
    return -x if flag else x


@pytest.mark.parametrize(
    "options",
    [
        {"static_argnums": 1, "static_argnames": "flag"},
        {"static_argnums": (1,), "static_argnames": ("flag",)},
        {"static_argnums": -2, "static_argnames": ["flag"]},
        {"static_argnames": ("n", "flag")},
    ],
)
def test_static_arguments(options: Any):
    decorated = srjit(powers, recipe="int8", **options)
    for n in (1, 2):
        assert len(decorated.explain(W, n, X, flag=True).with_gradients) == 3 * n
        np.testing.assert_allclose(
            decorated(W, n, X, flag=True), -powers(W, n, X), rtol=0.1, atol=0.2 * 4**n
        )


@pytest.mark.parametrize("options", [{"donate_argnums": 0}, {"donate_argnums": (0,)},
                                     {"donate_argnames": "w"}])  # fmt: skip
def test_donated_buffers_are_given_away_and_the_others_kept(options: Any):
    decorated = srjit(step, recipe="int8", **options)
    w = W.copy()
    compiled = decorated.lower(w, X, sr_key=KEY).compile()
    assert compiled.memory_analysis().alias_size_in_bytes == W.nbytes
    expected = srjit(step, recipe="int8")(W, X, sr_key=KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as "donated buffers were not usable"
        result = decorated(w, X, sr_key=KEY)
    assert w.is_deleted() and not X.is_deleted()
    assert same(result, expected)


MESH = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("data", "model"))


def placed(*names: str | None) -> NamedSharding:
    return NamedSharding(MESH, PartitionSpec(*names))


SHARDINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "tuple": {"in_shardings": (placed(None, "model"), placed("data"))},
    "list": {"in_shardings": [placed(None, "model"), placed("data")]},
    "tuple with None": {"in_shardings": (None, placed("data"))},
    "one for all": {"in_shardings": placed()},
    "out": {"out_shardings": placed("model")},
    "both": {"in_shardings": (placed("data"), placed("data")), "out_shardings": placed("data")},
}


@pytest.mark.crossed(1, most=4)
@pytest.mark.parametrize("key", [KEY, 5, 2**40], ids=["typed", "integer", "wide integer"])
@pytest.mark.parametrize("name", SHARDINGS)
def test_shardings_are_those_of_jit_and_do_not_change_the_result(name: str, key: Any):
    options = SHARDINGS[name]
    decorated, plain = srjit(step, recipe="int8", **options), jax.jit(step, **options)
    result, expected = decorated(W, X, sr_key=key), plain(W, X)
    assert result.sharding.is_equivalent_to(expected.sharding, 2)
    np.testing.assert_allclose(
        result, srjit(step, recipe="int8")(W, X, sr_key=key), rtol=1e-5, atol=1e-6
    )
    compiled = decorated.lower(W, X, sr_key=key).compile()
    np.testing.assert_allclose(compiled(W, X, sr_key=key), result, rtol=1e-6)


def test_shardings_of_trees_and_beside_static_arguments():
    def fun(p: Any, n: int, x: jax.Array) -> Any:
        return {"y": x @ p["w"] * n}

    split = {"w": placed(None, "model")}
    tree = srjit(
        fun, recipe="int8", static_argnums=1,
        in_shardings=(split, placed("data")), out_shardings={"y": placed("data", "model")},
    )  # fmt: skip
    assert tree({"w": W}, 2, X)["y"].sharding == placed("data", "model")
    for static in ({"static_argnums": 1}, {"static_argnames": "n"}):
        one = srjit(fun, recipe="int8", in_shardings=placed(), **static)
        assert one({"w": W}, 2, X)["y"].sharding.device_set == set(jax.devices())


def test_a_wrong_number_of_in_shardings_is_an_error_that_explains_the_count():
    with pytest.raises(ValueError, match="in_shardings") as error:
        srjit(step, recipe="int8", in_shardings=(None,))(W, X, sr_key=KEY)
    assert any("sr_key" in note for note in error.value.__notes__)


def test_arguments_on_a_mesh_keep_their_places():
    w, x = jax.device_put(W, placed(None, "model")), jax.device_put(X, placed("data"))
    expected = srjit(step, recipe="int8")(W, X, sr_key=3)
    result = srjit(step, recipe="int8")(w, x, sr_key=3)
    assert result.sharding.is_equivalent_to(jax.jit(step)(w, x).sharding, 2)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_keep_unused_keeps_the_key_and_the_arguments():
    unused = srjit(lambda w, x, y: x @ w, recipe="int8", keep_unused=True).lower(W, X, X)
    pruned = srjit(lambda w, x, y: x @ w, recipe="int8").lower(W, X, X)
    count = lambda lowered: lowered.as_text().split("->")[0].count("%arg")  # noqa: E731
    assert count(unused) == 4  # with the key, as a user asked
    assert count(pruned) == 2


def test_inline_and_compiler_options_and_device_come_through():
    for inline in (True, False):
        ours = srjit(lambda w, x: x @ w, recipe="int8", inline=inline, mode="inference")
        jits = jax.jit(lambda w, x: x @ w, inline=inline)
        ours, jits = (str(jax.make_jaxpr(f)(W, X)).count("name=<lambda>") for f in (ours, jits))
        assert ours == jits
    with pytest.raises(Exception, match="no_such_option"):
        srjit(loss, recipe="int8", compiler_options={"no_such_option": True})(W, X)


# -------------------------------------------------------------------------------------- stages


def test_lowered_and_compiled_are_called_as_the_function_is():
    decorated = srjit(step, recipe="int8")
    lowered = decorated.lower(W, x=X, sr_key=KEY)
    compiled = lowered.compile()
    assert isinstance(lowered, Lowered) and isinstance(compiled, Compiled)
    for key in (KEY, jax.random.key(9)):
        assert same(compiled(W, x=X, sr_key=key), decorated(W, X, sr_key=key))
    assert "stablehlo" in lowered.as_text() and compiled.cost_analysis()["flops"] > 0
    assert same(decorated.trace(W, X, sr_key=KEY).lower().compile()(W, X, sr_key=KEY), compiled(
        W, x=X, sr_key=KEY
    ))  # fmt: skip


def test_a_program_lowered_with_an_integer_takes_every_integer():
    decorated = srjit(step, recipe="int8")
    compiled = decorated.lower(W, X, sr_key=0).compile()
    for number in (0, -5, 2**40, np.int64(2**40), np.uint8(3), jnp.int32(-5)):
        assert same(compiled(W, X, sr_key=number), decorated(W, X, sr_key=number))


def test_a_program_lowered_without_a_key_takes_one_if_it_draws_noise():
    drawing = srjit(step, recipe="int8").lower(W, X).compile()
    assert same(drawing(W, X, sr_key=KEY), srjit(step, recipe="int8")(W, X, sr_key=KEY))
    for bad, match in (
        ({}, "call it with sr_key="),
        ({"sr_key": 3}, "lowered for a typed PRNG key"),
    ):
        with pytest.raises(TypeError, match=match):
            drawing(W, X, **bad)
    forward = srjit(loss, recipe="int8").lower(W, X).compile()
    assert same(forward(W, X), srjit(loss, recipe="int8")(W, X))
    inference = srjit(loss, recipe="int8", mode="inference").lower(W, X).compile()
    assert same(inference(W, X), forward(W, X))
    with pytest.raises(TypeError, match="takes no sr_key"):
        inference(W, X, sr_key=KEY)


def test_shapes_will_do_in_place_of_arrays():
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (W, X)]
    key = jax.eval_shape(lambda: jax.random.key(0))
    decorated = srjit(step, recipe="int8")
    compiled = decorated.lower(*shapes, sr_key=key).compile()
    assert same(compiled(W, X, sr_key=KEY), decorated(W, X, sr_key=KEY))
    assert decorated.eval_shape(*shapes) == jax.eval_shape(step, *shapes)
    assert decorated.explain(*shapes) == decorated.explain(W, X)
    out = decorated.rewritten(*shapes).out_avals
    assert [(a.shape, a.dtype) for a in out] == [(W.shape, W.dtype)]


def test_clear_cache_makes_the_next_call_trace_again():
    traced = []

    def noticed(w: jax.Array) -> jax.Array:
        traced.append(1)
        return w @ w

    for options in ({}, {"in_shardings": placed()}):
        traced.clear()
        decorated = srjit(noticed, recipe="int8", **options)
        decorated(W)
        decorated(W)
        decorated.clear_cache()
        decorated(W)
        assert len(traced) == 2


# ------------------------------------------------------------------------------- what survives


def test_scopes_effects_and_callbacks_survive(capfd: pytest.CaptureFixture[str]):
    seen: list[float] = []

    def fun(w: jax.Array, x: jax.Array) -> jax.Array:
        with jax.named_scope("my_layer"):
            y = x @ w
        jax.debug.print("sum {s:.1f}", s=x.sum() * 0 + 1.5)
        io_callback(lambda v: seen.append(float(v)), None, y[0, 0], ordered=True)
        io_callback(lambda v: seen.append(float(v)), None, y[0, 1], ordered=True)
        size = jax.pure_callback(lambda a: np.float32(a.size), jax.ShapeDtypeStruct((), "f4"), y)
        return y * size

    decorated = srjit(fun, recipe="int8")
    result = decorated(W, X)
    jax.effects_barrier()
    assert capfd.readouterr().out == "sum 1.5\n"
    np.testing.assert_allclose(seen, result[0, :2] / result.size, rtol=1e-5)
    assert decorated.explain(W, X).sites[0].path == "my_layer"
    assert "my_layer" in decorated.lower(W, X).as_text(debug_info=True)


def test_closures_are_captured_when_first_traced_as_under_jit():
    scale = jnp.float32(2.0)
    decorated = srjit(lambda w: (w @ w) * scale, recipe="int8")
    np.testing.assert_allclose(decorated(W), 2 * (W @ W), atol=1.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_of_results_are_those_of_jit(dtype: str):
    w, x = W.astype(dtype), X.astype(dtype)
    result = srjit(step, recipe="int8")(w, x, sr_key=KEY)
    assert result.aval == jax.jit(step)(w, x).aval
