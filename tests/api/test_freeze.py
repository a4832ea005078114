"""Frozen functions: packed weights, what they take, and the bits of the inference mode."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import srjit
from srjit.numerics.arrays import QuantizedArray, pack, unpack
from srjit.numerics.encode import encode

KEY = jax.random.key(5)
X = jax.random.normal(jax.random.key(6), (4, 32))
D = 32  # width: a multiple of every block


def normal(number: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(KEY, number), shape, dtype)


def mlp(params: Any, x: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(x @ params["up"] + params["bias"])
    return hidden @ params["down"]


MLP = {"up": normal(0, D, 96), "bias": normal(1, 96), "down": normal(2, 96, 31)}


def inference(fun: Any, recipe: Any, *args: Any, **options: Any) -> Any:
    return srjit.srjit(fun, recipe=recipe, mode="inference", **options)(*args)


def assert_same_bits(a: Any, b: Any) -> None:
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert p.dtype == q.dtype and np.asarray(p).tobytes() == np.asarray(q).tobytes()


def frozen(fun: Any, recipe: Any, *args: Any, **options: Any) -> dict[str, jax.Array]:
    """The packed parameters of a function that was checked to give the same bits with them."""
    packed, run = srjit.freeze(srjit.srjit(fun, recipe=recipe, **options), *args)
    assert_same_bits(run(packed, *args[1:]), inference(fun, recipe, *args, **options))
    return packed


def arrays(packed: dict[str, jax.Array]) -> list[str]:
    """Names of all but that which says how weights are packed."""
    return sorted(name for name in packed if not name.startswith("srjit["))


def dtypes(packed: dict[str, jax.Array]) -> dict[str, str]:
    return {name: str(x.dtype) for name, x in packed.items()}


# --------------------------------------------------------------------------- what a weight becomes


SCALES = {"int4": 4 / 32, "mxfp4": 1 / 32, "mxfp8": 1 / 32, "nvfp4": 1 / 256}  # bytes an element
CODES = {
    "int8": "int8", "int8-channel": "int8", "fp8": "uint8", "mxfp8": "uint8",
    "int4": "uint8", "mxfp4": "uint8", "nvfp4": "uint8", "nvfp4-4over6": "uint8",
}  # fmt: skip


@pytest.mark.crossed(1, most=3)
@pytest.mark.parametrize("recipe", CODES)
def test_a_packed_model_gives_the_bits_of_the_inference_mode(recipe: str):
    packed = frozen(mlp, recipe, MLP, X)
    for name in ("up", "down"):
        assert str(packed[f"{name}.codes"].dtype) == CODES[recipe]
        assert name not in packed
    assert packed["bias"] is MLP["bias"]


@pytest.mark.parametrize("recipe", ["int4", "mxfp4", "nvfp4"])
def test_weights_of_4_bits_take_half_a_byte_and_their_scales(recipe: str):
    w = {"w": normal(0, 64, 512)}
    packed = frozen(lambda p, x: x @ p["w"], recipe, w, normal(1, 4, 64))
    assert packed["w.codes"].dtype == jnp.uint8 and packed["w.codes"].nbytes <= 0.55 * w["w"].size
    scales = sum(x.nbytes for name, x in packed.items() if "scale" in name)
    assert scales <= SCALES[recipe] * w["w"].size + 4


@pytest.mark.crossed(1)
@pytest.mark.parametrize(
    "spec",
    [
        srjit.Quantization(format=f, axis=0, **options)
        for f, options in [
            ("int8", {}), ("int8", {"granularity": "channel"}), ("int4", {}), ("fp8_e5m2", {}),
            ("int4", {"granularity": "tensor"}), ("bf16", {}), ("mxfp8", {}), ("mxfp4", {}),
            ("nvfp4", {}), ("nvfp4", {"granularity": "square"}), ("nvfp4", {"hadamard": True}),
        ]
    ],
    ids=lambda q: f"{q.format}-{q.granularity}-{q.hadamard}",
)  # fmt: skip
@pytest.mark.parametrize("shape", [(33, 7), (35,)])
def test_packing_loses_nothing(spec: Any, shape: tuple[int, ...]):
    if len(shape) == 1 and spec.granularity == "square":
        return
    x = normal(3, *shape).at[0].set(-1e-9)  # becomes -0, which floats have
    q = jax.jit(lambda x: encode(x, spec, None))(x)
    again = jax.jit(lambda q: unpack(pack(q), spec, q.codes.shape, jnp.float32))(q)
    assert_same_bits(again.scale, q.scale)
    assert jax.tree.structure(again) == jax.tree.structure(q)
    codes = q.codes + 0.0 if spec.format.startswith("int") else q.codes
    np.testing.assert_array_equal(again.codes, codes)
    if not spec.format.startswith("int"):
        np.testing.assert_array_equal(np.signbit(again.codes), np.signbit(codes))


def test_every_code_of_4_bits_has_its_own_nibble_the_first_in_the_low_bits():
    one = jnp.ones(())
    for fmt, dtype in (("int4", ml_dtypes.int4), ("mxfp4", ml_dtypes.float4_e2m1fn)):
        bits = np.arange(16, dtype=np.uint8)
        grid = bits.view(dtype).astype(np.float32)  # ml_dtypes keeps 4 bits in the low ones
        spec = srjit.Quantization(format=fmt)
        scale = one if fmt == "int4" else one.astype(jnp.float8_e8m0fnu)
        codes = pack(QuantizedArray(jnp.asarray(grid), scale, None, spec))["codes"]
        np.testing.assert_array_equal(codes, bits[::2] | bits[1::2] << 4)


@pytest.mark.parametrize("recipe", ["int8", "nvfp4"])
def test_bfloat16_parameters(recipe: str):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), MLP)
    packed = frozen(mlp, recipe, params, X.astype(jnp.bfloat16))
    assert packed["bias"].dtype == jnp.bfloat16 and "up.codes" in packed


def test_nan_and_infinity_among_the_weights_stay_visible():
    w = normal(0, D, 40)
    for recipe in ("int8", "nvfp4"):
        _, run = srjit.freeze(srjit.srjit(lambda w, x: x @ w, recipe=recipe), w, X)
        for bad in (jnp.nan, jnp.inf):
            broken = w.at[3, 4].set(bad)
            packed, _ = srjit.freeze(srjit.srjit(lambda w, x: x @ w, recipe=recipe), broken, X)
            expected = np.isfinite(inference(lambda w, x: x @ w, recipe, broken, X))
            np.testing.assert_array_equal(np.isfinite(run(packed, X)), expected)
            assert not expected.all()


# ------------------------------------------------------------------------------ ways to a product


@pytest.mark.parametrize("recipe", ["int8-channel", "nvfp4"])
def test_casts_transposes_and_reshapes_are_on_the_way(recipe: str):
    def fun(p: Any, x: jax.Array) -> jax.Array:
        heads = p["heads"].reshape(D, -1).astype(jnp.bfloat16)
        return (x.astype(jnp.bfloat16) @ heads).astype(jnp.float32) @ p["out"].T

    params = {"heads": normal(0, D, 4, 16), "out": normal(1, D, 64)}
    packed = frozen(fun, recipe, params, X)
    assert packed["heads.codes"].shape[0] == D and "out.codes" in packed


def test_parts_of_one_parameter_are_packed_each_on_its_own():
    def fun(p: Any, x: jax.Array) -> jax.Array:
        q, k, v = jnp.split(p["qkv"], 3, axis=1)
        return (x @ q) + (x @ k) * (x @ v)

    packed = frozen(fun, "int8", {"qkv": normal(0, D, 3 * D)}, X)
    assert arrays(packed) == [
        "qkv.1.codes", "qkv.1.scale", "qkv.2.codes", "qkv.2.scale", "qkv.codes", "qkv.scale",
    ]  # fmt: skip


def test_parameters_that_are_one_weight_together():
    def fun(p: Any, x: jax.Array) -> jax.Array:
        return x @ jnp.concatenate([p["q"], p["k"]], axis=1)

    packed = frozen(fun, "int8", {"q": normal(0, D, D), "k": normal(1, D, D)}, X)
    assert arrays(packed) == ["k+q.codes", "k+q.scale"]


def scanned(params: Any, x: jax.Array) -> jax.Array:
    def layer(h: jax.Array, p: Any) -> Any:
        h = h + jax.nn.gelu(h @ p["up"] + p["bias"]) @ p["down"].T
        return h, None

    return jax.lax.scan(jax.checkpoint(layer), x, params["layers"])[0] @ params["head"]


LAYERS = {
    "layers": {"up": normal(0, 3, D, 64), "bias": normal(1, 3, 64), "down": normal(2, 3, D, 64)},
    "head": normal(3, D, 48),
}


@pytest.mark.parametrize("recipe", ["int8", "int4", "nvfp4"])
def test_stacked_layers_have_scales_of_their_own(recipe: str):
    packed = frozen(scanned, recipe, LAYERS, X)
    assert packed["layers.up.codes"].shape == (3, D, 64 // (1 if recipe == "int8" else 2))
    assert packed["layers.bias"] is LAYERS["layers"]["bias"]
    assert "layers.down" not in packed and "head.codes" in packed
    scales = packed["layers.up.scale"]
    assert scales.shape[0] == 3 and len(np.unique(np.asarray(scales, np.float32))) >= 3


def test_loops_in_loops_and_loops_from_the_end():
    def fun(p: Any, x: jax.Array) -> jax.Array:
        def outer(h: jax.Array, ws: jax.Array) -> Any:
            return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, ws, reverse=True)[0], None

        return jax.lax.scan(outer, x, p["w"])[0]

    packed = frozen(fun, "int8", {"w": normal(0, 2, 3, D, D)}, X)
    assert packed["w.codes"].shape == (2, 3, D, D) and packed["w.scale"].shape == (2, 3)


def test_a_stack_that_two_loops_read_is_packed_once():
    def fun(p: Any, x: jax.Array) -> jax.Array:
        layer = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
        return jax.lax.scan(layer, jax.lax.scan(layer, x, p)[0] + 1, p)[0]

    packed = frozen(fun, "int8", normal(0, 3, D, D), X)
    assert arrays(packed) == ["params.codes", "params.scale"]


def test_weights_that_loops_and_branches_do_not_change():
    def fun(p: Any, x: jax.Array) -> jax.Array:
        step = lambda h: jnp.tanh(h @ p["loop"])  # noqa: E731
        x = jax.lax.while_loop(lambda h: jnp.sum(h) > 1e6, step, x)
        x, _ = jax.lax.scan(lambda h, _: (step(h), None), x, length=2)
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ p["a"], lambda: x @ p["b"])

    params = {name: normal(i, D, D) for i, name in enumerate(("loop", "a", "b"))}
    packed = frozen(fun, "int8", params, X)
    assert arrays(packed) == sorted(f"{n}.{part}" for n in params for part in ("codes", "scale"))


def test_a_weight_that_two_products_read_is_packed_once():
    def fun(p: Any, x: jax.Array) -> jax.Array:
        layer = jax.jit(lambda h: jnp.tanh(h @ p["w"]))
        return layer(layer(x)) @ p["w"]

    assert arrays(frozen(fun, "nvfp4", {"w": normal(0, D, D)}, X)) == [
        "w.codes", "w.scale", "w.tensor_scale",
    ]  # fmt: skip


def test_convolutions_and_experts():
    def conv(p: Any, x: jax.Array) -> jax.Array:
        return jax.lax.conv(x, p["k"], (1, 1), "SAME")

    assert "k.codes" in frozen(conv, "int8", {"k": normal(0, 4, 3, 3, 3)}, normal(1, 1, 3, 6, 6))

    def experts(p: Any, x: jax.Array, sizes: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(x, p["w"], sizes)

    sizes = jnp.array([3, 1])
    assert "w.codes" in frozen(experts, "int8", {"w": normal(0, 2, D, 16)}, X, sizes)


# ------------------------------------------------------------------------- what stays as it is


def test_an_embedding_that_is_the_head_too_stays_what_it_is():
    def fun(p: Any, tokens: jax.Array) -> jax.Array:
        return p["embedding"][tokens] @ p["w"] @ p["embedding"].T

    params = {"embedding": normal(0, 48, D), "w": normal(1, D, D)}
    packed = frozen(fun, "int8", params, jnp.array([3, 7, 1]))
    assert arrays(packed) == ["embedding", "w.codes", "w.scale"]
    assert packed["embedding"] is params["embedding"]


def test_what_the_recipe_keeps_and_what_nothing_reads_stays_what_it_is():
    def fun(p: Any, x: jax.Array) -> jax.Array:
        with srjit.keep_high_precision():
            x = x @ p["kept"]
        return x @ p["w"]

    params = {"kept": normal(0, D, D), "w": normal(1, D, D), "unused": jnp.arange(3)}
    packed = frozen(fun, "int8", params, X)
    assert arrays(packed) == ["kept", "unused", "w.codes", "w.scale"]
    assert packed["unused"] is params["unused"]


def test_a_weight_that_depends_on_data_is_no_weight():
    """Labels say parameter of what is chosen, whoever chooses; what it is computed from decides."""

    def fun(p: Any, x: jax.Array) -> jax.Array:
        return x @ jnp.where(x[:1].T > 0, p["w"], 0.0) @ p["v"]

    params = {"w": normal(0, D, D), "v": normal(1, D, D)}
    assert arrays(frozen(fun, "int8", params, X)) == ["v.codes", "v.scale", "w"]


def test_inside_a_shard_map_weights_are_quantized_at_every_call():
    mesh = Mesh(np.array(jax.devices()[:2]), "data")
    rows = PartitionSpec("data")

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows)
    def mapped(w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ w

    params = {"inside": normal(0, D, D), "outside": normal(1, D, 16)}
    packed = frozen(lambda p, x: mapped(p["inside"], x) @ p["outside"], "int8", params, X)
    assert arrays(packed) == ["inside", "outside.codes", "outside.scale"]


@pytest.mark.parametrize("where", ["before", "inside"])
def test_a_weight_that_a_loop_does_not_change_is_packed_if_it_is_cast_before(where: str):
    def fun(w: jax.Array, x: jax.Array) -> jax.Array:
        cast = w.astype(jnp.bfloat16)

        def step(h: jax.Array, _: Any) -> Any:
            used = cast if where == "before" else w.astype(jnp.bfloat16)
            return jnp.tanh(h.astype(jnp.bfloat16) @ used).astype(jnp.float32), None

        return jax.lax.scan(step, x, length=8)[0]

    packed = frozen(fun, "int8", normal(0, D, D), X)
    assert ("params.codes" in packed) == (where == "before")


def test_integers_that_are_weights_once_they_are_cast():
    p = {"w": jax.random.randint(KEY, (D, 64), -100, 100).astype(jnp.int16), "s": jnp.float32(0.1)}
    packed = frozen(lambda p, x: x @ (p["w"].astype(jnp.float32) * p["s"]), "int8", p, X)
    assert arrays(packed) == ["s+w.codes", "s+w.scale"]


def test_codes_that_would_take_more_than_the_parameter_are_not_kept():
    """An adapter's product with a wide matrix of ones is a large weight of few parameters."""

    def fun(p: Any, x: jax.Array) -> jax.Array:
        return x @ (p["a"][:, None] * p["b"][None, :])

    params = {"a": normal(0, D), "b": normal(1, 128)}
    assert sorted(frozen(fun, "int8", params, X)) == ["a", "b"]


# ---------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("recipe", ["int4", "fp8", "mxfp8", "nvfp4"])
def test_safetensors_keep_packed_parameters(recipe: str, tmp_path: Any):
    from safetensors import flax as files

    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), LAYERS)
    packed, run = srjit.freeze(srjit.srjit(scanned, recipe=recipe), params, X)
    path = tmp_path / "model.safetensors"
    files.save_file(packed, path)
    loaded = files.load_file(path)
    assert dtypes(loaded) == dtypes(packed)
    assert_same_bits(dict(sorted(loaded.items())), packed)
    assert_same_bits(run(loaded, X), run(packed, X))


@pytest.mark.parametrize("recipe", ["int4", "nvfp4"])
def test_orbax_keeps_packed_parameters(recipe: str, tmp_path: Any):
    import orbax.checkpoint as ocp

    decorated = srjit.srjit(scanned, recipe=recipe)
    packed, run = srjit.freeze(decorated, LAYERS, X)
    structs, _ = srjit.freeze(decorated, jax.eval_shape(lambda: LAYERS), X)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "packed", packed)
        checkpointer.wait_until_finished()
        loaded = checkpointer.restore(tmp_path / "packed", structs)
    assert dtypes(loaded) == dtypes(packed)
    assert_same_bits(loaded, packed)
    assert_same_bits(run(loaded, X), run(packed, X))
