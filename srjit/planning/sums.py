"""Values as sums of a program's inputs: how often a parameter is in what it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax.numpy as jnp

from srjit.program.places import Place
from srjit.program.protocols import Variable, is_literal

SCATTERED = {"scatter-add", "scatter_add"}  # p.at[rows].add(u): of p once
ARITHMETIC = {"add", "sub", "add_any", "mul", "div", "neg"} | SCATTERED
_PARTS = {"gather", "dynamic_slice", "slice"}
_SIGNS = {"sub": (1.0, -1.0), "neg": (-1.0,)}
_ABOUT_ONCE = 0.25, 1.75  # how often a parameter is in what it becomes
Kind = tuple[tuple[int, ...], str]  # shape and dtype


def kind_of(v: Variable) -> Kind:
    """Shape and dtype of a variable."""
    return v.aval.shape, str(v.aval.dtype)


class Sum:
    """A value as a sum of the program's inputs of a dtype, which the value may be wider than.

    Args:
      inputs: shapes and dtypes of the program's inputs.
      origin: tells the input that a value is, passed on and nothing else.
      is_output: tells whether the program returns a value itself.
      value: the value.
      dtype: that of the inputs that are summed.
      part: whether a part of an input counts as it: where the value is put in its place again.

    Attributes:
      inputs: how often each is in it; what is multiplied by no constant counts once.
      between: the places where narrow values are made on the way, without the value's own.
    """

    def __init__(
        self,
        inputs: Sequence[Kind],
        origin: Callable[[Place], int | None],
        is_output: Callable[[Place], bool],
        value: Place,
        dtype: str,
        part: bool = False,
    ) -> None:
        self._origin, self._is_output, self._value = origin, is_output, value
        self._is_wide, self._part = kind_of(value.var)[1] != dtype, part
        self._known: dict[Place, dict[int, float]] = {}
        self._find(value)
        least, most = _ABOUT_ONCE
        self.inputs = {
            i: f
            for i, f in self._known[value].items()
            if inputs[i][1] == dtype and least <= f <= most
        }
        self.between = tuple(
            p for p, f in self._known.items() if f and p != value and p.operation in ARITHMETIC
        )

    def _find(self, value: Place) -> None:
        """Finds what is in a value, and in all on the way: operands first."""
        left = [value]
        while left:
            place = left[-1]
            origin = self._origin(place)
            terms = self._terms(place) if origin is None else []
            missing = [p for p, _ in terms if p not in self._known]
            if missing:
                left += missing
                continue
            left.pop()
            found = {} if origin is None else {origin: 1.0}
            for p, factor in terms:
                for i, f in self._known[p].items():
                    found[i] = found.get(i, 0.0) + factor * f
            self._known[place] = found

    def _terms(self, place: Place) -> list[tuple[Place, float]]:
        """The places that one adds up, and how often."""
        if place != self._value and self._is_output(place):
            return []  # what is returned itself is rounded there
        if self._part and place.operation in _PARTS:
            return [(p, 1.0) for p in place.operands[:1] if not p.is_literal]
        if self._part and not self._is_wide and len(place.same) == 1:
            return [(place.same[0], 1.0)]
        if self._is_wide and (same := place.same or _widened(place)):
            return [(p, 1.0) for p in same if len(same) == 1 and not p.is_literal]
        is_kind = self._is_wide or kind_of(place.var)[1] == kind_of(self._value.var)[1]
        if not is_kind or place.operation not in ARITHMETIC:
            return []
        if place.operation in SCATTERED:
            return [(place.operands[0], 1.0)]
        terms = [(p, _constant(p)) for p in place.operands]
        if place.operation in ("mul", "div"):
            factor = next((c for _, c in terms if c is not None), 1.0)
            if place.operation == "div":  # no divisor is a term
                terms, factor = terms[:1], 1 / factor if factor else 1.0
            found = [(p, factor) for p, c in terms if c is None]
        else:
            signs = _SIGNS.get(place.operation, (1.0, 1.0))
            found = [(p, sign) for (p, c), sign in zip(terms, signs, strict=True) if c is None]
        return found


def _widened(place: Place) -> list[Place]:
    """The operand of a conversion between floats."""
    if place.operation != "convert_element_type":
        return []
    (value,) = place.operands
    return [value] if jnp.issubdtype(value.var.aval.dtype, jnp.floating) else []


def _constant(place: Place) -> float | None:
    """The number that all elements of a value are; None: of which that is not known."""
    while not is_literal(place.var):
        if isinstance(place.outside, Place):
            place = place.outside
        elif place.operation in ("broadcast_in_dim", "convert_element_type"):
            place = place.operands[0]
        else:
            return None
    value = place.var.val
    return float(value) if jnp.ndim(value) == 0 else None


def multiplies_by_one(place: Place) -> bool:
    """True if a factor may have been rounded to 1: programs have no reason to multiply by it."""
    return place.operation == "mul" and 1.0 in [_constant(p) for p in place.operands]
