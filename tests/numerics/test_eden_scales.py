"""MS-EDEN's scales are the published algorithm's, given its noise."""

import jax
import numpy as np
import pytest

from oracles import noise
from oracles import scales as oracle
from oracles.grids import GRIDS
from srjit.numerics import hadamard
from srjit.numerics.encode import quantize
from srjit.numerics.quantization import Quantization

from .support import assert_same_bits
from .test_scales import TENSORS, jitted

EDEN = {"format": "nvfp4", "scale_rounding": "eden", "hadamard": True}


@pytest.mark.parametrize("case", TENSORS)
def test_eden_is_the_published_algorithm_given_its_noise(case: str):
    x, spec = TENSORS[case], Quantization(rounding="stochastic", **EDEN)
    z = np.asarray(jax.jit(lambda x: hadamard.transform(x, 1, 128))(x))
    q = jax.jit(quantize, static_argnums=1)(x, spec, 3)
    if not np.isfinite(z).all():  # the sum of 128 was too large
        assert np.isnan(np.asarray(q.scale).astype(np.float32)).any()
        return
    same = oracle.eden(z)
    assert_same_bits(np.asarray(q.codes).astype(np.float32), same.codes)
    assert_same_bits(np.asarray(q.tensor_scale), same.tensor_scale)
    word = noise.hash_bits(noise.mix_words(*np.uint32([3, 0])), noise.element_index(q.scale.shape))
    u = (~word >> np.uint32(8)) / 2.0**24
    # The correction is of sums of 128 numbers, whose order is not said: 2^-24 * 128 of a scale of
    # up to 16 steps, for both sums.
    margin = 2 * 128 * 2.0**-24 * 16
    off = np.abs(u - oracle.GRIDS["float8_e4m3fn"].fraction(same.corrected))
    sure = (margin < off) & (off < 1 - margin)
    # Of 384 fair draws, six are so near with a probability below (384 * 2 * margin)^6 / 6! = 1e-7.
    assert (~sure).sum() < 6
    scale = np.asarray(q.scale).astype(np.float64)
    np.testing.assert_array_equal(scale[sure], same.scale(u)[sure])
    if case == "gaussian":
        assert (scale != np.asarray(jitted(x, **EDEN).scale).astype(np.float64)).any()


@pytest.mark.parametrize("case", TENSORS)
def test_eden_to_nearest_rounds_the_same_scales_to_nearest(case: str):
    x = TENSORS[case]
    z = np.asarray(jax.jit(lambda x: hadamard.transform(x, 1, 128))(x))
    if not np.isfinite(z).all():
        return
    same, scale = oracle.eden(z), np.asarray(jitted(x, **EDEN).scale).astype(np.float64)
    low, high = GRIDS["float8_e4m3fn"].neighbours(same.corrected)
    fraction = GRIDS["float8_e4m3fn"].fraction(same.corrected)
    sure = np.abs(fraction - 0.5) > 2 * 128 * 2.0**-24 * 16
    np.testing.assert_array_equal(scale[sure], np.where(fraction > 0.5, high, low)[sure])


@pytest.mark.parametrize(
    "spec",
    [
        {"format": "mxfp4", "hadamard": True},
        {"format": "nvfp4"},
        {"format": "nvfp4", "hadamard": True, "granularity": "square"},
        {"format": "nvfp4", "hadamard": True, "block": 48},
    ],
    ids=str,
)
def test_eden_fits_nothing_else(spec: dict[str, object]):
    with pytest.raises(ValueError, match="scale_rounding='eden' is for format 'nvfp4'"):
        Quantization(scale_rounding="eden", **spec)


def test_without_a_rotation_eden_is_stochastic_rounding_that_clips_nothing():
    unrotated = Quantization(rounding="stochastic", **EDEN).unrotated
    assert unrotated == Quantization(format="nvfp4", rounding="stochastic", scale_rounding="up")
