"""The codes that the backward pass takes from the forward pass: those that it keeps for a float.

What a program keeps of its forward pass is the choice of its checkpoint policy. Where nothing but
quantized products reads a kept float in the backward pass, its codes are kept in place of it. All
other codes are made again there, with the same noise: of weights, inputs and what is kept anyway.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from srjit.numerics.quantization import Quantization
from srjit.numerics.rounding import working_dtype
from srjit.planning.provenance import Provenance
from srjit.program.values import Occurrence, Path
from srjit.targets.target import Demand, Target


class Use(NamedTuple):
    """An operand of a product, and how it is quantized.

    Attributes:
      occurrence: the product.
      side: which of its operands.
      token: the value whose codes these are.
      spec: the quantization; None: the product reads the float.
      is_late: whether the product belongs to the backward pass, or is computed again in it.
    """

    occurrence: Occurrence
    side: int
    token: int
    spec: Quantization | None
    is_late: bool

    @property
    def value(self) -> int:
        """The token of the operand itself, which a product may mask."""
        return self.occurrence.operands[self.side].token


Codes = tuple[int, Quantization]


class Residuals:
    """The codes that the backward pass makes again.

    Args:
      provenance: of the program.
      uses: all operands of its products.
      target: what holds the codes.
    """

    def __init__(self, provenance: Provenance, uses: Sequence[Use], target: Target) -> None:
        self._provenance = provenance
        self._made: dict[Codes, list[Occurrence]] = collections.defaultdict(list)
        for use in uses:
            if use.spec is not None and not use.is_late:
                self._made[use.token, use.spec].append(use.occurrence)
        late = [use for use in uses if use.is_late]
        wanted: dict[int, dict[Codes, Use]] = collections.defaultdict(dict)
        for use in late:
            if use.spec is not None:
                wanted[use.value][use.token, use.spec] = use
        floats = {*provenance.read_late, *(t for t, _ in provenance.results)}
        floats |= {use.value for use in late if use.spec is None}
        floats |= {t for t in map(provenance.unstacked, list(floats)) if t is not None}
        whole = provenance.graph.whole
        held = {*provenance.given, *map(whole, floats)}
        self._kept = {
            value
            for value, codes in wanted.items()
            if whole(value) not in held
            and all(c in self._made for c in codes)
            and _are_smaller(codes, target)
        }

    def are_made_again(self, use: Use) -> bool:
        """True if a use in the backward pass makes codes that the forward pass has made before."""
        if use.spec is None or not use.is_late or use.value in self._kept:
            return False
        made = self._made.get((use.token, use.spec), ())
        if not made:
            return False
        # Before a loop that changes nothing of the value its codes are made once, for all in it.
        around = [
            path
            for path, tokens in self._provenance.invariants.items()
            if use.spec.is_hoistable and use.value in tokens and _is_inside(use.occurrence, path)
        ]
        return not any(_is_inside(o, path) for path in around for o in made)

    def are_there_anyway(self, use: Use) -> bool:
        """True if a value is in memory before the program starts, and its codes are always equal.

        Not of what a loop does not change: its codes are made once for all trips.
        """
        if use.spec is None or not use.spec.is_hoistable or use.token != use.value:
            return False
        provenance = self._provenance
        is_invariant = any(
            use.value in tokens and _is_inside(use.occurrence, path)
            for path, tokens in provenance.invariants.items()
        )
        return provenance.graph.whole(use.value) in provenance.given and not is_invariant

    def may_be_merged(self, use: Use) -> bool:
        """True if a compiler sees that codes which are made again are those of the forward pass."""
        if use.spec is None:
            return False
        mine = self._loops(use.occurrence)
        made = map(self._loops, self._made[use.token, use.spec])
        return any(mine[: len(theirs)] == theirs for theirs in made)

    def _loops(self, o: Occurrence) -> list[Path]:
        """The paths of the loops around a product, outermost first."""
        return [o.path[:n] for n in range(1, len(o.path)) if o.path[:n] in self._provenance.loops]


def _is_inside(o: Occurrence, path: Path) -> bool:
    return o.path[: len(path)] == path


def _are_smaller(codes: Mapping[Codes, Use], target: Target) -> bool:
    """True if codes of a value take no more bytes than the value, which is not kept then."""
    size = left = 0
    for (_, spec), use in codes.items():
        size = use.occurrence.eqn.invars[use.side].aval.dtype.itemsize
        demand = Demand(spec, in_loop=bool(use.occurrence.scope.loops))
        left += target.carrier(
            demand, working_dtype(use.occurrence.eqn.invars[use.side].aval.dtype)
        ).itemsize
    return left <= size
