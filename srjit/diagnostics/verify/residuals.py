"""Residuals of a tensor that is rounded again and again, in steps of its grid, streamed.

Memory is that of a few copies of the tensor, whatever the number of draws: sums of residuals per
element, sums of products of neighbours, and single residuals only of the first ``HEAD`` elements.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srjit.diagnostics.verify.averages import Averages, Error, checkpoints
from srjit.diagnostics.verify.far_pairs import far_pairs
from srjit.diagnostics.verify.statistics import Signed
from srjit.diagnostics.verify.sums import of_parts, of_twins
from srjit.numerics.elements import Element
from srjit.numerics.random_bits import row_stride

SAMPLE = 2**16  # elements, and pairs of neighbours along each dimension, of larger tensors
HEAD = 2**12  # elements whose residuals are kept for every draw
CORNER = 2**13  # and of a corner of the tensor, seen as a matrix
FRACTIONS = 8  # bins of the fraction of a step
ARITHMETIC = 2.0**-22  # of float32: of a value in steps, and of a sum of residuals
TINY = 2.0**-126  # a difference that is smaller is none in float32
SATURATED = "beyond the largest value"
SUBNORMAL = "subnormal"
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A tensor on the grid that it is rounded to; arrays are flat, float64, one number an element.

    Attributes:
      expected: the tensor, in its own unit; 0 where it is not finite.
      step: the distance of its neighbours on the grid, in the same unit; 0 where it is not finite.
      binade: floor(log2) of the magnitude on the grid's own scale.
      lowest: the binade below which numbers are subnormal.
      clipped: whether the magnitude is beyond the largest value.
      shape: the tensor's.
    """

    expected: Floats
    step: Floats
    binade: np.ndarray[Any, Any]
    lowest: int
    clipped: np.ndarray[Any, Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, expected: Any, scale: Any, element: Element) -> Grid:
        """The grid of an element type under scales.

        Args:
          expected: float array.
          scale: float array that broadcasts against it: what codes are multiplied by.
          element: the grid of the codes.
        """
        x, scales, shape = _finite(expected, scale)
        with np.errstate(divide="ignore", invalid="ignore"):
            y = np.where(scales > 0, np.abs(x) / scales, 0.0)
        # Of a finite number frexp is exact: y = m * 2^e with 1/2 <= m < 1.
        binade = np.where(y > 0, np.frexp(y)[1] - 1, element.min_exponent - 1)
        binade = np.maximum(binade, element.min_exponent - 1)
        m = element.mantissa_bits
        power = 0 if m is None else np.maximum(binade, element.min_exponent) - m
        step = np.ldexp(1.0, power) * scales
        # Rounding of the scale itself may put a block's maximum a little beyond the largest value.
        clipped = y > element.max * (1 + ARITHMETIC)
        return cls(x, step, binade, element.min_exponent, clipped, shape)

    @classmethod
    def of_steps(cls, expected: Any, step: Any) -> Grid:
        """A grid whose values are multiples of ``step``, which broadcasts against ``expected``."""
        x, steps, shape = _finite(expected, step)
        t = np.abs(x) / np.where(steps > 0, steps, 1)
        binade = np.where(t >= 1, np.frexp(t)[1] - 1, -1)
        return cls(x, steps, binade, 0, np.zeros(x.shape, bool), shape)

    @property
    def position(self) -> Floats:
        """|expected| / step: how many steps from zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.step > 0, np.abs(self.expected) / self.step, 0.0)

    @property
    def fraction(self) -> Floats:
        """The probability of rounding away from zero; 0 where none is, or float32 tells none."""
        t = self.position
        return np.where(self.clipped | (self.step < TINY), 0.0, t - np.floor(t))

    @property
    def per_step(self) -> Floats:
        """Steps in a unit: what residuals are multiplied by; 0 where float32 cannot tell any."""
        told = (self.step >= TINY) | ((self.expected == 0) & (self.step > 0))
        return np.where(told, 1 / np.maximum(self.step, TINY), 0.0)

    @property
    def variance(self) -> Floats:
        """The variance of a residual, in squared steps."""
        return self.fraction * (1 - self.fraction)

    def between(self) -> float:
        """The fraction of elements between two values of the grid: what noise decides."""
        return float(np.mean(self.fraction > 0)) if self.clipped.size else 0.0

    def saturation(self) -> float:
        """The fraction of elements beyond the largest value."""
        return float(np.mean(self.clipped)) if self.clipped.size else 0.0

    def underflow(self) -> float:
        """The fraction of elements that are not zero but below the smallest value that is not."""
        small = (self.expected != 0) & (self.position < 1) & (self.step > 0)
        return float(np.mean(small)) if small.size else 0.0


def _finite(expected: Any, steps: Any) -> tuple[Floats, Floats, tuple[int, ...]]:
    """Both, flat, with 0 where either is not finite; and the shape."""
    x = np.asarray(expected, np.float64)
    size = np.broadcast_to(np.asarray(steps, np.float64), x.shape)
    told = np.isfinite(x) & np.isfinite(size)
    return np.where(told, x, 0.0).ravel(), np.where(told, size, 0.0).ravel(), x.shape


def _disjoint_neighbours(shape: tuple[int, ...], axis: int, rng: Any) -> np.ndarray[Any, Any]:
    """Flat positions, (2, pairs): elements with even coordinates along ``axis``, and the next."""
    stride = int(np.prod(shape[axis + 1 :], dtype=np.int64))
    size = int(np.prod(shape, dtype=np.int64))
    block = shape[axis] * stride
    count = size // block * (shape[axis] // 2) * stride
    chosen = np.arange(count) if count <= SAMPLE else np.unique(rng.integers(0, count, SAMPLE))
    outer, inner = np.divmod(chosen, shape[axis] // 2 * stride)
    row, column = np.divmod(inner, stride)
    first = outer * block + 2 * row * stride + column
    return np.stack([first, first + stride])


class Pairs(NamedTuple):
    """Pairs of elements.

    Attributes:
      positions: flat, (2, pairs); no element is in two pairs.
      products: of each pair's residuals, summed over all draws.
    """

    positions: np.ndarray[Any, Any]
    products: Floats


@dataclasses.dataclass(frozen=True)
class Residuals:
    """The residuals of many draws.

    Attributes:
      grid: what was rounded.
      draws: how often.
      chosen: flat positions of the elements whose sums are here; all of a small tensor.
      totals: their sums of residuals, in steps.
      averages: how their means converge.
      neighbours: pairs along each dimension, by its name.
      far: other pairs, by what they are; see ``far_pairs``.
      head: residuals of the first elements, (draws, elements); 0 beyond the largest value.
      corner: residuals of the first elements of the first rows, (draws, elements).
      corner_at: their positions, (rows, columns).
    """

    grid: Grid
    draws: int
    chosen: np.ndarray[Any, Any]
    totals: Floats
    averages: Averages
    neighbours: dict[str, Pairs]
    far: dict[str, Pairs]
    head: np.ndarray[Any, Any]
    corner: np.ndarray[Any, Any]
    corner_at: np.ndarray[Any, Any]

    # -------------------------------------------------------------------------------- the tests

    def biases(self, bits: int) -> Iterator[Signed]:
        """Signed sums of all elements, and of every cell: sign, binade and fraction of a step.

        Args:
          bits: of the noise: a path may round up with a probability that is 2^-bits off.
        """
        g, at = self.grid, self.chosen
        sign = np.sign(g.expected[at])
        p, t = g.fraction[at], g.position[at]
        allowance = 2.0**-bits + (t + 1) * ARITHMETIC

        def summed(where: str, mask: Any, signs: Any) -> Signed:
            total = float(np.sum((self.totals * signs)[mask]))
            variances = (p * (1 - p))[mask]
            return _signed("bias", where, total, variances, self.draws, allowance[mask])

        clipped = g.clipped[at]
        inside = ~clipped & (sign != 0)
        yield summed("all elements", inside, 1.0)
        yield summed("all elements, away from zero", inside, sign)
        if clipped.any():
            yield summed(f"{SATURATED}, away from zero", clipped, sign)
        if not sign.all():
            yield summed("zeros", sign == 0, 1.0)
        bins = np.minimum((p * FRACTIONS).astype(np.int64), FRACTIONS - 1)
        cell = ((g.binade[at] * FRACTIONS) + bins) * 2 + (sign > 0)
        for number in np.unique(cell[inside]):
            rest, positive = divmod(int(number), 2)
            binade, part = divmod(rest, FRACTIONS)
            kind = SUBNORMAL if binade < g.lowest else f"binade 2^{binade}"
            name = (
                f"{'positive' if positive else 'negative'}, {kind}, "
                f"fraction {part / FRACTIONS:g} to {(part + 1) / FRACTIONS:g}"
            )
            yield summed(name, inside & (cell == number), 1.0)

    def pairs(self) -> Iterator[Signed]:
        """Products of the residuals of disjoint pairs: as they are, and as seen from zero."""
        variance, sign = self.grid.variance, np.sign(self.grid.expected)
        for what, sets in (("neighbours", self.neighbours), ("distances", self.far)):
            for name, ((first, second), products) in sets.items():
                both, signs = variance[first] * variance[second], sign[first] * sign[second]
                for kind, s in (("as they are", 1.0), ("away from zero", signs)):
                    total = float(np.sum(products * s))
                    yield _signed(what, f"{name}, {kind}", total, both, self.draws)

    def sums(self, bits: int) -> Iterator[Signed]:
        """Sums over parts of the corner, and what some elements of ``head`` tell of others."""
        allowance = 2.0**-bits + (self.grid.position + 1) * ARITHMETIC
        at = self.corner_at
        if at.size:
            kept = self.corner.reshape(len(self.corner), *at.shape).astype(np.float64)
            yield from of_parts(kept, self.grid.variance[at], allowance[at])
        head = self.head.shape[1]
        yield from of_twins(self.head, self.grid.variance[:head], allowance[:head])

    def steps(self) -> Signed:
        """Products of an element's residuals in one draw and the next, of disjoint pairs."""
        n = self.draws // 2
        total = np.sum(self.head[: 2 * n : 2] * self.head[1 : 2 * n : 2], dtype=np.float64)
        both = self.grid.variance[: self.head.shape[1]] ** 2
        return _signed("steps", "one step and the next", float(total), both, n)

    def with_another(self, other: Residuals, name: str) -> Iterator[Signed]:
        """Products of residuals of two tensors, of elements whose noise has the same index."""
        mine, theirs = self._noise_index(), other._noise_index()
        _, a, b = np.intersect1d(mine, theirs, assume_unique=True, return_indices=True)
        both = self.grid.variance[a] * other.grid.variance[b]
        x, y = self.head[:, a], other.head[:, b]
        signs = np.sign(self.grid.expected[a]) * np.sign(other.grid.expected[b])
        products = np.sum(x * y, axis=0, dtype=np.float64)
        for kind, s in (("as they are", 1.0), ("away from zero", signs)):
            total = float(np.sum(products * s))
            yield _signed("sites", f"{name}, {kind}", total, both, self.draws)

    def _noise_index(self) -> np.ndarray[Any, Any]:
        """The index of each element of ``head`` where noise is drawn: see ``random_bits``."""
        columns = self.grid.shape[-1] if self.grid.shape else 1
        row, column = np.divmod(np.arange(self.head.shape[1]), max(columns, 1))
        return row * row_stride(columns) + column

    def never_change(self) -> bool:
        """True if all draws rounded alike, to float32's precision."""
        if not self.head.size:
            return False
        return bool(np.max(np.ptp(self.head, axis=0)) < 0.5)

    def never_rounds(self) -> bool:
        """True if no draw is off by more than arithmetic, in steps, may be."""
        position = self.grid.position[: self.head.shape[1]]
        return bool(np.all(np.abs(self.head) <= (position + 1) * ARITHMETIC))


def _signed(
    what: str,
    where: str,
    total: float,
    variances: Any,
    repeats: int,
    # A mean residual of the arithmetic's size in both makes a product of its square.
    allowance: Any = ARITHMETIC,
) -> Signed:
    """A sum of terms that have these variances, ``repeats`` times each."""
    return Signed(
        what,
        where,
        total,
        repeats * float(np.sum(variances)),
        repeats * int(np.size(variances)),
        repeats * float(np.sum(np.sqrt(variances))),
        repeats * float(np.sum(np.broadcast_to(allowance, np.shape(variances)))),
    )


def draw_residuals(
    draw: Callable[..., jax.Array],
    keys: Any,
    grid: Grid,
    operands: Sequence[Any] = (),
) -> Residuals:
    """Rounds with every key.

    Args:
      draw: of a key and the operands, the rounded tensor: in the unit of ``grid``, of its shape.
      keys: a pytree of arrays, whose leading dimension is the draws.
      grid: what is rounded.
      operands: pytrees of arrays; what ``draw`` captures instead, XLA takes for constants.
    """
    rng = np.random.default_rng(0)  # chooses elements of a large tensor
    size, draws = grid.expected.size, len(jax.tree.leaves(keys)[0])
    everything = np.arange(size)
    chosen = everything if size <= SAMPLE else np.sort(rng.choice(size, SAMPLE, replace=False))
    ndim = len(grid.shape)
    neighbours = {
        f"dimension {axis - ndim}": _disjoint_neighbours(grid.shape, axis, rng)
        for axis in range(ndim)
        if grid.shape[axis] > 1 and size
    }
    far, corner_at = far_pairs(grid.shape), _corner(grid.shape)
    sets = [*neighbours.values(), *far.values()]
    first, second = np.concatenate([*sets, np.zeros((2, 0), np.int64)], axis=1)
    kept_at = np.concatenate([corner_at.ravel(), np.arange(min(size, HEAD))])
    constants = (
        jnp.asarray(grid.expected, jnp.float32),
        jnp.asarray(grid.per_step, jnp.float32),
        jnp.asarray(~grid.clipped, jnp.float32),  # what is clipped is no noise
        *map(jnp.asarray, (chosen, first, second, kept_at)),
    )

    def one(i: Any, carry: Any, keys: Any, operands: Any, constants: Any) -> Any:
        totals, products, kept = carry
        expected, unit, inside, chosen, first, second, kept_at = constants
        rounded = draw(jax.tree.map(lambda k: k[i], keys), *operands).ravel().astype(jnp.float32)
        residual = jnp.where(unit > 0, (rounded - expected) * unit, 0)
        noise = residual * inside
        a, b, few = (noise.at[p].get(mode="promise_in_bounds") for p in (first, second, kept_at))
        kept = lax.dynamic_update_index_in_dim(kept, few, i, 0)
        return totals + residual[chosen], products + a * b, kept

    @jax.jit
    def advance(carry: Any, start: Any, stop: Any, *operands: Any) -> Any:
        return lax.fori_loop(start, stop, lambda i, c: one(i, c, *operands), carry)

    carry = (jnp.zeros(len(chosen)), jnp.zeros(len(first)), jnp.zeros((draws, len(kept_at))))
    errors: dict[int, Error] = {}
    done, exact = 0, grid.expected[chosen]
    for count in checkpoints(draws):
        carry = advance(carry, done, count, keys, operands, constants)
        done = count
        off = np.asarray(carry[0], np.float64) / count * grid.step[chosen]
        errors[count] = Error.of(exact + off, exact)
    totals, products, kept = (np.asarray(x) for x in carry)
    cuts = np.cumsum([p.shape[1] for p in sets])[:-1].tolist()
    drawn = map(Pairs, sets, np.split(products.astype(np.float64), cuts))
    return Residuals(
        grid=grid,
        draws=draws,
        chosen=chosen,
        totals=totals.astype(np.float64),
        averages=Averages(errors),
        neighbours=dict(zip(neighbours, drawn, strict=False)),
        far=dict(zip(far, drawn, strict=True)),
        head=kept[:, corner_at.size :],
        corner=kept[:, : corner_at.size],
        corner_at=corner_at,
    )


def _corner(shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Flat positions of a corner, (rows, columns), of a tensor seen as a matrix."""
    columns = shape[-1] if shape else 1
    size = int(np.prod(shape, dtype=np.int64))
    if not size:
        return np.zeros((0, 0), np.int64)
    width = min(columns, 128)
    height = min(size // columns, CORNER // width)
    width = min(columns, CORNER // height)
    return np.arange(height)[:, None] * columns + np.arange(width)
