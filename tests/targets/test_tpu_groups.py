"""Products with groups on TPUs: kernels give the bits of ``lax.ragged_dot``, scaled."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srjit
from small_programs import normal
from srjit import targets
from srjit.numerics.elements import ELEMENTS
from srjit.numerics.quantization import Quantization
from srjit.products import kinds
from srjit.products.ragged_dot import GroupedMatrices, Kind, matrices_of
from srjit.targets.tpu import group_kernels, kernels
from srjit.targets.tpu.group_tiles import Rates, Tiles, bytes_of, steps, tiles_of
from targets import instructions

SIZES = np.array([9, 0, 5, 1, 7, 0])
M, K, N, G = 26, 12, 10, len(SIZES)  # four rows past all groups
OWNERS = np.repeat(np.arange(G + 1), [*SIZES, M - SIZES.sum()])
FACTORS = np.linspace(0.3, 1.7, G, dtype=np.float32)
SHAPES: dict[Kind, Any] = {
    "NN": ((M, K), (G, K, N), (M, N)),
    "NT": ((M, K), (G, N, K), (M, N)),
    "TN": ((M, K), (M, N), (G, K, N)),
}


def codes(dtype: Any, *shape: int, seed: int) -> Any:
    """Codes whose sums of products are exact in float32."""
    drawn = np.random.default_rng(seed).integers(-8, 9, shape)
    return drawn.astype(jnp.dtype(dtype))


def multiplied(kind: Kind, a: Any, b: Any, tiles: Tiles) -> list[np.ndarray]:
    """The kernel's result, interpreted, and that of plain operations."""
    out = jax.ShapeDtypeStruct(SHAPES[kind][2], jnp.bfloat16)

    def both(a: Any, b: Any, sizes: Any, factors: Any) -> Any:
        scales = [factors, factors]
        got = group_kernels.multiply(
            a, b, sizes, scales, kind=kind, out=out, tiles=tiles, memory=2**20
        )
        plain = GroupedMatrices(kind)(a, b, sizes, group_kernels.sums_of(a, b))
        owners = jnp.asarray(np.append(FACTORS, np.float32(0)))[OWNERS][:, None]
        factor = factors[:, None, None] if kind == "TN" else owners
        return got, (plain.astype(jnp.float32) * factor * factor).astype(jnp.bfloat16)

    with instructions.interpreted():
        return [np.asarray(x).astype(np.float32) for x in jax.jit(both)(a, b, SIZES, FACTORS)]


@pytest.mark.parametrize(
    "dtype", ["int8", pytest.param("float8_e4m3fn", marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    "tiles",
    [
        Tiles(8, 6, 10),  # rows of several groups in a tile, two parts of a contraction
        pytest.param(Tiles(4, 12, 4), marks=pytest.mark.nightly),  # tiles overhang
        pytest.param(Tiles(16, 4, 10), marks=pytest.mark.nightly),  # three parts
    ],
)
def test_kernels_give_the_bits_of_ragged_dot(kind: Kind, dtype: str, tiles: Tiles):
    lhs, rhs, _ = SHAPES[kind]
    got, expected = multiplied(kind, codes(dtype, *lhs, seed=0), codes(dtype, *rhs, seed=1), tiles)
    np.testing.assert_array_equal(got, expected)
    assert np.abs(expected).max() > 100


def test_nan_stays_in_its_group():
    """Of rows of one group, and of those past all groups."""
    a, b = (codes("float8_e4m3fn", *shape, seed=0) for shape in SHAPES["TN"][:2])
    plain, _ = multiplied("TN", a, b, Tiles(8, 12, 10))
    a[OWNERS == 3] = b[OWNERS == G] = np.nan
    got, _ = multiplied("TN", a, b, Tiles(8, 12, 10))
    others = [g for g in range(G) if g != 3]
    np.testing.assert_array_equal(got[others], plain[others])
    assert np.isnan(got[3]).all()


@pytest.mark.parametrize(("kind", "tile"), [("NN", 8), ("TN", 4)])
def test_every_row_of_a_group_is_visited_once(kind: Kind, tile: int):
    visits = jax.jit(functools.partial(group_kernels.visits, rows=M, tile=tile, kind=kind))
    for sizes in (SIZES, [0, 0, 0, 0, 0, M], [0] * 6, [4] * 6, [8, 1, 1, 1, 8, 3]):
        count = len(sizes)
        ends, groups, places = map(np.asarray, visits(np.asarray(sizes)))
        assert len(groups) == steps(M, tile, count) and (places >= 0).all()
        assert (np.diff(groups) >= 0).all() and places.max() <= (M - 1) // tile
        owners = np.repeat(np.arange(count), sizes)
        for g in range(count):
            tiles = sorted(places[groups == g])
            wanted = sorted(set(np.flatnonzero(owners == g) // tile))
            assert tiles == wanted or (kind == "TN" and not wanted and len(tiles) == 1)
        rest = set(np.arange(len(owners), M) // tile)
        assert kind == "TN" or rest <= set(places[groups == count])
        np.testing.assert_array_equal(ends, [0, *np.cumsum(sizes), M])


INT8, E4M3 = Quantization(format="int8"), Quantization(format="fp8_e4m3")
MIXTRAL, DEEPSEEK = (16384, 4096, 14336, 8), (49152, 2048, 1408, 64)


def product(kind: Kind, rows: int, inner: int, columns: int, groups: int) -> Any:
    """A program's product, and its operands' shapes."""
    rhs = {"NN": (groups, inner, columns), "NT": (groups, columns, inner), "TN": (rows, columns)}
    types = (rows, inner), rhs[kind], (groups,)
    structs = [jax.ShapeDtypeStruct(s, d) for s, d in zip(types, "ffi", strict=True)]
    jaxpr = jax.make_jaxpr(lambda a, b, n: GroupedMatrices(kind)(a, b, n, None))(*structs)
    return kinds.product_of(jaxpr.eqns[0]), types[:2]


@pytest.mark.parametrize("kind", SHAPES)
def test_experts_of_models_are_native_where_codes_have_a_rate(kind: Kind):
    for chip, spec in (("v5e", INT8), ("v6e", INT8), ("tpu7x", E4M3)):
        for shape in (MIXTRAL, DEEPSEEK):
            found, shapes = product(kind, *shape)
            assert matrices_of(found) == GroupedMatrices(kind)
            assert targets.get(chip).native(found, shapes, (spec, spec))
            assert not targets.get(chip).native(found, shapes, (spec, None))
    found, shapes = product(kind, 96, 48, 40, 6)
    v5e = targets.get("v5e")
    assert not v5e.native(found, shapes, (INT8, INT8))
    assert "128 rows at least" in v5e.hindrance(found, shapes, (INT8, INT8))
    found, shapes = product(kind, *MIXTRAL)
    assert not v5e.native(found, shapes, (E4M3, E4M3))
    assert not v5e.hindrance(found, shapes, (INT8, INT8))


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("memory", [48 * 2**20, 96 * 2**20])
def test_tiles_cut_contractions_and_fit(kind: Kind, memory: int):
    for extents in (MIXTRAL, DEEPSEEK, (4096, 1664, 4224, 4), (256, 128, 128, 2)):
        tiles = tiles_of(kind, extents, 1, Rates(2e5, 500.0, memory))
        assert tiles is not None and bytes_of(kind, tiles, 1) <= memory
        assert kind == "TN" or extents[1] % tiles.inner == 0
        assert tiles.rows <= extents[0]


def step(w: Any, x: Any, ct: Any, sizes: Any) -> Any:
    y, pullback = jax.vjp(lambda w, x: jax.lax.ragged_dot(x, w, sizes), w, x)
    return y, *pullback(ct)


ARGS = (
    *(np.asarray(normal(*s)) for s in ((2, 128, 256), (128, 128), (128, 256))),
    np.array([50, 70]),
)


def test_groups_are_quantized_with_a_factor_of_each_row():
    """Of a last tile that overhangs, too; as plain operations do."""
    x = np.array(normal(40, 300))
    encode = np.linspace(3, 40, 40, dtype=np.float32)[:, None]
    key = np.uint32(7), np.uint32(9)

    def both(x: Any, encode: Any, *key: Any) -> Any:
        element = ELEMENTS["int8"]
        options = {"element": element, "transposed": False}
        made = kernels.quantize_kernel(x, encode, *key, **options, tile=(32, 128))
        return made, kernels.quantize_plainly(x, encode, *key, **options)

    with instructions.interpreted():
        got, expected = jax.jit(both)(x, encode, *key)
    np.testing.assert_array_equal(got, expected)


# Through the StableHLO door operands with rows in groups are quantized by plain operations.
@pytest.mark.parametrize(("layer", "quantizing"), [("jaxpr", 3), ("stablehlo", 1)])
def test_programs_of_experts_have_kernels_through_both_doors(layer: Any, quantizing: int):
    traced = srjit.srjit(step, recipe="int8", target="v5e", layer=layer).trace(*ARGS, sr_key=0)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3 + quantizing


@pytest.mark.nightly
@pytest.mark.parametrize(("chip", "recipe"), [("v5e", "int8"), ("tpu7x", "int8"), ("tpu7x", "fp8")])
def test_on_other_platforms_programs_have_the_numbers_of_plain_operations(chip: str, recipe: str):
    outs = [
        srjit.srjit(step, recipe=recipe, target=target)(*ARGS, sr_key=0)
        for target in (chip, "portable")
    ]
    jax.tree.map(np.testing.assert_array_equal, *outs)
