"""Codes and scales of every format, in float32 arithmetic as NumPy, that is IEEE 754, does it.

Blocks run along the last dimension, squares over the last two.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from oracles.grids import GRIDS

F = np.float32
FLT_MAX = np.finfo(F).max


class Quantized(NamedTuple):
    codes: np.ndarray  # grid values, in the dtype of the work
    scale: (
        np.ndarray
    )  # its value; dimensions that share a scale have size 1, blocked ones ceil(n/B)
    tensor_scale: np.ndarray | None = None

    def dequantized(self, block: int = 1) -> np.ndarray:
        """codes * scale * tensor_scale in float64."""
        scale = spread(self.scale.astype(np.float64), self.codes.shape, block)
        factor = 1 if self.tensor_scale is None else np.float64(self.tensor_scale)
        return self.codes.astype(np.float64) * scale * factor


def work(x: np.ndarray) -> np.ndarray:
    """x in float64 if it is, else in float32."""
    return x if x.dtype == np.float64 else x.astype(F)


def block_amax(x: np.ndarray, block: int, square: bool = False) -> np.ndarray:
    """max|x| of every block, blocked dimensions having size ceil(n / block)."""
    result = np.abs(x)
    for d in range(x.ndim)[-2:] if square else [x.ndim - 1]:
        starts = np.arange(0, x.shape[d], block)
        result = np.maximum.reduceat(result, starts, axis=d)
    return result


def spread(scale: np.ndarray, shape: tuple[int, ...], block: int) -> np.ndarray:
    """Every block's number at each of its elements, as far as broadcasting does not do it."""
    for d, n in enumerate(shape if scale.ndim else ()):
        if scale.shape[d] not in (1, n):
            scale = np.repeat(scale, block, axis=d).take(range(n), axis=d)
    return scale


def nvfp4_scales(
    b: np.ndarray, a: np.ndarray, *, up: bool = False, top: int = 2688, largest: float = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """encode, sf and tensor scale from the amax of blocks and of their tensors, float32.

    As published (arXiv 2509.25149 and Transformer Engine); every step rounds to float32. ``up``
    rounds sf up.
    """
    e4m3 = GRIDS["float8_e4m3fn"]
    with np.errstate(all="ignore"):
        s = np.minimum(F(top) / a, FLT_MAX)
        s = np.where((a == 0) | (s == 0), F(1), s)
        d = F(1) / s
        k = s * F(1 / largest)
        target = np.minimum(b * k, F(448))
        sf = (e4m3.up(target) if up else e4m3.nearest(target)).astype(F)
        encode = np.minimum(F(1) / (sf * d), FLT_MAX)
    return encode, sf, a / F(top)


def nvfp4(
    x: np.ndarray, *, square: bool = False, up: bool = False, element: str = "float4_e2m1fn"
) -> Quantized:
    """NVFP4, per 1 x 16 or 16 x 16 under one scale per tensor; or another element in its place."""
    x, grid = work(x), GRIDS[element]
    b = block_amax(x, 16, square).astype(F)
    top = int(448 * grid.max)
    encode, sf, tensor_scale = nvfp4_scales(b, b.max(), up=up, top=top, largest=grid.max)
    with np.errstate(all="ignore"):
        y = x * spread(encode, x.shape, 16).astype(x.dtype)
    codes = grid.nearest(y).astype(x.dtype)
    return Quantized(codes, sf, tensor_scale)


def four_over_six(
    x: np.ndarray, *, square: bool = False
) -> tuple[Quantized, Quantized, np.ndarray]:
    """NVFP4 with every block's largest element at 6, and at 4, and how much better 4 is.

    arXiv 2512.02010. The last is the difference of the blocks' squared errors, of the larger one.
    """
    x = work(x)
    b = block_amax(x, 16, square).astype(F)
    both: list[Quantized] = []
    errors: list[np.ndarray] = []
    for largest in (6, 4):
        encode, sf, scale = nvfp4_scales(b, b.max(), top=1536, largest=largest)
        with np.errstate(all="ignore"):
            y = x * spread(encode, x.shape, 16).astype(x.dtype)
            codes = GRIDS["float4_e2m1fn"].nearest(y).astype(x.dtype)
            off = (codes.astype(np.float64) - y) * spread(sf, x.shape, 16)
        both.append(Quantized(codes, sf, scale))
        rows = 16 if square else 1
        view = np.pad(off**2, [(0, -n % k) for n, k in zip(x.shape, (rows, 16), strict=True)])
        shape = view.shape[0] // rows, rows, view.shape[1] // 16, 16
        errors.append(view.reshape(shape).sum((1, 3)))
    with np.errstate(all="ignore"):
        better = (errors[0] - errors[1]) / np.maximum(*errors)
    return both[0], both[1], better


class Eden(NamedTuple):
    """MS-EDEN but for the rounding of its scales (arXiv 2601.22813)."""

    codes: np.ndarray
    corrected: np.ndarray  # scales of blocks before they are rounded, float64
    tensor_scale: np.ndarray

    def scale(self, noise: np.ndarray) -> np.ndarray:
        """Of the lower neighbours in E4M3 and those above, what noise in [0, 1) picks."""
        e4m3 = GRIDS["float8_e4m3fn"]
        low, high = e4m3.neighbours(self.corrected)
        return np.where(noise < e4m3.fraction(self.corrected), high, low)


def eden(z: np.ndarray, group: int = 128) -> Eden:
    """Of rows that are rotated already, of a multiple of ``group`` elements.

    The largest element of a block goes to 6 / (0.93 * 17/16), A to 256 times as much, both so
    rounded that the latter is the integer 1554; elements to nearest. Then the scales of every group
    are multiplied by <z, z> / <z, q>, in float64 here.
    """
    top, largest = 1554, 1554 / 256
    assert round(256 * 6 / (0.93 * 17 / 16)) == top
    b = block_amax(z, 16).astype(F)
    encode, sf, tensor_scale = nvfp4_scales(b, b.max(), top=top, largest=largest)
    with np.errstate(all="ignore"):
        y = z * spread(encode, z.shape, 16).astype(z.dtype)
    codes = GRIDS["float4_e2m1fn"].nearest(y)
    size = spread(sf.astype(np.float64), z.shape, 16)
    rows = (len(z), -1, group)
    exact = np.multiply(y, size, out=np.zeros_like(size), where=size != 0).reshape(rows)
    rounded = (codes * size).reshape(rows)
    squares, products = (exact * exact).sum(-1), (exact * rounded).sum(-1)
    correction = np.where(products == 0, 1, squares / np.where(products == 0, 1, products))
    corrected = np.minimum(sf * np.repeat(correction, group // 16, axis=1), 448)
    return Eden(codes.astype(z.dtype), corrected, tensor_scale)


def mx(
    x: np.ndarray, element: str, *, block: int = 32, square: bool = False, up: bool = False
) -> Quantized:
    """OCP Microscaling Formats v1.0, 6.3: X = 2^(floor(log2 amax) - emax), codes = round(v / X).

    ``up`` takes the smallest X under which no element exceeds the largest code.
    """
    x, grid = work(x), GRIDS[element]
    amax = block_amax(x, block, square).astype(np.float64)
    exponent = np.frexp(amax)[1] - 1 - int(np.floor(np.log2(grid.max)))
    if up:
        exponent = exponent + (np.ldexp(amax, -exponent) > grid.max)
    scale = np.ldexp(1.0, np.where(amax == 0, -127, np.maximum(exponent, -127)))
    codes = grid.nearest(x / spread(scale, x.shape, block))
    return Quantized(codes.astype(x.dtype), scale)


def float_scaled(x: np.ndarray, element: str, amax: np.ndarray, block: int = 1) -> Quantized:
    """scale = amax / M, codes = round(x * (M / amax)), steps rounded to x's dtype; 0 gives 1."""
    x, grid = work(x), GRIDS[element]
    largest = x.dtype.type(grid.max)
    one = x.dtype.type(1)
    zero = amax == 0
    safe = np.where(zero, one, amax)
    scale = np.where(zero, one, safe / largest)
    y = x * spread(np.where(zero, one, largest / safe), x.shape, block)
    return Quantized(grid.nearest(y).astype(x.dtype), scale)
