"""Decorated functions as methods, copies, in counted calls, under guarded transfers."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import srjit as module
from srjit import SrjitFunction, export, freeze, rejit, replay, srjit
from srjit.calling.counter import Counter
from steps import KEY, W, X, loss, same, step

quantized = srjit(step, recipe="int8")


@srjit(recipe="int8", key=0)
def counted_at_the_top(w: jax.Array, x: jax.Array) -> jax.Array:
    return step(w, x)


# ----------------------------------------------------------------------------------------- methods


class Trainer:
    """Trains."""

    scale = 2.0

    @srjit(recipe="int8", static_argnums=0, params_argnums=1, key=0)
    def step(self, w: jax.Array, x: jax.Array) -> jax.Array:
        """A step."""
        return self.scale * step(w, x)

    @srjit(recipe="int8", static_argnums=0, params_argnums=1, mode="inference")
    def forward(self, w: jax.Array, x: jax.Array) -> jax.Array:
        return self.scale * (x @ w)

    @srjit(recipe="fp8-delayed", static_argnums=0, params_argnums=1)
    def delayed(self, w: jax.Array, x: jax.Array) -> jax.Array:
        return step(w, x)

    @classmethod
    @srjit(recipe="int8", static_argnums=0, params_argnums=1)
    def of_class(cls, w: jax.Array, x: jax.Array) -> jax.Array:
        return cls.scale * step(w, x)

    @staticmethod
    @srjit(recipe="int8")
    def of_none(w: jax.Array, x: jax.Array) -> jax.Array:
        return step(w, x)

    @srjit(recipe="int8", static_argnums=0)
    def meet(self, other: Any = None, *, w: Any = None) -> Any:
        return self.scale * (1.0 if other is None else other)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Model:
    w: jax.Array

    @srjit(recipe="int8")
    def updated(self, x: jax.Array) -> Model:
        return Model(step(self.w, x))


class Derived(Trainer):
    scale = 3.0


LOOKS: dict[str, Callable[[Any], Any]] = {
    "explain": lambda f: f.explain(W, X).coverage(),
    "rewritten": lambda f: str(f.rewritten(W, X, sr_key=1)),
    "lower": lambda f: f.lower(W, X, sr_key=1).as_text(),
    "trace": lambda f: str(f.trace(W, X, sr_key=1).jaxpr),
    "eval_shape": lambda f: f.eval_shape(W, X),
    "init_state": lambda f: f.init_state(W, X),
    "aot": lambda f: len(f.aot(W, X, target="cpu").sites),
    "verify": lambda f: f.verify(W, X, draws=4).verdict,
    "diagnose": lambda f: f.diagnose(W, X).to_json(),
    "replay": lambda f: len(f.replay(W, X, step=1, site=1)),
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_method_is_looked_at_without_its_object(look: str):
    trainer = Trainer()
    doubled = srjit(lambda w, x: 2.0 * step(w, x), recipe="int8", key=0)
    seen, expected = LOOKS[look](trainer.step), LOOKS[look](doubled)
    if look in ("lower", "rewritten", "trace"):  # names of functions stand in it
        assert seen.count(" = ") == expected.count(" = ") > 0
    else:
        assert seen == expected
    assert trainer.step.calls == 0 or look != "verify"


def test_a_method_has_all_that_its_function_has():
    public = {n for n in dir(SrjitFunction) if not n.startswith("_")}
    bound = Trainer().step
    for name in public | {"name", "target", "watch"}:
        assert hasattr(bound, name), name
    given = {
        name
        for name in public
        if callable(method := getattr(SrjitFunction, name))
        and inspect.signature(method).parameters.get("args", None)
        and name not in ("planned", "seen", "keyed")
    }
    assert given == set(LOOKS)  # a new one is bound too


def test_methods_bind_as_methods_do():
    trainer = Trainer()
    assert trainer.step == trainer.step and hash(trainer.step) == hash(trainer.step)
    assert trainer.step != Trainer().step and trainer.step != trainer.forward
    assert str(inspect.signature(trainer.forward)).startswith("(w: ")
    assert (trainer.step.__name__, trainer.step.__doc__) == ("step", "A step.")
    assert inspect.getdoc(trainer.step) == "A step." and "bound method" in repr(trainer.step)
    assert same(Derived().forward(W, X), 1.5 * trainer.forward(W, X))
    assert same(jax.vmap(trainer.forward, (None, 0))(W, X[None])[0], trainer.forward(W, X))
    trainer.forward.clear_cache()
    with pytest.raises(AttributeError):
        _ = trainer.step.no_such_thing


def test_the_object_can_be_given_again_as_bound_methods_of_jax_jit_want_it():
    trainer = Trainer()
    assert trainer.step.explain(trainer, W, X).coverage() == 1
    assert float(trainer.meet(1.0, sr_key=0)) == 2
    assert trainer.meet.eval_shape(X).shape == X.shape
    assert trainer.meet.eval_shape(trainer, X).shape == X.shape


def test_one_counter_serves_all_objects_of_a_class():
    first, second = Trainer(), Trainer()
    first.step.calls = 0
    results = [first.step(W, X), second.step(W, X)]
    assert first.step.calls == Trainer.step.calls == 2 and not same(*results)
    second.step.calls = 1
    assert same(first.step(W, X), results[1])
    first.step.calls = 0


def test_objects_that_are_pytrees_are_arguments():
    model = Model(W)
    assert model.updated.explain(X).coverage() == 1
    expected = quantized(W, X, sr_key=1)
    assert same(model.updated(X, sr_key=1).w, expected)
    assert same(model.updated.lower(X, sr_key=1).compile()(model, X, sr_key=1).w, expected)
    state = Trainer().delayed.init_state(W, X)
    assert state and all(h.shape for h in state.values())


def test_methods_are_exported_frozen_and_replayed():
    trainer = Trainer()
    assert same(export(trainer.step, W, X)(W, X, sr_key=1), trainer.step(W, X, sr_key=1))
    packed, run = freeze(trainer.forward, W, X)
    assert same(run(trainer, packed, X), trainer.forward(W, X))
    trainer.step(W, X, sr_key=3)
    noises = replay(trainer.step, W, X, step=1, site=1), trainer.step.replay(step=1, site=1)
    assert same(noises[0][0].noise, noises[1][0].noise)


def test_class_and_static_methods():
    for call in (Trainer.of_class, Trainer().of_class):
        assert same(call(W, X, sr_key=1), 2.0 * quantized(W, X, sr_key=1))
    assert same(Trainer.of_none(W, X, sr_key=1), quantized(W, X, sr_key=1))
    assert Trainer().of_none.explain(W, X).coverage() == 1
    assert Trainer.of_class.explain(Trainer, W, X).coverage() == 1
    if sys.version_info < (3, 13):  # from there on, Python binds class methods by itself
        assert Trainer.of_class.explain(W, X).coverage() == 1
    for kind in (classmethod, staticmethod):
        with pytest.raises(TypeError, match=f"write @{kind.__name__} above @srjit"):
            srjit(kind(step))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_compute_the_same_and_count_on_their_own(copied: Callable[[Any], Any]):
    function = srjit(step, recipe="int8", key=KEY)
    first = function(W, X)
    twin = copied(function)
    assert twin is not function and (twin.calls, twin.name) == (1, "step")
    second = twin(W, X)
    assert (twin.calls, function.calls) == (2, 1)
    assert same(function(W, X), second) and not same(first, second)
    assert same(copied(quantized)(W, X, sr_key=1), quantized(W, X, sr_key=1))
    assert copied({"f": quantized})["f"](W, X, sr_key=1) is not None
    trainer = Trainer()
    bound = copied(trainer.step)
    assert same(bound(W, X, sr_key=1), trainer.step(W, X, sr_key=1))


def test_a_deep_copy_of_an_object_has_a_function_of_its_own():
    class Scaled:
        def __init__(self) -> None:
            self.scale = 1.0
            self.step = srjit(self._step, recipe="int8")

        def _step(self, w: jax.Array, x: jax.Array) -> jax.Array:
            return self.scale * step(w, x)

    one = Scaled()
    two = copy.deepcopy(one)
    two.scale = 2.0
    assert same(two.step(W, X, sr_key=1), 2 * one.step(W, X, sr_key=1))


def test_functions_are_pickled_by_name_or_say_what_to_do():
    assert pickle.loads(pickle.dumps(counted_at_the_top)) is counted_at_the_top
    assert pickle.loads(pickle.dumps(Trainer.step)) is Trainer.step
    function = srjit(step, recipe="int8", key=KEY, static_argnums=())
    function.calls = 3
    again = pickle.loads(pickle.dumps(function))
    assert again.calls == 3 and same(again(W, X), function(W, X))
    with pytest.raises(pickle.PicklingError, match=r"<lambda> cannot be pickled.*srjit.export"):
        pickle.dumps(srjit(lambda w, x: x @ w, recipe="int8"))


# ----------------------------------------------------------------------------------- counted calls


def fails(w: jax.Array, x: jax.Array) -> jax.Array:
    if x.shape[0] == 3:
        raise RuntimeError("three")
    return step(w, x)


FAILURES: dict[str, Callable[[Any], Any]] = {
    "an argument is missing": lambda f: f(W),
    "one is too many": lambda f: f(W, X, X),
    "shapes do not fit": lambda f: f(W, jnp.ones((2, 5))),
    "it is no array": lambda f: f(W, "x"),
    "the function raises": lambda f: f(W, X[:3]),
    "an unknown keyword": lambda f: f(W, X, other=1),
    "a state that it has not": lambda f: f(W, X, sr_state={"other": X}),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_call_that_fails_takes_no_number(what: str):
    function, clean = (srjit(fails, recipe="int8", key=KEY) for _ in range(2))
    results = []
    for _ in range(2):
        with pytest.raises(Exception):  # noqa: B017
            FAILURES[what](function)
        results.append(function(W, X))
    assert function.calls == 2
    assert same(results, [clean(W, X) for _ in range(2)])


def test_a_compiled_call_that_fails_takes_no_number():
    function = srjit(step, recipe="int8", key=KEY)
    compiled = function.lower(W, X).compile()
    with pytest.raises(TypeError):
        compiled(W)
    assert function.calls == 0
    compiled(W, X)
    assert function.calls == 1


def test_a_number_below_that_of_another_call_is_not_given_again():
    counter = Counter(KEY)
    slow, fast = counter.next(), counter.next()
    counter.give_back(slow)
    assert counter.calls == 2
    counter.give_back(fast)
    assert counter.calls == 1 and counter.next() == fast


INSIDE: dict[str, Callable[[Any], Any]] = {
    "jit": lambda f: jax.jit(f)(W, X),
    "grad in jit": lambda f: jax.jit(jax.grad(lambda w: jnp.sum(f(w, X))))(W),
    "scan": lambda f: jax.lax.scan(lambda w, _: (f(w, X), None), W, length=2),
    "vmap": lambda f: jax.vmap(f, in_axes=(None, 0))(W, X[None]),
}


@pytest.mark.parametrize("place", INSIDE)
def test_a_base_key_cannot_count_inside_another_transformation(place: str):
    with pytest.raises(TypeError, match=r"key= cannot count calls inside another jit.*sr_key="):
        INSIDE[place](srjit(step, recipe="int8", key=KEY))
    with pytest.raises(TypeError, match=r"needs a key: call it with sr_key="):
        INSIDE[place](quantized)
    inference = srjit(loss, recipe="int8", mode="inference")
    assert jax.jit(inference)(W, X).shape == ()


# --------------------------------------------------------------------------------------- transfers

MESH = jax.make_mesh((8,), ("d",))
WHOLE = NamedSharding(MESH, PartitionSpec())
PLACES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "where it is": lambda x: x,
    "another device": lambda x: jax.device_put(x, jax.devices()[3]),
    "a mesh": lambda x: jax.device_put(x, WHOLE),
}


KEYS = {"typed": KEY, "integer": 5, "large": 2**40}


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize(
    ("name", "place"),
    [*((name, place) for name in ("typed", "integer") for place in PLACES), ("large", "a mesh")],
)
def test_nothing_is_sent_to_devices_unasked(name: str, place: str):
    key: Any = KEYS[name]
    w, x = map(PLACES[place], (W, X))
    traced: list[int] = []

    def counting(w: jax.Array, x: jax.Array) -> jax.Array:
        traced.append(1)
        return step(w, x)

    function = srjit(counting, recipe="int8", key=key)
    expected = [function(w, x), function(w, x)]
    given = [function(w, x, sr_key=i) for i in (3, -1)]
    function.calls, count = 0, len(traced)
    with jax.transfer_guard("disallow"):
        assert same([function(w, x), function(w, x)], expected)
        assert same([function(w, x, sr_key=i) for i in (3, np.int64(-1))], given)
        assert len(traced) == count or place == "a mesh"  # of which types know there
        compiled = srjit(step, recipe="int8", key=key).lower(w, x).compile()
        assert same(compiled(w, x), expected[0])


def test_nor_by_what_is_kept_of_a_function():
    exported = export(quantized, W, X)
    pipeline = (
        "srjit-eliminate-dead-code,srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8},"
        "srjit-share-quantized,srjit-legalize{target=cpu}"
    )
    module_ = rejit(jax.jit(step).lower(W, X), pipeline)
    delayed = srjit(step, recipe="fp8-delayed")
    expected = quantized(W, X, sr_key=3)
    with jax.transfer_guard("disallow"):
        assert same(exported(W, X, sr_key=3), expected)
        assert same(module_(W, X, sr_key=3), expected)
        delayed(W, X, sr_key=3, sr_state=delayed.init_state(W, X))
        quantized.diagnose(W, X)
        jax.jit(lambda w: quantized(w, X, sr_key=3))(W)


# ---------------------------------------------------------------------------------------- the name


def test_the_module_called_as_the_decorator_says_what_to_write():
    with pytest.raises(TypeError, match="from srjit import srjit"):
        module(step)  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"srjit\.srjit\("):
        module(recipe="int8")(step)  # type: ignore[operator]
    assert module.srjit is srjit
    subprocess.run([sys.executable, "-c", "import srjit; srjit.__version__"], check=True)


# -------------------------------------------------------------------------------------- debugging


@pytest.mark.parametrize("recipe", ["int8", "fp8", "mxfp4"])
def test_errors_of_debug_nans_name_the_site(recipe: str):
    def layers(params: Any, x: jax.Array) -> jax.Array:
        with jax.named_scope("first"):
            x = jnp.tanh(x @ params["a"])
        with jax.named_scope("second"):
            return jnp.sum((x @ params["b"]) ** 2)

    params = {"a": W, "b": W.at[0, 0].set(jnp.inf)}
    function = srjit(jax.grad(layers), recipe=recipe, params_argnums=0)
    with jax.debug_nans(True):
        function({"a": W, "b": W}, X, sr_key=1)
        with pytest.raises(FloatingPointError, match=r"site 1 second .*: invalid value \(nan\)"):
            function(params, X, sr_key=1)
        with pytest.raises(FloatingPointError, match=r"^invalid value .*in log"):
            srjit(lambda w, x: jnp.log(-jnp.abs(x @ w)), recipe=recipe)(W, X, sr_key=1)


def test_errors_of_debug_nans_in_loops_name_the_sites_inside():
    def looped(w: jax.Array, x: jax.Array) -> jax.Array:
        with jax.named_scope("loop"):
            return jnp.sum(jax.lax.scan(lambda c, _: ((c @ w) * 1e30, None), x, length=3)[0])

    function = srjit(looped, recipe="int8", mode="inference")
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match=r"^site 0 loop.*\(nan\)"):
        function(1e20 * jnp.eye(16), X)
