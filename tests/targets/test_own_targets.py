"""A target that a user made is the one that programs use, whatever it is called."""

import dataclasses
import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from small_programs import normal
from srjit import passes, rejit, srjit, targets
from srjit.passes.legalize import Legalize
from srjit.planning.planner import recipe_of
from srjit.recipes import Recipe
from srjit.targets.target import Compiler

W, X = normal(32, 48, seed=1), normal(16, 32, seed=2)
CPU = targets.get("cpu")


def loss(w, x):
    return jnp.sum((x @ w) ** 2)


class Spy:
    """A target like the CPU's that counts what programs take from it."""

    def __init__(self, **changed):
        self.calls = set()
        self.target = dataclasses.replace(
            CPU, quantize=self._quantize, multiply=self._multiply, native=self._native, **changed
        )

    def _quantize(self, *args):
        self.calls.add("quantize")
        return CPU.quantize(*args)

    def _multiply(self, *args):
        self.calls.add("multiply")
        return CPU.multiply(*args)

    def _native(self, *args):
        self.calls.add("native")
        return True


@pytest.mark.crossed(1)
@pytest.mark.parametrize("name", ["cpu", "mychip"])
@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
def test_its_own_functions_are_called(name, layer):
    spy = Spy(name=name)
    step = srjit(jax.value_and_grad(loss), recipe="int8", target=spy.target, layer=layer)
    got = step(W, X, sr_key=0)
    assert spy.calls == {"quantize", "multiply", "native"}
    assert step.explain(W, X).target == name
    expected = srjit(jax.value_and_grad(loss), recipe="int8", target="cpu", layer=layer)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected(W, X, sr_key=0)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_its_own_functions_are_called_for_the_gradients_of_a_rewritten_function():
    spy = Spy(name="mychip")
    forward = srjit(lambda w, x: x @ w, recipe="int8", target=spy.target)
    forward(W, X, sr_key=0)
    spy.calls.clear()
    jax.grad(lambda w: jnp.sum(jnp.sin(forward(w, X, sr_key=0))))(W)
    assert {"quantize", "multiply"} <= spy.calls


def test_aot_compiles_for_it():
    spy = Spy(name="mychip")
    report = srjit(loss, recipe="int8").aot(W, X, target=spy.target)
    assert report.target == "mychip"
    assert spy.calls == {"quantize", "multiply", "native"}


def test_a_pass_takes_it_and_prints_its_name():
    spy = Spy(name="mychip")
    pipeline = passes.Pipeline(
        "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8}", Legalize(target=spy.target)
    )
    assert str(pipeline).endswith("srjit-legalize{target=mychip})")
    rejit(jax.jit(loss).lower(W, X), pipeline)(W, X)
    assert spy.calls == {"quantize", "multiply", "native"}


class Estimates:
    """By which nothing pays."""

    name = "mychip"
    cycles_per_byte = 1.0
    clock = 1e9

    def product(self, product, shapes, specs):
        return 1.0, 1.0

    def quantization(self, size, spec, in_memory):
        return 1.0


@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
def test_recipe_auto_weighs_its_own_estimates(layer):
    target = dataclasses.replace(CPU, name="mychip", estimates=Estimates())
    fun = srjit(loss, target=target, layer=layer)
    (site, *_) = fun.explain(W, X).sites
    assert site.status == "kept" and "mychip" in site.reason
    np.testing.assert_array_equal(fun(W, X, sr_key=0), jax.jit(loss)(W, X))


def test_a_recipe_of_it_is_written_with_its_name():
    target = dataclasses.replace(CPU, name="mychip", estimates=Estimates())
    recipe = recipe_of("auto", target)
    assert recipe.pays_on is target
    assert Recipe.from_toml(recipe.to_toml()) == dataclasses.replace(recipe, pays_on="mychip")
    known = recipe_of("auto", "v5e")
    assert known.pays_on == "v5e" and Recipe.from_toml(known.to_toml()) == known


def test_it_needs_no_compiler_to_run():
    bare = dataclasses.replace(CPU, name="mychip", compiler=None)
    srjit(loss, recipe="int8", target=bare)(W, X, sr_key=0)
    with pytest.raises(ValueError, match="cannot compile for mychip"):
        srjit(loss, recipe="int8").aot(W, X, target=bare)
    assert isinstance(CPU.compiler, Compiler)


def test_the_text_of_a_rewritten_program_names_it_and_is_the_same_in_every_process():
    text = str(srjit(jax.grad(loss), recipe="int8", target="cpu").rewritten(W, X, sr_key=0))
    assert "Target(name='cpu')" in text
    assert " at 0x" not in text


@pytest.mark.parametrize("name", targets.names())
def test_a_copy_of_it_is_equal(name):
    target = targets.get(name)
    copy = dataclasses.replace(target)
    assert copy == target
    assert hash(copy) == hash(target)
    assert dataclasses.replace(target, integers="int32") != target


@pytest.mark.parametrize("name", ["cpu", "portable"])
def test_it_can_be_pickled(name):
    assert pickle.loads(pickle.dumps(targets.get(name))) == targets.get(name)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtxpro6000"),
        ("NVIDIA GeForce RTX 5080", "rtx5090"),
        ("NVIDIA RTX 5000 Ada Generation", "cpu"),
    ],
)
def test_a_device_is_known_by_what_its_driver_calls_it(kind, name, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(device_kind=kind)])
    assert targets.get("auto").name == name
