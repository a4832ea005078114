"""Dimensions that have a name in place of a number while a program is exported."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

UNKNOWN = -1  # such a dimension in reports


def is_known(n: Any) -> bool:
    """True if a dimension is a number."""
    return isinstance(n, (int, np.integer))


def all_known(shape: Iterable[Any]) -> bool:
    """True if all dimensions of a shape are numbers."""
    return all(map(is_known, shape))


def in_numbers(shape: Sequence[Any]) -> tuple[int, ...]:
    """A shape as reports have it."""
    return tuple(n if is_known(n) else UNKNOWN for n in shape)


def with_ones(number: Any) -> int:
    """A number of symbolic dimensions if each is 1; another number itself. Private in JAX."""
    if isinstance(number, (int, np.integer)):
        return int(number)
    return int(number._evaluate(dict.fromkeys(number._get_vars(), 1)))


def stand_ins(shape: Sequence[Any]) -> tuple[int, ...]:
    """The dimensions of a shape in ascending order, with large numbers for symbolic ones.

    Equal for equal dimensions; products of them divide where those of the dimensions do.
    """
    return tuple(sorted(n if is_known(n) else _stand_in(n) for n in shape))


def _stand_in(n: Any) -> int:
    names = {v: 2**31 + 2 * zlib.crc32(v.encode()) + 1 for v in n._get_vars()}
    return int(n._evaluate(names))


def word(n: Any) -> Any:
    """A number of elements modulo 2^32, as uint32: a constant, or a value of the program."""
    return np.uint32(n % 2**32) if is_known(n) else jax.lax.convert_element_type(n, jnp.uint32)


def may_repeat(shape: Sequence[Any]) -> str:
    """A warning that a tensor may have more elements than noise, and the cure; empty if not.

    Where a shape is known, noise never ends: see ``random_bits``.
    """
    if all_known(shape):
        return ""
    *leading, columns = shape
    count = math.prod(leading) * (columns + 1)  # as many as indices, or more
    try:
        if count <= 2**32:  # by the constraints of the dimensions
            return ""
    except jax.errors.InconclusiveDimensionOperation:
        pass
    names = ", ".join(map(str, shape))
    return (
        f"noise of a tensor of shape ({names}) comes again beyond 2^32 elements: bound it where "
        f'its dimensions are made, constraints=["{count}<=4294967296"]'
    )


class SymbolicDimensionError(ValueError):
    """Something has to know the length of a dimension that an exported program leaves open."""


def check_known(shape: Sequence[Any], dim: int, what: str) -> None:
    """Raises SymbolicDimensionError if ``what`` runs along a dimension of no known length."""
    if not is_known(shape[dim]):
        raise SymbolicDimensionError(
            f"{what} along dimension {shape[dim]} of a tensor of shape "
            f"({', '.join(map(str, shape))}), and have to know its length: give {shape[dim]} a "
            "number before exporting, or take a recipe whose scales do not run along it (int8 and "
            "fp8 have one scale a tensor)"
        )
