"""Parameters are found wherever they stand, in any container, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from small_programs import explain, normal
from srjit import rejit, srjit

WEIGHTS = {"a": normal(16, 24, seed=1), "b": normal(24, 8, seed=2)}
X, Y, KEY = normal(6, 16, seed=3), normal(6, 8, seed=4), jax.random.key(0)
COUNT = jnp.int32(3)


def net(p: Any, x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x @ p["a"]) @ p["b"]


def loss(p: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean((net(p, x) - y) ** 2)


def step(p: Any, x: jax.Array, y: jax.Array) -> Any:
    value, grads = jax.value_and_grad(loss)(p, x, y)
    return jax.tree.map(lambda a, g: a - 0.1 * g, p, grads), value


FIRST = explain(step, WEIGHTS, X, Y)


def roles_of(report: Any) -> list[tuple[str, ...]]:
    return [(s.role, s.lhs_kind, s.rhs_kind, s.status) for s in report.sites]


# ------------------------------------------------------------------------------- ten signatures

OPTIMIZER = optax.adamw(1e-3)


def with_optimizer(count: Any, opt: Any, p: Any, batch: Any) -> Any:
    value, grads = jax.value_and_grad(loss)(p, batch["x"], batch["y"])
    updates, opt = OPTIMIZER.update(grads, opt, p)
    return count + 1, opt, optax.apply_updates(p, updates), value


def with_train_state(batch: Any, state: Any) -> Any:
    value, grads = jax.value_and_grad(loss)(state.params, *batch)
    return state.apply_gradients(grads=grads), value


class Model(nnx.Module):
    def __init__(self) -> None:
        self.a, self.b = nnx.Param(WEIGHTS["a"]), nnx.Param(WEIGHTS["b"])
        self.rngs = nnx.Rngs(0)


def with_nnx_state(graph: Any, x: Any, y: Any, state: Any) -> Any:
    def of_state(state: Any) -> Any:
        model = nnx.merge(graph, state)
        return loss({"a": model.a[...], "b": model.b[...]}, x, y)

    grads = jax.grad(of_state, allow_int=True)(state)
    moved = lambda a, g: a if g.dtype == jax.dtypes.float0 else a - 0.1 * g  # noqa: E731
    return jax.tree.map(moved, state, grads)


def with_haiku_dicts(key: Any, params: Any, bn: Any, x: Any, y: Any) -> Any:
    def of(params: Any) -> Any:
        noisy = x + 0.1 * jax.random.normal(key, x.shape)
        return loss(params["net/~/linear"], noisy / bn["net/~/norm"]["scale"], y)

    grads = jax.grad(of)(params)
    moved = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b.std(0), bn, {"net/~/norm": {"scale": x}})
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), moved


def with_keras_lists(batch: Any, trainable: Any, rest: Any, optimizer: Any) -> Any:
    def of(trainable: Any) -> Any:
        return loss(dict(zip("ab", trainable, strict=True)), *batch) + 0 * rest[0].sum()

    grads = jax.grad(of)(trainable)
    moments = [0.9 * m + 0.1 * g for m, g in zip(optimizer[1:], grads, strict=True)]
    moved = [p - 0.1 * m for p, m in zip(trainable, moments, strict=True)]
    return moved, [rest[0] + 1], [optimizer[0] + 1, *moments]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params", "step"], meta_fields=[])
@dataclasses.dataclass
class State:
    params: Any
    step: jax.Array


def with_dataclass(key: Any, x: Any, y: Any, state: State) -> Any:
    return State(step(state.params, x, y)[0], state.step + 1), key


def with_bare_arrays(x: Any, y: Any, w1: Any, w2: Any) -> Any:
    grads = jax.grad(lambda a, b: loss({"a": a, "b": b}, x, y), (0, 1))(w1, w2)
    return w1 - 0.1 * grads[0], w2 - 0.1 * grads[1]


def keyword_only(*, params: Any, x: Any, y: Any) -> Any:
    return step(params, x, y)


def gradients_alone(x: Any, y: Any, params: Any) -> Any:
    return jax.grad(loss)(params, x, y)


def several_steps(xs: Any, ys: Any, params: Any) -> Any:
    return jax.lax.scan(lambda p, batch: step(p, *batch), params, (xs, ys))


def nnx_split() -> Any:
    return nnx.split(Model())


def train_state() -> Any:
    return TrainState.create(apply_fn=net, params=WEIGHTS, tx=OPTIMIZER)


LIST = [WEIGHTS["a"], WEIGHTS["b"]]
SIGNATURES: dict[str, tuple[Callable[..., Any], Callable[[], tuple[Any, ...]]]] = {
    "key, params": (lambda key, p, x, y: (step(p, x, y), key), lambda: (KEY, WEIGHTS, X, Y)),
    "x, y, params": (lambda x, y, p: step(p, x, y), lambda: (X, Y, WEIGHTS)),
    "counter, optimizer, params, batch": (
        with_optimizer, lambda: (COUNT, OPTIMIZER.init(WEIGHTS), WEIGHTS, {"x": X, "y": Y})
    ),
    "batch, TrainState": (with_train_state, lambda: ((X, Y), train_state())),
    "NNX state last": (
        lambda x, y, state: with_nnx_state(nnx_split()[0], x, y, state),
        lambda: (X, Y, nnx_split()[1]),
    ),
    "haiku's dicts": (
        with_haiku_dicts,
        lambda: (KEY, {"net/~/linear": WEIGHTS}, {"net/~/norm": {"scale": X[0] ** 2 + 1}}, X, Y),
    ),
    "Keras's lists": (
        with_keras_lists, lambda: ((X, Y), LIST, [X[0]], [COUNT, *map(jnp.zeros_like, LIST)])
    ),
    "a dataclass": (with_dataclass, lambda: (KEY, X, Y, State(WEIGHTS, COUNT))),
    "bare arrays": (with_bare_arrays, lambda: (X, Y, *LIST)),
    "gradients alone": (gradients_alone, lambda: (X, Y, WEIGHTS)),
    "several steps": (several_steps, lambda: (X[None], Y[None], WEIGHTS)),
}  # fmt: skip


@pytest.mark.crossed(1)
@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
@pytest.mark.parametrize("name", SIGNATURES)
def test_coverage_does_not_depend_on_where_parameters_stand(name: str, layer: str):
    fun, args = SIGNATURES[name]
    report = explain(fun, *args(), layer=layer)
    assert report.coverage() == FIRST.coverage() == 1
    assert roles_of(report) == roles_of(FIRST)


def test_parameters_by_keyword_are_found():
    report = srjit(keyword_only, recipe="int8").explain(x=X, y=Y, params=WEIGHTS)
    assert roles_of(report) == roles_of(FIRST)
    assert any(n.startswith("parameters: params: the step updates it") for n in report.notes)


def test_parameters_of_a_method_with_a_static_self_are_found():
    class Trainer:
        @functools.partial(srjit, recipe="int8", static_argnums=0)
        def step(self, p: Any, x: Any, y: Any) -> Any:
            return step(p, x, y)

    report = Trainer.step.explain(Trainer(), WEIGHTS, X, Y)
    assert roles_of(report) == roles_of(FIRST)


def test_the_bits_are_those_of_parameters_first():
    first, _ = srjit(step, recipe="int8")(WEIGHTS, X, Y, sr_key=1)
    last, _ = srjit(lambda x, y, p: step(p, x, y), recipe="int8")(X, Y, WEIGHTS, sr_key=1)
    assert all((first[k] == last[k]).all() for k in first)


# ------------------------------------------------------------------------------------- saying so


@pytest.mark.parametrize(
    "options",
    [{"params_argnums": 1}, {"params_argnums": (-3,)}, {"params_argnames": "p"},
     {"params_argnums": [], "params_argnames": ["p"]}],
)  # fmt: skip
def test_parameters_can_be_named_by_position_and_by_name(options: Any):
    def swapped(key: Any, p: Any, x: Any, y: Any) -> Any:
        return step(p, x, y), key

    assert roles_of(explain(swapped, KEY, WEIGHTS, X, Y, **options)) == roles_of(FIRST)


def test_what_is_named_is_all_there_is():
    (first, second, *_) = explain(step, WEIGHTS, X, Y, params_argnames="x").sites
    assert (first.lhs_kind, first.rhs_kind) == ("weight", "activation")
    assert second.reason.startswith("product of two activations")


# ------------------------------------------------------------------------- frozen beside trained

BASE = {"w": normal(16, 16, seed=5)}
LORA = {"a": normal(16, 4, seed=6), "b": normal(4, 16, seed=7)}


def lora(factors: Any, w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ w + x @ factors["a"] @ factors["b"]) ** 2)


def merged(factors: Any, w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ (w + factors["a"] @ factors["b"])) ** 2)


def under_a_head(head: Any, base: Any, x: jax.Array) -> jax.Array:
    return jnp.mean((jnp.tanh(x @ base["w"]) @ head["a"]) ** 2)


FROZEN: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "LoRA": (lambda lo, base, x: jax.grad(lora)(lo, base["w"], x), (LORA, BASE, X)),
    "LoRA, the base a bare array": (jax.grad(lora), (LORA, BASE["w"], X)),
    "LoRA, the base first": (lambda w, x, lo: jax.grad(lora)(lo, w, x), (BASE["w"], X, LORA)),
    "LoRA, merged": (jax.grad(merged), (LORA, BASE["w"], X)),
    "a frozen body under a head": (jax.grad(under_a_head), ({"a": LORA["a"]}, BASE, X)),
    "a teacher": (
        lambda p, teacher, x: jax.grad(lambda p: loss(p, x, net(teacher, x)))(p),
        (WEIGHTS, jax.tree.map(jnp.negative, WEIGHTS), X),
    ),
    "an attack": (lambda p, x: x + jnp.sign(jax.grad(loss, 1)(p, x, Y)), (WEIGHTS, X)),
    "forces": (lambda x, p: -jax.grad(lambda x: net(p, x).sum())(x), (X, WEIGHTS)),
}


@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_weight_is_a_weight(name: str):
    fun, args = FROZEN[name]
    report = explain(fun, *args)
    assert report.coverage() == 1
    assert all("weight" in (s.lhs_kind, s.rhs_kind) for s in report.sites if s.role != "wgrad")


def test_data_that_multiplies_is_no_frozen_weight():
    """The adjacency matrix of a graph."""

    def graph(p: Any, adjacency: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.mean((adjacency @ jnp.tanh(adjacency @ x @ p["a"]) @ p["b"]) ** 2)

    a = normal(6, 6, seed=8)
    assert explain(jax.grad(graph), WEIGHTS, a, X).sites == (
        explain(jax.grad(graph), WEIGHTS, a, X, params_argnums=0).sites
    )


# -------------------------------------------------------------------- where nothing is returned

USUAL: dict[str, tuple[Callable[..., Any], tuple[Any, ...], str]] = {
    "the first": (loss, (WEIGHTS, X, Y), "p: the first argument"),
    "one bare array": (lambda w, b: jnp.sum(b[0] @ w - b[1]), (BASE["w"], (X, X)), "w: the first"),
    "after a key": (lambda key, p, x: net(p, x), (KEY, WEIGHTS, X), "p: the first argument with"),
    "after tokens": (lambda t, x, p: net(p, x[t]), (COUNT, X, WEIGHTS), "p: the first argument w"),
    "after a bare array": (lambda x, p: net(p, x), (X, WEIGHTS), "p: it multiplies x"),
    "one layer": (lambda x, p: x @ p["w"], (X, BASE), "p: it multiplies x"),
    "captured": (lambda x: net(WEIGHTS, x), (X,), "none: weights are the arrays that"),
}


@pytest.mark.parametrize("mode", ["train", "inference"])
@pytest.mark.parametrize("name", USUAL)
def test_without_an_update_or_a_gradient_the_report_says_what_was_taken(name: str, mode: str):
    fun, args, taken = USUAL[name]
    report = explain(fun, *args, mode=mode)
    assert report.coverage() == 1
    assert {(s.lhs_kind, s.rhs_kind) for s in report.sites} == {("activation", "weight")}
    (note,) = [n for n in report.notes if n.startswith("parameters: ")]
    assert note.startswith(f"parameters: {taken}") and "params_argnums=" in note


# ---------------------------------------------------------------------------- captured constants

TABLEAU = normal(6, 6, seed=9)


def test_a_captured_array_beside_parameters_is_a_constant_and_that_is_said():
    report = explain(lambda p, x: TABLEAU @ net(p, x), WEIGHTS, X)
    assert [s.status for s in report.sites] == ["emulated", "emulated", "kept"]
    assert "a constant beside its parameters" in report.sites[-1].reason
    assert "a constant beside its parameters" in str(report)


def test_a_gradient_through_a_captured_constant_is_kept_too():
    def of(p: Any, x: Any) -> Any:
        return jax.grad(lambda p: jnp.mean(jnp.tanh(TABLEAU @ net(p, x)) ** 2))(p)

    kept = [s for s in explain(of, WEIGHTS, X).sites if s.status == "kept"]
    assert (kept[0].phase, kept[0].lhs_kind, kept[0].rhs_kind) == (
        "forward", "activation", "activation",
    )  # fmt: skip
    assert len(kept) == 2 and all("captures" in s.reason for s in kept)


def test_captured_data_are_data():
    report = explain(lambda p: step(p, X, Y), WEIGHTS)
    assert roles_of(report) == roles_of(FIRST)


# ------------------------------------------------------------------------------ lowered programs


@pytest.mark.parametrize("name", ["x, y, params", "batch, TrainState", "bare arrays"])
def test_a_pipeline_finds_them_in_a_lowered_program(name: str):
    fun, args = SIGNATURES[name]
    given = args()
    passes = "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8}"
    rewritten = rejit(jax.jit(fun).lower(*given), passes)
    decorated = srjit(fun, recipe="int8")
    assert roles_of(rewritten.report) == roles_of(FIRST)
    assert [n for n in decorated.explain(*given).notes if n.startswith("parameters: ")] == [
        n for n in rewritten.report.notes if n.startswith("parameters: ")
    ]
    ours, theirs = (jax.tree.leaves(f(*given, sr_key=1)) for f in (decorated, rewritten))
    assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
