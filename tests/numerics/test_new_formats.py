"""A format is one entry of a table: two that srjit lacks work everywhere once they are entered.

FP6 E2M3 with MX's scales, and E1M2 with NVFP4's. JAX has a dtype for neither.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srjit
from oracles import scales as oracle
from oracles.grids import GRIDS, NOISE, floats
from srjit import Operands, Quantization, Recipe, Rule
from srjit.numerics import random_bits
from srjit.numerics.elements import Element
from srjit.numerics.formats import FORMATS, Format
from srjit.numerics.rounding import round_to_grid
from srjit.numerics.scale_layouts import E8M0, NVFP4
from srjit.numerics.storage import Storage

from .support import assert_same_bits

E2M3 = Element("float6_e2m3fn", mantissa_bits=3, min_exponent=0, max=7.5)
E1M2 = Element("float4_e1m2fn", mantissa_bits=2, min_exponent=1, max=3.5)
HELD = jnp.dtype(jnp.float8_e4m3fn)
NEW = (
    Format("mxfp6", Storage(E2M3, HELD, bits=6), E8M0, "block", 32),
    Format("nve1m2", Storage(E1M2, HELD, bits=4), NVFP4, "block", 16),
)
NAMES = [f.name for f in NEW]
KEY = jax.random.key(11)
X = jax.random.normal(KEY, (48, 70)) * 3


@pytest.fixture(scope="module", autouse=True)
def entered() -> Iterator[None]:
    """The formats in srjit's table, and their grids in the oracle's."""
    grids = (floats(E2M3.name, 2, 3, not_finite=0), floats(E1M2.name, 1, 2, not_finite=0))
    FORMATS.update({f.name: f for f in NEW})
    GRIDS.update({g.name: g for g in grids})
    yield
    for fmt in NEW:
        del FORMATS[fmt.name], GRIDS[fmt.element.name]


def expected(x: jax.Array, name: str, *, square: bool = False, up: bool = False):
    made = oracle.mx if name == "mxfp6" else oracle.nvfp4
    return made(np.asarray(x), element=FORMATS[name].element.name, square=square, up=up)


@pytest.mark.parametrize("name", NAMES)
def test_an_elements_parameters_are_those_of_its_bits(name: str):
    element, grid = FORMATS[name].element, GRIDS[FORMATS[name].element.name].magnitudes
    assert (element.smallest, element.max) == (grid[1], grid[-1])
    assert len(grid) == 2 ** (FORMATS[name].storage.bits - 1)
    assert np.all(grid.astype(HELD).astype(float) == grid)


@pytest.mark.parametrize("scale_rounding", ["standard", "up"])
@pytest.mark.parametrize("granularity", ["block", "square"])
@pytest.mark.parametrize("name", NAMES)
def test_codes_scales_and_what_they_stand_for_are_the_specifications(
    name: str, granularity: str, scale_rounding: str
):
    spec = Quantization(format=name, granularity=granularity, scale_rounding=scale_rounding)
    q = jax.jit(srjit.quantize, static_argnums=1)(X, spec)
    same = expected(X, name, square=granularity == "square", up=scale_rounding == "up")
    assert q.codes.dtype == HELD
    assert_same_bits(np.asarray(q.codes).astype(np.float32), same.codes)
    np.testing.assert_array_equal(np.asarray(q.scale).astype(float), same.scale)
    if same.tensor_scale is not None:
        assert float(q.tensor_scale) == float(same.tensor_scale)
    exact = same.dequantized(spec.block_size)
    np.testing.assert_allclose(q.dequantize(), exact, rtol=2**-23, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_is_rounded_up_by_as_many_noise_values_as_its_fraction(name: str):
    element, grid = FORMATS[name].element, GRIDS[FORMATS[name].element.name]
    low, high = grid.magnitudes[:-1, None], grid.magnitudes[1:, None]
    y = (low + (high - low) * np.array([0, 2.0**-24, 0.3, 0.5, 0.9])).ravel().astype(np.float32)
    y = np.concatenate([y, -y, np.float32([grid.max, 9, -1e30])])
    toward_zero, away = grid.neighbours(y)
    first = NOISE - grid.noise_that_rounds_up(y)  # of the noise values that round up
    for noise in (first - 1, first, first * 0, first * 0 + NOISE - 1):
        noise = np.clip(noise, 0, NOISE - 1)
        rounded = round_to_grid(jnp.asarray(y), element, jnp.asarray(noise << 8, jnp.uint32))
        assert_same_bits(
            np.asarray(rounded), np.where(noise >= first, away, toward_zero).astype(np.float32)
        )


@pytest.mark.parametrize("name", NAMES)
def test_stochastic_round_takes_the_name_and_its_keys_noise(name: str):
    grid, y = GRIDS[FORMATS[name].element.name], np.asarray(X)
    codes = srjit.stochastic_round(X, name, KEY)
    up = (np.asarray(random_bits.random_bits(random_bits.as_key(KEY), X)) >> 8) >= (
        NOISE - grid.noise_that_rounds_up(y)
    )
    low, high = grid.neighbours(y)
    np.testing.assert_array_equal(np.asarray(codes).astype(float), np.where(up, high, low))


# ------------------------------------------------------------------------------------ programs


def recipe() -> Recipe:
    forward, gradient = (
        Quantization(format="mxfp6"),
        Quantization(format="nve1m2", rounding="stochastic", scale_rounding="up"),
    )
    weight = Quantization(format="nve1m2", granularity="square")
    rule = Rule(
        fprop=Operands(activation=forward, weight=weight),
        dgrad=Operands(gradient=gradient, weight=weight),
        wgrad=Operands(activation=forward, gradient=gradient),
    )
    return Recipe(name="new", rules=(rule,))


W, INPUTS = jax.random.normal(KEY, (64, 31)), jax.random.normal(jax.random.key(3), (32, 64))


def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean((x @ w - x @ W) ** 2)


def step(w: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    value, gradient = jax.value_and_grad(loss)(w, x)
    return value, w - 0.5 * gradient


def test_a_product_multiplies_what_the_oracle_dequantizes():
    x = expected(INPUTS, "mxfp6").dequantized(32)
    w = expected(W.T, "nve1m2", square=True).dequantized(16).T
    made = srjit.srjit(lambda w, x: x @ w, recipe=recipe(), mode="inference")(W, INPUTS)
    np.testing.assert_allclose(made, x @ w, rtol=1e-5, atol=1e-5)


def test_training_steps_learn_and_have_the_same_bits_through_both_doors():
    doors = [srjit.srjit(step, recipe=recipe(), layer=layer) for layer in ("jaxpr", "stablehlo")]
    found: list[list[float]] = []
    for train in doors:
        w, losses = jnp.zeros_like(W), []
        for i in range(60):
            value, w = train(w, INPUTS, sr_key=i)
            losses.append(float(value))
        found.append(losses)
    assert found[0] == found[1]
    assert found[0][-1] < found[0][0] / 10


def test_frozen_weights_have_their_own_bits():
    def forward(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return jax.nn.relu(x @ params["up"]) @ params["down"]

    quantized = recipe().rules[0].fprop
    assert quantized is not None
    for name, last in (("mxfp6", 24), ("nve1m2", 16)):
        weight = Quantization(format=name)
        rule = Rule(fprop=Operands(activation=quantized.activation, weight=weight))
        fn = srjit.srjit(forward, recipe=Recipe(name="new", rules=(rule,)), mode="inference")
        params = {"up": W[:, :30], "down": W[:30, :31]}
        packed, run = srjit.freeze(fn, params, INPUTS)
        codes = packed["down.codes"]  # 31 numbers a row, padded to whole bytes
        assert (codes.shape, codes.dtype) == ((30, last), jnp.uint8)
        np.testing.assert_array_equal(run(packed, INPUTS), fn(params, INPUTS))


def test_recipes_are_read_back_as_they_were_written():
    text = recipe().to_toml()
    assert 'fprop.activation = { format = "mxfp6" }' in text
    assert Recipe.from_toml(text) == recipe()


def test_reports_and_errors_say_the_names():
    text = str(srjit.srjit(step, recipe=recipe()).explain(W, INPUTS))
    assert "mxfp6 " in text and "nve1m2~" in text  # stochastic
    with pytest.raises(ValueError, match=r"unknown format 'mxfp5'.*'mxfp6'.*nve1m2"):
        Quantization(format="mxfp5")
    with pytest.raises(ValueError, match="nve1m2', which has a scale per block"):
        Quantization(format="nve1m2", granularity="tensor")
    with pytest.raises(ValueError, match="for format 'nvfp4': it does not fit"):
        Quantization(format="nve1m2", scale_rounding="four_over_six")
