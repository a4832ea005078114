"""Forward mode around a gradient, where names tell what it differentiates: linear in its seeds.

All that forward mode adds to a program is linear in the tangents that it is given, its seeds, and
is added to its like alone. What the program itself computes of its inputs is not: it goes through a
function that is not linear, meets itself in a product, or is added to something else. What becomes
of tangents where the differentiation has ended does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from srjit.planning.provenance import Provenance
from srjit.planning.value_graph import LINEAR, Made
from srjit.program.values import Occurrence

_PRODUCTS = {"mul", "stablehlo.multiply"}
_QUOTIENTS = {"div", "stablehlo.divide"}
# A product, the one before that it repeats, and the side of the operand that they do not share.
Repetition = tuple[Occurrence, Occurrence, int]


def forward_modes(stacks: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Stacks of differentiations, the last of which may be forward mode around a gradient."""
    found = {
        stack[: i + 1]
        for stack in stacks
        for i, name in enumerate(stack)
        if name == "jvp" and "transpose" in stack[i:] and "transpose" not in stack[:i]
    }
    return sorted(found)


def _derivatives(transforms: Iterable[str]) -> tuple[str, ...]:
    return tuple(t for t in transforms if t in ("jvp", "transpose"))


class Seeds:
    """Finds the products that are linear in seeds.

    Args:
      provenance: of the program.
      outer: the differentiations that they stand under, outermost first.
      repetitions: those among these products.
    """

    def __init__(
        self, provenance: Provenance, outer: tuple[str, ...], repetitions: Sequence[Repetition]
    ) -> None:
        self.graph, self.given, self.outer = provenance.graph, provenance.given, outer
        # If it were differentiated backward, this would be of the backward pass.
        after = (*outer[:-1], "transpose", "jvp")
        self.inside = [o for o in provenance.occurrences if self._is_under(o.derivatives)]
        self.products = {o.out.token for o in provenance.occurrences}
        self.steps: list[tuple[int, Made]] = []
        self.beyond: list[Made] = []
        for token, made in self.graph.made.items():
            stack = _derivatives(made.transforms)
            if made.eqn is None or self._is_under(stack):
                self.steps.append((token, made))
            elif stack[: len(after)] == after:
                self.beyond.append(made)
        # What enters, a bit each; and those that may still be seeds.
        self.entering = {token: 1 << i for i, token in enumerate(self._entering())}
        self.alive = (1 << len(self.entering)) - 1
        self.masks: dict[int, int] = {}
        self.conflicts: set[tuple[int, int]] = set()
        self._settle()
        put = self._union(o.operands[side].token for o, _, side in repetitions)
        while wrong := self._wrong(put, repetitions):
            self.alive &= ~wrong
            self._settle()
        first = [o.out.token for o in self.inside if not self._is_of_gradient(o)]
        self.alive &= self._union(first) | put

    def found(self) -> set[int]:
        """Identities of the products that are linear in seeds."""
        return {id(o) for o in self.inside if self._mask(o.out.token)}

    # ------------------------------------------------------------------------------ the region

    def _is_under(self, stack: tuple[str, ...]) -> bool:
        return stack[: len(self.outer)] == self.outer

    def _is_of_gradient(self, o: Occurrence) -> bool:
        return "transpose" in o.derivatives[len(self.outer) :]

    def _entering(self) -> list[int]:
        """Tokens of the arrays that were made outside, and are read inside."""
        inside = {token for token, made in self.steps if made.eqn is not None}
        todo = [
            token
            for _, made in self.steps
            if made.eqn is not None
            for v, token in zip(made.eqn.invars, made.operands, strict=False)
            if v.aval.shape
        ]
        found: dict[int, None] = {}
        seen = set[int]()
        while todo:
            token = todo.pop()
            if token in seen or token in inside:
                continue
            seen.add(token)
            made = self.graph.made.get(token)
            if made is not None and made.eqn is None:
                todo += made.operands
            else:
                found[token] = None
        return list(found)

    # ------------------------------------------------------------------------------ linearity

    def _mask(self, token: int) -> int:
        """Bits of the seeds in which a value is linear."""
        return (self.masks.get(token, 0) | self.entering.get(token, 0)) & self.alive

    def _union(self, tokens: Iterable[int]) -> int:
        bits = 0
        for token in tokens:
            bits |= self._mask(token)
        return bits

    def _settle(self) -> None:
        """Gives all values their bits, until no seed is found to be none."""
        is_settled = False
        while not is_settled:
            while self._spread():  # what loops carry is made later than it is read
                pass
            wrong, self.conflicts = 0, set[tuple[int, int]]()
            for token, made in self.steps:
                wrong |= self._step(token, made, [self._mask(t) for t in made.operands])[1]
            for made in self.beyond:
                wrong |= self._union(made.operands)
            is_settled = not wrong & self.alive
            self.alive &= ~wrong

    def _spread(self) -> bool:
        """Hands bits on from operands to results; tells whether there were new ones."""
        changed = False
        for token, made in self.steps:
            masks = [self._mask(t) for t in made.operands]
            before = self.masks.get(token, 0)
            if any(masks) and (mask := self._step(token, made, masks)[0]) & ~before:
                self.masks[token] = before | mask
                changed = True
        return changed

    def _step(self, token: int, made: Made, masks: list[int]) -> tuple[int, int]:
        """Bits of a value, and those of what no seed can be."""
        name, total = made.name, 0
        for mask in masks:
            total |= mask
        if token in self.products or name in _PRODUCTS:
            left, right = masks[:2]
            if left and right:
                self.conflicts.add((left, right))
            return left | right, left & right
        if name in _QUOTIENTS:
            return masks[0], masks[1]
        if (parts := made.parts) is not None:
            joined = [self._mask(t) for t in parts]
            is_alone = any(
                not mask and not self.graph.is_constant(t, self.given)
                for mask, t in zip(joined, parts, strict=True)
            )
            return total, total if is_alone else 0
        return (total, 0) if name in LINEAR else (0, total)

    def _wrong(self, put: int, repetitions: Sequence[Repetition]) -> int:
        """Bits of what is multiplied by a tangent, and so is none, though linear alone."""
        met = 0
        for left, right in self.conflicts:
            if left & self.alive and right & self.alive:
                met |= left | right
        met &= self.alive
        replaced = self._union(p.operands[side].token for _, p, side in repetitions)
        first = self._union(o.out.token for o in self.inside if not self._is_of_gradient(o))
        return met & replaced & ~put or (met & ~first if met & first else 0)
