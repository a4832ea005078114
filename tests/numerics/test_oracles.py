"""The oracles against each other and against ml_dtypes: one mistake does not make a truth."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from oracles.grids import GRIDS, nearest_by_formula
from srjit.numerics.elements import ELEMENTS

from .support import SMALL_FLOATS, every_16_bit_float

# mantissa bits, e_min, largest value: as in the tables of the OCP specifications
PARAMETERS = {
    "int8": (None, 0, 127),
    "int4": (None, 0, 7),
    "float4_e2m1fn": (1, 0, 6),
    "float8_e4m3fn": (3, -6, 448),
    "float8_e5m2": (2, -14, 57344),
    "bfloat16": (7, -126, Fraction(2) ** 127 * Fraction(255, 128)),
    "float16": (10, -14, 65504),
}
FLOATS = [name for name, (m, _, _) in PARAMETERS.items() if m is not None]


def finite(name: str) -> np.ndarray:
    values = every_16_bit_float(name)
    return values[np.isfinite(values)]


def test_every_element_has_an_oracle_and_the_specified_parameters():
    assert set(GRIDS) == set(ELEMENTS) == set(PARAMETERS)
    for name, (m, e_min, largest) in PARAMETERS.items():
        element = ELEMENTS[name]
        assert (element.mantissa_bits, element.min_exponent) == (m, e_min)
        assert element.max == GRIDS[name].max == largest


@pytest.mark.parametrize("name", PARAMETERS)
def test_grids_and_formula_agree(name: str):
    sample = np.concatenate([finite(name)[::53] for name in SMALL_FLOATS], dtype=float)
    cells = GRIDS[name].magnitudes[:: max(1, len(GRIDS[name].magnitudes) // 256)]
    middles = (cells[1:] + cells[:-1]) / 2
    for y in np.concatenate([sample, cells, -cells, middles, -middles]):
        expected = nearest_by_formula(Fraction(y), *PARAMETERS[name])
        assert Fraction(float(GRIDS[name].nearest(y))) == expected, y


@pytest.mark.parametrize("source", SMALL_FLOATS)
@pytest.mark.parametrize("name", FLOATS)
def test_grids_and_ml_dtypes_agree_up_to_the_largest_value(name: str, source: str):
    y = finite(source)
    y = y[np.abs(y) <= GRIDS[name].max]
    cast = y.astype(SMALL_FLOATS[source]).astype(getattr(ml_dtypes, name, name)).astype(float)
    rounded = GRIDS[name].nearest(y)
    np.testing.assert_array_equal(rounded, cast)
    np.testing.assert_array_equal(np.signbit(rounded), np.signbit(cast))


@pytest.mark.parametrize("name", FLOATS)
def test_grids_are_the_values_of_the_dtype(name: str):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    codes = np.arange(len(GRIDS[name].magnitudes), dtype=f"u{dtype.itemsize}")
    np.testing.assert_array_equal(codes.view(dtype).astype(float), GRIDS[name].magnitudes)
