"""The values of a program as one graph: what each is made of, across loops and calls."""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterable, Iterator, Sequence
from typing import NamedTuple

from srjit.program.protocols import Equation
from srjit.program.values import Value

# What keeps a value what it is, seen as a tensor of a network.
VIEWS = {
    "convert_element_type", "transpose", "reshape", "squeeze", "expand_dims", "pcast",
    "sharding_constraint", "reduce_precision", "reshard", "broadcast_in_dim", "rev",
}  # fmt: skip
SLICES = {"slice", "dynamic_slice", "stablehlo.slice", "stablehlo.dynamic_slice"}
_PARTS = SLICES | VIEWS - {"convert_element_type", "reduce_precision", "broadcast_in_dim"}
ADDITIONS = {"add", "sub", "add_any", "scatter-add", "scatter_add"}
_SCALINGS = {
    "mul", "div", "neg", "add", "sub",
    "stablehlo.multiply", "stablehlo.divide", "stablehlo.negate",
}  # fmt: skip
# What is linear in one operand: it scales it, or it moves, selects and adds up elements.
FACTORS = {"mul", "select_n", "div", "stablehlo.multiply", "stablehlo.divide"}
LINEAR = FACTORS | {
    "add", "add_any", "sub", "neg", "stablehlo.negate", "convert_element_type", "transpose",
    "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "rev", "reduce_sum",
    "reduce_precision", "stablehlo.reduce", "slice", "stablehlo.slice", "dynamic_slice",
    "stablehlo.dynamic_slice",
    "pad", "stablehlo.pad", "concatenate", "stablehlo.concatenate", "gather", "stablehlo.gather",
    "scatter-add", "scatter_add", "stack", "carry", "cross", "merge", "sharding_constraint",
    "psum", "cumsum", "dynamic_update_slice", "stablehlo.dynamic_update_slice", "split", "copy",
    "pcast", "reshard", "psum2", "psum_invariant", "all_gather", "all_gather_invariant",
    "reduce_scatter", "ppermute", "all_to_all", "select_and_scatter_add", "reduce_window_sum",
    "real", "imag", "conj", "complex", "fft",
}  # fmt: skip
# Operands from there on are added up, or put together; those before scale, or choose.
_JOINED_FROM = dict.fromkeys(
    (*ADDITIONS, "concatenate", "stablehlo.concatenate", "carry", "merge"), 0
) | {"select_n": 1}
# These keep the order of elements, or turn whole dimensions around.
_SAME_DIMENSIONS = {
    "convert_element_type", "pcast", "sharding_constraint", "reduce_precision", "reshard", "rev",
}  # fmt: skip
_RESHAPES = {"reshape", "squeeze", "expand_dims"}


class Made(NamedTuple):
    """The operation that made a value, and its operands.

    Attributes:
      name: of the operation; ``slice`` and ``stack`` of what loops read and write, ``carry`` of
        what they hand on, ``cross`` at the border of a shard_map.
      operands: tokens.
      eqn: the equation; None at the borders of control flow.
      transforms: those on its name stack.
    """

    name: str
    operands: tuple[int, ...]
    eqn: Equation | None = None
    transforms: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[int, ...] | None:
        """The operands that it adds up, or puts together; None if it does neither."""
        if self.name not in _JOINED_FROM:
            return None
        found = self.operands[_JOINED_FROM[self.name] :]
        return found[::2] if self.name.startswith("scatter") else found


class ValueGraph:
    """The operations that made the values of a program.

    Attributes:
      made: by token.
      scaled: by token, the value of which it is a multiple, or which a constant was added to.
    """

    def __init__(self) -> None:
        self.made: dict[int, Made] = {}
        self.scaled: dict[int, int] = {}

    def add(
        self,
        token: int,
        name: str,
        operands: Iterable[int],
        eqn: Equation | None = None,
        transforms: tuple[str, ...] = (),
    ) -> None:
        """A value; the first time that it is made counts."""
        if token not in self.made:
            self.made[token] = Made(name, tuple(operands), eqn, transforms)

    def viewed(self, token: int, names: Collection[str] = VIEWS) -> int:
        """The first value of which one is a view, by the operations with some names."""
        while (made := self.made.get(token)) is not None and made.name in names:
            token = made.operands[0]
        return token

    def is_spread(self, token: int) -> bool:
        """True if a value is a view that repeats elements."""
        while (made := self.made.get(token)) is not None and made.name in VIEWS:
            if made.eqn is not None:
                (before, *_), [after] = made.eqn.invars, made.eqn.outvars
                if before.aval.size < after.aval.size:
                    return True
            token = made.operands[0]
        return False

    def is_constant(self, token: int, given: Container[int]) -> bool:
        """True if nothing that is given to the program is in a value, so that it may be zero."""
        token = self.viewed(token)
        return token not in self.made and token not in given

    def whole(self, token: int) -> int:
        """The first value of which one is a part, or all elements in another order."""
        return self.viewed(token, _PARTS)

    def scale(self, token: int, name: str, eqn: Equation, values: Sequence[Value]) -> Value | None:
        """Notes, and returns, the operand that a value is a multiple of or moved by a constant."""
        if name not in _SCALINGS:
            return None
        whole = [
            (v, value)
            for v, value in zip(eqn.invars, values, strict=True)
            if value.labels and v.aval.shape and not self._is_repeated(value.token)
        ]
        if len(whole) != 1 or whole[0][0].aval.shape != eqn.outvars[0].aval.shape:
            return None
        self.scaled[token] = whole[0][1].token
        return whole[0][1]

    def _is_repeated(self, token: int) -> bool:
        """True if a value is one number, repeated."""
        made = self.made.get(token)
        if made is None or made.name != "broadcast_in_dim" or made.eqn is None:
            return False
        return math.prod(made.eqn.invars[0].aval.shape) == 1

    def frame(self, token: int, dims: Iterable[int]) -> tuple[int, frozenset[int]] | None:
        """Some dimensions of a value as those of the first value of which it is a view.

        Returns (that value, its dimensions); None where a view tears them apart.
        """
        found = frozenset(dims)
        while (made := self.made.get(token)) is not None:
            if token in self.scaled:
                token = self.scaled[token]
                continue
            before = _before(made, found)
            if before is None:
                break
            (token, *_), found = made.operands, before
            if -1 in found:
                return None
        return token, found


def _before(made: Made, dims: frozenset[int]) -> frozenset[int] | None:
    """Dimensions of the operand of a view; None if it is no view, -1 for what it tears apart."""
    name, eqn = made.name, made.eqn
    if name == "slice" and eqn is None:
        return frozenset(d + 1 for d in dims)
    if name == "stack":
        return frozenset(d - 1 for d in dims)
    if eqn is None or len(made.operands) != 1:
        return None
    if name in _SAME_DIMENSIONS:
        return dims
    if name == "transpose":
        order = _integers(eqn, "permutation")
        return frozenset(order[d] for d in dims)
    if name in _RESHAPES:
        return _regrouped(eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, dims)
    if name == "broadcast_in_dim":
        kept = {d: i for i, d in enumerate(_integers(eqn, "broadcast_dimensions"))}
        return frozenset(kept.get(d, -1) for d in dims if eqn.outvars[0].aval.shape[d] != 1)
    return None


def _integers(eqn: Equation, name: str) -> list[int]:
    """A parameter of a JAX primitive, or an attribute of the operation of a module."""
    params = eqn.params
    return list(params[name] if name in params else dict(params["attributes"])[name])


def _regrouped(
    old: Sequence[int], new: Sequence[int], dims: frozenset[int]
) -> frozenset[int] | None:
    """Dimensions of ``old`` that are ``dims`` of ``new``, which has the same elements."""
    found: set[int] = set()
    for before, after in _groups(old, new):
        inside = {d for d in after if d in dims}
        if inside and math.prod(new[d] for d in inside) != math.prod(new[d] for d in after):
            return frozenset({-1})
        if inside:
            found.update(before)
    return frozenset(found)


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the shortest runs of dimensions, of both shapes, that have as many elements."""
    left, right = ([d for d, n in enumerate(shape) if n != 1] for shape in (old, new))
    while left and right:
        before, after = [left.pop(0)], [right.pop(0)]
        a, b = old[before[0]], new[after[0]]
        while a != b and (left if a < b else right):
            if a < b:
                before.append(left.pop(0))
                a *= old[before[-1]]
            else:
                after.append(right.pop(0))
                b *= new[after[-1]]
        yield before, after
