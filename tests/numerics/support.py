"""What several tests of the numerics share."""

from __future__ import annotations

import ml_dtypes
import numpy as np

SMALL_FLOATS = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def every_16_bit_float(name: str) -> np.ndarray:
    """All values of a 16-bit float that are not NaN, as float32."""
    with np.errstate(invalid="ignore"):
        values = np.arange(2**16, dtype=np.uint16).view(SMALL_FLOATS[name]).astype(np.float32)
    return values[~np.isnan(values)]


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal in every bit, signs of zeros included."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    word = f"u{actual.dtype.itemsize}"
    np.testing.assert_array_equal(actual.view(word), expected.view(word))
