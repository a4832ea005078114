"""The decorator: keys, counted calls, inference, and where it can stand."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import srjit as package
from srjit import shared_noise, srjit, transform
from steps import KEY, W, X, loss, same, step

quantized = srjit(step, recipe="int8")

# ------------------------------------------------------------------------------------------- keys


def test_the_noise_depends_on_the_key_and_on_nothing_else():
    first, again = quantized(W, X, sr_key=KEY), srjit(step, recipe="int8")(W, X, sr_key=KEY)
    assert same(first, again)
    assert not same(first, quantized(W, X, sr_key=jax.random.key(4)))
    assert not same(first, step(W, X))


@pytest.mark.parametrize("number", [0, 7, -3, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**63)])
def test_an_integer_is_one_step_whatever_holds_it(number: int):
    holders = [np.int64(number), np.array(number), number % 2**64]
    if -(2**31) <= number < 2**31:
        holders += [np.int32(number), jnp.int32(number)]
    if 0 <= number < 2**32:
        holders += [np.uint32(number), jnp.uint32(number)]
    expected = quantized(W, X, sr_key=number)
    for holder in holders:
        assert same(quantized(W, X, sr_key=holder), expected), repr(holder)


def test_steps_that_agree_in_their_low_32_bits_have_different_noise():
    results = [quantized(W, X, sr_key=n) for n in (5, 5 + 2**32, 5 + 2**40, 5 - 2**32)]
    for i, a in enumerate(results):
        assert not any(same(a, b) for b in results[i + 1 :])


def test_a_traced_step_draws_what_the_same_integer_draws():
    traced = jax.jit(lambda n: quantized(W, X, sr_key=n))
    assert same(traced(-9), quantized(W, X, sr_key=-9))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_implementation_work(impl: str):
    keys = [jax.random.key(seed, impl=impl) for seed in (0, 1)]
    results = [quantized(W, X, sr_key=key) for key in keys]
    assert not same(*results)
    assert same(results[0], quantized(W, X, sr_key=keys[0]))


def test_a_key_for_each_example_under_vmap():
    keys = jax.random.split(KEY, 3)
    together = jax.vmap(lambda key: quantized(W, X, sr_key=key))(keys)
    for key, result in zip(keys, together, strict=True):
        np.testing.assert_allclose(result, quantized(W, X, sr_key=key), rtol=1e-5)


def test_without_a_key_a_call_that_draws_nothing_is_fine():
    """Nothing can differentiate a call at the top level, and the forward pass draws nothing."""
    forward = srjit(loss, recipe="int8")
    assert same(forward(W, X), srjit(loss, recipe="int8", mode="inference")(W, X))
    np.testing.assert_allclose(transform(loss, recipe="int8")(W, X), forward(W, X), rtol=1e-5)


def test_quantization_aware_training_needs_no_key_anywhere():
    grads = jax.jit(jax.grad(srjit(loss, recipe="int8-qat")))(W, X)
    assert bool(jnp.isfinite(grads).all())


# --------------------------------------------------------------------------------- counted calls


def test_two_runs_of_one_script_agree_bit_for_bit():
    runs = []
    for _ in range(2):
        counted, w = srjit(step, recipe="int8", key=jax.random.key(0)), W
        for _ in range(3):
            w = counted(w, X)
        assert counted.calls == 3
        runs.append(w)
    assert same(*runs)


def test_every_counted_call_has_noise_of_its_own():
    counted = srjit(step, recipe="int8", key=0)
    results = [counted(W, X) for _ in range(3)]
    assert not same(results[0], results[1]) and not same(results[1], results[2])


def test_setting_calls_resumes_a_run():
    counted = srjit(step, recipe="int8", key=KEY)
    results = [counted(W, X) for _ in range(3)]
    resumed = srjit(step, recipe="int8", key=KEY)
    resumed.calls = 2
    assert same(resumed(W, X), results[2])
    resumed.calls = 2**31 + 1  # beyond what a jitted function takes as a Python integer
    assert bool(jnp.isfinite(resumed(W, X)).all())
    assert resumed.calls == 2**31 + 2


def test_looking_does_not_count_as_a_call():
    counted = srjit(step, recipe="int8", key=KEY)
    counted.explain(W, X)
    counted.rewritten(W, X)
    counted.eval_shape(W, X)
    counted.trace(W, X)
    compiled = counted.lower(W, X).compile()
    assert counted.calls == 0
    assert same(compiled(W, X), srjit(step, recipe="int8", key=KEY)(W, X))


def test_a_compiled_program_counts_with_its_function():
    counted, other = (srjit(step, recipe="int8", key=KEY) for _ in range(2))
    compiled = counted.lower(W, X).compile()
    results = [compiled(W, X), counted(W, X), compiled(W, X)]
    assert counted.calls == 3
    assert same(results, [other(W, X) for _ in range(3)])


def test_a_given_key_stands_in_for_the_base_key_and_does_not_count():
    counted = srjit(step, recipe="int8", key=0)
    assert same(counted(W, X, sr_key=KEY), quantized(W, X, sr_key=KEY))
    assert counted.calls == 0


# -------------------------------------------------------------------------------------- inference


def dropout_loss(w: jax.Array, x: jax.Array, key: jax.Array) -> jax.Array:
    with jax.named_scope("dropout"):
        keep = jax.random.bernoulli(key, 0.5, x.shape)
    return loss(w, jnp.where(keep, x, 0.0))


@pytest.mark.crossed(1)
@pytest.mark.parametrize("recipe", ["int8", "nvfp4", "mxfp4"])
@pytest.mark.parametrize("fun", [loss, step])
def test_inference_compiles_to_a_program_without_key_or_random_bits(fun: Any, recipe: str):
    lowered = srjit(fun, recipe=recipe, mode="inference").lower(W, X)
    assert len(jax.tree.leaves(lowered.in_tree.unflatten(range(2)))) == 2
    compiled = lowered.compile().as_text()
    assert re.search(r"entry_computation_layout=\{\(([^)]*)\)", compiled).group(1).count("[") == 2
    training = srjit(step, recipe=recipe).lower(W, X).as_text()
    for sign in map(str, (0x7FEB352D, 0x846CA68B)):  # the constants of srjit's hash
        assert sign in training
        assert sign not in lowered.as_text()
    assert "rng" not in compiled.replace("srjit", "")
    assert "threefry" not in compiled


@pytest.mark.parametrize("recipe", ["int8", "nvfp4-eden"])
def test_inference_passes_the_pass_that_looks_for_generators(recipe: str):
    verify = "srjit-verify-deterministic"
    inference = srjit(step, recipe=recipe, mode="inference")
    checked = package.rejit(jax.jit(inference).lower(W, X), verify)
    assert same(checked(W, X), inference(W, X))
    with pytest.raises(package.passes.PipelineError, match="random bits are generated"):
        package.rejit(jax.jit(srjit(dropout_loss, mode="inference")).lower(W, X, KEY), verify)


def test_inference_rounds_gradients_to_nearest_too():
    inference = srjit(step, recipe="int8", mode="inference")
    nearest = package.recipes.get("int8").with_rounding(gradients="nearest")
    assert same(inference(W, X), srjit(step, recipe=nearest)(W, X))


def test_inference_keeps_and_reports_the_users_own_randomness():
    inference = srjit(dropout_loss, recipe="int8", mode="inference")
    notes = inference.explain(W, X, KEY).notes
    assert any("random" in note and "dropout" in note for note in notes)
    assert not same(inference(W, X, KEY), inference(W, X, jax.random.key(8)))
    notes = srjit(loss, recipe="int8", mode="inference").explain(W, X).notes
    assert not any("random" in note for note in notes)


# ----------------------------------------------------------------------------- where it can stand


def test_a_decorated_function_inside_jit_vmap_scan_and_remat():
    def body(w: jax.Array, key: jax.Array) -> Any:
        return jax.checkpoint(lambda w: quantized(w, X, sr_key=key))(w), None

    @jax.jit
    def train(w: jax.Array, keys: jax.Array) -> jax.Array:
        return jax.lax.scan(body, w, keys)[0]

    keys, expected = jax.random.split(KEY, 3), W
    for key in keys:
        expected = quantized(expected, X, sr_key=key)
    np.testing.assert_allclose(train(W, keys), expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_transform_inside_jit():
    decorated = jax.grad(srjit(loss, recipe="int8"))(W, X, sr_key=KEY)
    transformed = jax.jit(jax.grad(transform(loss, recipe="int8")))(W, X, sr_key=KEY)
    np.testing.assert_allclose(decorated, transformed, rtol=1e-6)
    assert not same(decorated, jax.grad(loss)(W, X))


def test_a_gradient_through_captured_arrays_is_quantized_too():
    """No argument is traced by grad: the weight is captured."""

    def of(w: jax.Array) -> jax.Array:
        return srjit(lambda x: jnp.sum((x @ w) ** 2), recipe="int8")(X, sr_key=KEY)

    assert not same(jax.grad(of)(W), jax.grad(loss)(W, X))


def test_a_decorated_function_inside_a_decorated_function():
    inner = srjit(lambda w, x: x @ w, recipe="int8")

    def outer(w: jax.Array, x: jax.Array, number: jax.Array) -> jax.Array:
        return jnp.sum(inner(w, x, sr_key=number) ** 2)

    result = srjit(outer, recipe="nvfp4")(W, X, 5)
    assert same(result, jax.jit(outer)(W, X, 5)), "the inner recipe decides about what is inside"


def test_under_shard_map_and_pmap():
    mesh, spec = Mesh(jax.devices()[:2], "d"), PartitionSpec("d")

    def shard(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.psum(quantized(w, x, sr_key=KEY), "d")

    sharded = jax.shard_map(
        shard, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=PartitionSpec()
    )
    assert sharded(W, X).shape == W.shape

    @srjit(recipe="int8")
    def copied(w: jax.Array, x: jax.Array) -> jax.Array:
        with shared_noise("d"):
            return step(w, x)

    shards = X.reshape(2, 2, 16)
    mapped = jax.pmap(lambda x: copied(W, x, sr_key=KEY), axis_name="d")(shards)
    halves = [quantized(W, half, sr_key=KEY) for half in shards]
    np.testing.assert_allclose(mapped, jnp.stack(halves), rtol=1e-5, atol=1e-6)


def test_disable_jit_computes_the_same():
    expected = quantized(W, X, sr_key=KEY)
    with jax.disable_jit():
        result = srjit(step, recipe="int8")(W, X, sr_key=KEY)
        report = srjit(step, recipe="int8").explain(W, X)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    assert report == quantized.explain(W, X)


def test_nothing_that_is_traced_without_srjit_changes():
    before = str(jax.make_jaxpr(step)(W, X))
    quantized(W, X, sr_key=KEY)
    quantized.explain(W, X)
    assert str(jax.make_jaxpr(step)(W, X)) == before


def test_a_second_call_traces_nothing():
    traced = []

    def noticed(w: jax.Array, x: jax.Array) -> jax.Array:
        traced.append(1)
        return step(w, x)

    decorated = srjit(noticed, recipe="int8")
    for number in range(3):
        decorated(W, X, sr_key=number)
    assert len(traced) == 1
    for seed in range(3):
        decorated(W, X, sr_key=jax.random.key(seed))
    assert len(traced) == 2


def test_transform_runs_without_jit_and_keeps_what_is_not_an_array():
    def labelled(w: jax.Array, x: jax.Array, name: str, scale: float) -> Any:
        assert type(scale) is float
        return {"name": name, "w": step(w, x) * scale, "none": None}

    result = transform(labelled, recipe="int8")(W, X, "layer", 2.0, sr_key=KEY)
    assert result["name"] == "layer" and result["none"] is None
    np.testing.assert_allclose(result["w"], 2 * quantized(W, X, sr_key=KEY), rtol=1e-5)


# ------------------------------------------------------------------------------ names and process


def test_the_result_looks_like_the_function():
    assert quantized.__name__ == "step" and quantized.__doc__ == step.__doc__
    assert repr(quantized) == "<srjit of step: recipe int8, target cpu, mode train>"
    for made in (quantized, transform(step)):
        assert list(inspect.signature(made).parameters) == ["w", "x", "sr_key"]
    assert list(inspect.signature(srjit(lambda *a, **k: 0)).parameters) == ["a", "sr_key", "k"]


def test_errors_and_reports_can_be_copied_and_pickled():
    report = quantized.explain(W, X)
    for made in (copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert made == report and made.sites[0].role == "fprop"
    for error in (package.UnsupportedSiteError("site 3"), package.RecipeError("line 3: what")):
        for made in (copy.copy(error), pickle.loads(pickle.dumps(error))):
            assert type(made) is type(error) and str(made) == str(error)


def test_public_names_are_all_there_and_documented():
    for name in package.__all__:
        assert getattr(package, name).__doc__, name


def test_the_compilation_cache_hits_in_a_second_process(tmp_path: Any):
    """The program must not depend on the process: no ids, addresses or hash orders in it."""
    script = textwrap.dedent(
        """
        import sys, jax
        jax.config.update("jax_compilation_cache_dir", sys.argv[1])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        import jax.numpy as jnp
        from srjit import srjit

        def loss(params, x):
            with jax.named_scope("mlp"):
                return jnp.sum((jax.nn.relu(x @ params["a"]) @ params["b"]) ** 2)

        params = {"a": jnp.ones((16, 16)), "b": jnp.ones((16, 4))}
        x = jnp.ones((4, 16))
        hits = []
        jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
        step = srjit(jax.grad(loss), recipe="nvfp4", target="cpu")
        step(params, x, sr_key=3)
        print(hits.count("/jax/compilation_cache/cache_hits"),
              hits.count("/jax/compilation_cache/cache_misses"))
        """
    )
    counts = []
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "JAX_PLATFORMS": "cpu", "PATH": ""}
        out = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        counts.append(tuple(map(int, out.stdout.split())))
    (hits, misses), (later_hits, later_misses) = counts
    assert hits == 0 and misses > 0
    assert later_hits == misses and later_misses == 0


def functions_called(run: Callable[[], Any]) -> list[str]:
    """Python and C functions that a call runs once everything is traced and compiled."""
    called: list[str] = []

    def profiler(frame: types.FrameType, event: str, arg: Any) -> None:
        if event == "call":
            called.append(frame.f_code.co_name)
        elif event == "c_call":
            called.append(arg.__name__)

    run(), run()
    sys.setprofile(profiler)
    try:
        run()
    finally:
        sys.setprofile(None)
    return called


@pytest.mark.parametrize("key", [KEY, 12345], ids=["typed", "integer"])
def test_a_call_runs_few_functions_more_than_jax_jits(key: Any):
    # Six are JAX's, which ask whether something is traced. benchmarks/dispatch.py has the time.
    jitted = jax.jit(step)
    plain = functions_called(lambda: jitted(W, X))
    ours = functions_called(lambda: quantized(W, X, sr_key=key))
    assert len(plain) < len(ours) <= len(plain) + 15, ours


def test_a_key_on_other_devices_is_named():
    everywhere = NamedSharding(Mesh(jax.devices(), "d"), PartitionSpec())
    w, x = jax.device_put((W, X), everywhere)
    elsewhere = jax.device_put(KEY, jax.devices()[1])
    with pytest.raises(ValueError, match=r"sr_key is committed .* jax\.device_put"):
        quantized(w, x, sr_key=elsewhere)
    expected = quantized(W, X, sr_key=KEY)
    for key in (KEY, jax.device_put(KEY, everywhere)):
        np.testing.assert_allclose(quantized(w, x, sr_key=key), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="incompatible devices") as error:
        quantized(w, jax.device_put(X, jax.devices()[1]), sr_key=KEY)
    assert "sr_key is committed" not in str(error.value)


def test_looking_takes_what_a_call_takes():
    f = srjit(step, recipe="fp8-delayed")
    state = f.init_state(W, X, sr_key=KEY, sr_state=None)
    assert str(f.explain(W, X, sr_key=KEY, sr_state=state)) == str(f.explain(W, X))
