"""The products that differentiation in forward mode adds, found by structure.

Forward mode adds to a product the same one with the tangent of an operand in that operand's place,
right after it, for each operand that has one. Two that are so added to each other are tangents. So
is one alone whose operand was made of what the product before read, as derivatives are: of that
operand's own last product and of a repetition of it. All that is linear in tangents is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from srjit.planning.provenance import Provenance
from srjit.planning.value_graph import ADDITIONS
from srjit.program.values import Occurrence, Path

TANGENT = "tangent"  # the transformation under which phases.py puts them
_MOST = 512  # values that are looked at above an operand
_ROUNDS = 8
# Whether a product is another one with another value, or a batch of them, beside this side's.
Repeats = Callable[[Occurrence, Occurrence, int], bool]


def tangents(provenance: Provenance, repeats: Repeats) -> set[int]:
    """Identities of the products that forward mode adds where a gradient is differentiated so.

    Names, where there are any, say which those can be.
    """
    occurrences = provenance.occurrences
    stacks = {o.derivatives for o in occurrences}
    marked = {id(o) for o in occurrences if TANGENT in o.scope.transforms}
    if marked or not any(stacks):
        return marked
    outer = {
        stack
        for stack in stacks
        if len(stack) > 1 and stack[0] == "jvp" and ("transpose", *stack) not in stacks
    }
    if not any("transpose" in stack for stack in outer):
        return set()
    return set(repetitions(provenance, [o for o in occurrences if o.derivatives in outer], repeats))


def repetitions(
    provenance: Provenance, among: Sequence[Occurrence], repeats: Repeats
) -> dict[int, Occurrence | None]:
    """Tangents by their identity: what each repeats, if it does and that is in the program."""
    found = _Tangents(provenance, among, repeats)
    for _ in range(_ROUNDS):
        linear = found.linear(found.sure())
        wrong = found.contradicted(linear, among)
        if not wrong:
            return {id(o): found.repeated.get(o.out.token) for o in among if o.out.token in linear}
        for token in wrong:
            found.repeated.pop(token, None)
    return {}


class _Tangents:
    def __init__(
        self, provenance: Provenance, among: Iterable[Occurrence], repeats: Repeats
    ) -> None:
        self.graph, self.given = provenance.graph, provenance.given
        self.made = self.graph.made
        self.products = {o.out.token: o for o in provenance.occurrences}
        # By the token of a product's result, the product before that it repeats, and on which side
        # the operand is that they do not share.
        self.repeated: dict[int, Occurrence] = {}
        self.sides: dict[int, int] = {}
        last: dict[Path, Occurrence] = {}
        for o in among:
            p = last.setdefault(o.path[:-1], o)
            same = [a.token == b.token for a, b in zip(o.operands, p.operands, strict=True)]
            if sum(same) == 1 and repeats(o, p, same.index(True)):
                self.repeated[o.out.token] = p
                self.sides[o.out.token] = same.index(False)
            else:
                last[o.path[:-1]] = o
        self.sums = [
            [self.graph.viewed(t) for t in made.operands]
            for made in self.made.values()
            if self.repeated and made.name in ADDITIONS
        ]

    def sure(self) -> set[int]:
        """Tokens of the repetitions that are tangents: added in pairs, or derivatives."""
        found: set[int] = set()
        for pair in self.sums:
            p, q = (self.repeated.get(t) for t in pair[:2])
            if p is not None and p is q and self.sides[pair[0]] != self.sides[pair[1]]:
                found.update(pair[:2])
        for token, p in self.repeated.items():
            side = self.sides[token]
            primal = self.feeding(p.operands[side].token)
            tangent = self.feeding(self.products[token].operands[side].token)
            before = [self.repeated.get(t) for t in tangent - primal]
            if any(q is not None and q.out.token in primal & tangent for q in before):
                found.add(token)
        todo = list(found)
        while todo:  # what they are made of, but for what the products themselves are made of
            token = todo.pop()
            p, side = self.repeated[token], self.sides[token]
            own = self.feeding(p.lhs.token) | self.feeding(p.rhs.token)
            above = self.feeding(self.products[token].operands[side].token) - own - found
            above &= self.repeated.keys()
            found |= above
            todo += above
        # What they have in the place of an operand is one, unless the program itself reads it.
        read = {v.token for p in self.repeated.values() for v in p.operands}
        seeds = {self.products[t].operands[self.sides[t]].token for t in found}
        return found | (seeds - read)

    def linear(self, found: set[int]) -> set[int]:
        """Some tangents and all that is linear in them: a sum is, if all that it adds is."""
        before = -1
        while len(found) != before:  # what loops carry may be made later
            before = len(found)
            for token, made in self.made.items():
                inside = [t in found for t in made.operands]
                if token in self.products:
                    is_linear = sum(inside) == 1
                elif made.name in ADDITIONS:
                    is_linear = any(inside) and all(
                        i or self.is_constant(t) for i, t in zip(inside, made.operands, strict=True)
                    )
                else:
                    is_linear = any(inside)
                if is_linear:
                    found.add(token)
        return found

    def contradicted(self, linear: set[int], among: Iterable[Occurrence]) -> set[int]:
        """Tokens of repetitions that are no tangents, as they lead to what has no like.

        That is a product that repeats none and is read by another one that does not either.
        """
        feeding = {
            o.out.token: self.feeding(o.lhs.token) | self.feeding(o.rhs.token)
            for o in among
            if o.out.token in linear
        }
        alone = feeding.keys() - self.repeated.keys()
        read = alone & set[int]().union(*(feeding[t] for t in alone))
        return set[int]().union(*(feeding[t] & self.repeated.keys() for t in read))

    def feeding(self, token: int) -> set[int]:
        """Tokens of the products that a value is made of, up to these."""
        todo, seen = [token], set[int]()
        while todo and len(seen) < _MOST:
            token = todo.pop()
            if token not in seen:
                seen.add(token)
                if token not in self.products and token in self.made:
                    todo += self.made[token].operands
        return seen & self.products.keys()

    def is_constant(self, token: int) -> bool:
        """Whether nothing that is given to the program is in a value, so that it may be zero."""
        token = self.graph.viewed(token)
        return token not in self.made and token not in self.given
