"""Products of codes on GPUs: how libraries get them, and what they are elsewhere."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from srjit import srjit, targets
from srjit.numerics.quantization import Quantization
from srjit.planning.planned_site import oriented
from srjit.products.dot import DotProduct
from srjit.targets.gpu import products as gpu_products
from srjit.targets.target import Demand

BLOCKED = ["nvfp4", "mxfp8", "mxfp4"]


def matrix_product(a: Any, b: Any, a_scales: Any, b_scales: Any, sums: str = "") -> jax.Array:
    """What the library computes, in float32."""

    def scaled(codes: jax.Array, scales: jax.Array) -> jax.Array:
        assert codes.shape[:2] == scales.shape[:2] and codes.shape[2] % scales.shape[2] == 0
        block = codes.shape[2] // scales.shape[2]
        return codes.astype(jnp.float32) * jnp.repeat(scales.astype(jnp.float32), block, axis=2)

    assert a.dtype == b.dtype and a_scales.dtype == b_scales.dtype
    return jnp.einsum("bmk,bnk->bmn", scaled(a, a_scales), scaled(b, b_scales))


def by_library(dtype: Any, *operands: jax.Array) -> jax.Array:
    return matrix_product(*operands).astype(dtype)


@pytest.mark.crossed(1)
@pytest.mark.parametrize("format", BLOCKED)
@pytest.mark.parametrize(
    ("product", "shapes"),
    [
        (DotProduct((0, 1), (1, 2), (0, 2)), ((24, 64), (64, 40))),
        (DotProduct((0, 1), (0, 2), (1, 2)), ((64, 24), (64, 40))),  # a weight's gradient
        (DotProduct((0, 1), (2, 1), (0, 2)), ((24, 64), (40, 64))),  # an activation's
        (DotProduct((0, 1), (1, 2), (2, 0)), ((24, 64), (64, 40))),  # the result transposed
        (DotProduct((0, 1), (1, 2), (0, 2)), ((5, 50), (50, 7))),  # nothing fits a block
        (DotProduct((0, 1, 2), (0, 2, 3), (0, 1, 3)), ((3, 8, 32), (3, 32, 24))),
        (DotProduct((0, 1, 2), (2, 3, 4), (0, 1, 3, 4)), ((3, 8, 32), (32, 4, 6))),
        (DotProduct((0, 1, 2), (0, 1, 3), (2, 3)), ((3, 40, 24), (3, 40, 16))),  # two summed
        (DotProduct((1, 0, 2), (0, 1, 3), (2, 3)), ((40, 3, 24), (3, 40, 16))),  # in other orders
        (DotProduct((0, 1), (0,), (1,)), ((64, 24), (64,))),  # by a vector
    ],
)
@pytest.mark.parametrize("square", [False, True])
def test_operands_are_arranged_as_the_library_wants_them(
    format: str, product: DotProduct, shapes: Any, square: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gpu_products, "_matrix_product", matrix_product)
    terms = math.prod(shapes[0][d] for d in product.contracting(0))

    @jax.jit
    def both(*operands: jax.Array) -> Any:
        pair: list[Any] = []
        for side, x in enumerate(operands):
            granularity = "square" if square and side == 1 else "block"
            spec = oriented(
                Quantization(format=format, granularity=granularity), product, side, x.shape
            )
            pair.append(targets.get("b200").quantize(x, Demand(spec), None, None))
        return gpu_products._block_scaled(product, *pair), [q.merged for q in pair]

    operands = [
        np.random.default_rng(side).standard_normal(shape, np.float32)
        * np.linspace(1, 8, shape[-1], dtype=np.float32)
        for side, shape in enumerate(shapes)
    ]
    got, values = both(*operands)
    a, b = (np.asarray(v, np.float64) for v in values)
    multiply = lambda a, b: np.einsum(a, product.lhs, b, product.rhs, product.out)  # noqa: E731
    expected = multiply(a, b)
    assert got.shape == expected.shape and abs(expected).max() > 1
    # Products of such numbers are exact, and their sums in float32.
    bound = terms * 2.0**-24 * multiply(abs(a), abs(b))
    assert np.all(abs(np.asarray(got, np.float64) - expected) <= bound)


MESH = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)


@pytest.mark.crossed(1)
@pytest.mark.parametrize(
    "size", [64, 48]
)  # of the contraction: blocks of 16 fit four shards or not
@pytest.mark.parametrize(
    ("lhs", "rhs"),
    [
        (P(None, "data"), P()),
        (P(None, "data"), P(None, "model")),
        (P(None, "data"), P(None, "data")),
        (P("model", "data"), P("model")),
        (P(None, None, "data"), P(None, None, "data")),
        (P(None, "model", "data"), P(None, None, "data")),
        (P(None, None, "data"), P(None, None, "model")),
        (P("model"), P(None, "model")),
        (P(None, ("data", "model")), P(None, "model")),
    ],
    ids=str,
)
def test_every_shard_multiplies_what_it_has(
    lhs: Any, rhs: Any, size: int, monkeypatch: pytest.MonkeyPatch
):
    product = gpu_products._matrix_product
    monkeypatch.setattr(gpu_products, "_by_library", by_library)
    keys = jax.random.split(jax.random.key(1), 4)
    a, b = (jax.random.normal(k, (2, 16, size)).astype(jnp.float8_e4m3fn) for k in keys[:2])
    scales = [
        jax.random.uniform(k, (2, 16, size // 16)).astype(jnp.float8_e4m3fn) for k in keys[2:]
    ]
    library = jax.jit(matrix_product)
    expected = library(a, b, *scales)
    places = [NamedSharding(MESH, p) for p in (lhs, rhs, P(), P())]
    compiled = jax.jit(lambda *operands: product(*operands, ""), in_shardings=places)
    got = compiled(a, b, *scales)
    # Both sum in float32, in orders of their own; signs are in the codes alone.
    magnitudes = [jnp.abs(x.astype(jnp.float32)).astype(x.dtype) for x in (a, b)]
    bound = 2 * size * 2.0**-24 * np.asarray(library(*magnitudes, *scales))
    assert np.all(np.abs(got - expected) <= bound) and np.abs(expected).max() > 1


@pytest.mark.parametrize(("result", "kind"), [(P(), "all_reduce"), (P(None, "data"), "scatter")])
@pytest.mark.parametrize("sums", ["", "bf16"])
def test_parts_are_added_as_the_program_adds_its_own(
    sums: str, result: Any, kind: str, monkeypatch: pytest.MonkeyPatch
):
    dtypes: list[Any] = []

    def multiply(dtype: Any, *operands: jax.Array) -> jax.Array:
        dtypes.append(jnp.dtype(dtype).name)
        return by_library(dtype, *operands)

    monkeypatch.setattr(gpu_products, "_by_library", multiply)
    ones = [jnp.ones((1, 8, 64), jnp.float8_e4m3fn)] * 2
    scales = [jnp.full((1, 8, 4), 1 + s / 8, jnp.float8_e4m3fn) for s in (1, 3)]
    places = [NamedSharding(MESH, p) for p in [P(None, None, "data")] * 2 + [P(), P()]]
    fun = jax.jit(
        lambda *operands: gpu_products._matrix_product(*operands, sums),
        in_shardings=places,
        out_shardings=NamedSharding(MESH, result),
    )
    text = fun.lower(*ones, *scales).compile().as_text()
    assert dtypes[-1] == ("bfloat16" if sums else "float32")
    assert ("reduce-scatter(" in text) is (kind == "scatter")
    assert np.unique(fun(*ones, *scales)).tolist() == [64 * 1.125 * 1.375]


def loss(params: Any, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.tanh(x @ params["up"]) @ params["down"])


def looped(params: Any, x: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: Any) -> tuple[jax.Array, None]:
        return x + jnp.tanh(x @ w["up"]) @ w["down"], None

    return jnp.sum(jax.lax.scan(layer, x, jax.tree.map(lambda w: jnp.stack([w, -w]), params))[0])


def inside(fun: Any, recipe: str, target: str) -> Any:
    return srjit(jax.value_and_grad(fun), recipe=recipe, target=target)


def outside(fun: Any, recipe: str, target: str) -> Any:
    wrapped = srjit(fun, recipe=recipe, target=target)
    return lambda *args, sr_key: jax.value_and_grad(lambda *a: wrapped(*a, sr_key=sr_key))(*args)


def mapped(fun: Any, recipe: str, target: str) -> Any:
    each = outside(fun, recipe, target)
    return lambda params, x, sr_key: jax.vmap(lambda x: each(params, x, sr_key=sr_key))(
        jnp.stack([x, 2 * x])
    )


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize(
    ("make", "fun"), [(inside, loss), (inside, looped), (outside, looped), (mapped, loss)]
)
@pytest.mark.parametrize(
    ("recipe", "target"),
    [
        ("nvfp4", "b200"),
        pytest.param("mxfp8", "b200", marks=pytest.mark.nightly),
        pytest.param("mxfp4", "b200", marks=pytest.mark.nightly),
        ("fp8", "h200"),
    ],
)
def test_where_no_gpu_is_the_numbers_are_the_emulations(
    make: Any, fun: Any, recipe: str, target: str
):
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "up": jax.random.normal(keys[0], (48, 72), jnp.bfloat16),
        "down": jax.random.normal(keys[1], (72, 48), jnp.bfloat16),
    }
    x = jax.random.normal(keys[2], (40, 48), jnp.bfloat16)
    got, expected = (make(fun, recipe, t)(params, x, sr_key=7) for t in (target, "portable"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def on_shards(axes: tuple[str, ...] | None) -> Any:
    """The mean square of a product, each device with rows of its own; None: by explicit types."""

    def value(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    if axes is None:
        return value

    def sharded(w: jax.Array, x: jax.Array) -> jax.Array:
        total = lambda w, x: jax.lax.psum(value(w, x), "data")  # noqa: E731
        specs = P(), P("data")
        names = set(axes)
        return jax.shard_map(total, mesh=MESH, in_specs=specs, out_specs=P(), axis_names=names)(
            w, x
        )

    return sharded


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize(("recipe", "target"), [("nvfp4", "b200"), ("fp8", "h200")])
@pytest.mark.parametrize("axes", [("data", "model"), ("data",), None], ids=str)
def test_shards_give_the_emulations_numbers(axes: Any, recipe: str, target: str):
    w = jax.random.normal(jax.random.key(0), (64, 64))
    x = jax.random.normal(jax.random.key(1), (128, 64))
    kind = AxisType.Auto if axes else AxisType.Explicit
    mesh = jax.make_mesh((4, 2), ("data", "model"), (kind, kind))
    with jax.set_mesh(mesh):
        args = w, jax.device_put(x, NamedSharding(mesh, P("data")))
        got, expected = (
            srjit(jax.grad(on_shards(axes)), recipe=recipe, target=t)(*args, sr_key=0)
            for t in (target, "portable")
        )
    np.testing.assert_array_equal(got, expected)


def test_blocks_of_other_sizes_are_emulated():
    spec = Quantization(format="nvfp4", block=32)
    b200 = targets.get("b200")
    made = jax.eval_shape(lambda x: b200.quantize(x, Demand(spec), None, None), jnp.ones((8, 64)))
    assert made.blocks is None
    assert not b200.native(DotProduct((0, 1), (1, 2), (0, 2)), ((8, 64), (64, 8)), (spec, spec))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(bad: float):
    x = jnp.ones((40, 48)).at[3, 5].set(bad)
    product = srjit(lambda w, x: jnp.sum(x @ w), recipe="nvfp4", target="b200")
    run = jax.jit(jax.value_and_grad(lambda w, x: product(w, x, sr_key=0)))
    value, gradient = run(jnp.ones((48, 72)), x)
    assert not np.isfinite(value) and not np.isfinite(gradient).all()
