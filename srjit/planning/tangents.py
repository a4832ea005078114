"""The products that differentiation in forward mode adds, found by structure.

Forward mode adds to a product the same one with the tangent of an operand in that operand's place,
right after it, for each operand that has one. Two that are so added to each other are tangents. So
is one alone whose operand was made of what the product before read, as derivatives are: of that
operand's own last product and of a repetition of it. All that is linear in tangents is one.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from srjit.planning.provenance import Provenance
from srjit.planning.seeds import Repetition, Seeds, forward_modes
from srjit.planning.value_graph import ADDITIONS, FACTORS, LINEAR, Made
from srjit.products.kinds import product_of
from srjit.program.values import PARAMETER, Occurrence, Path

TANGENT = "tangent"  # the transformation under which phases.py puts them
_PARAMETER = frozenset({PARAMETER})
_MOST = 512  # values that are looked at above an operand
_ROUNDS = 8
# Whether a product is another one with another value, or a batch of them, beside this side's.
Repeats = Callable[[Occurrence, Occurrence, int], bool]


def tangents(provenance: Provenance, repeats: Repeats) -> dict[int, tuple[str, ...]]:
    """The products that forward mode adds around a gradient, by their identities.

    Each with the differentiations that it stands under, to that forward mode; none where nothing
    is named.
    """
    occurrences = provenance.occurrences
    found = {id(o): () for o in occurrences if TANGENT in o.scope.transforms}
    if found:
        return found
    for outer in forward_modes({o.derivatives for o in occurrences}):
        among = [o for o in occurrences if o.derivatives[: len(outer)] == outer]
        repeated = _Tangents(provenance, among, repeats).repetitions()
        found |= dict.fromkeys(Seeds(provenance, outer, repeated).found(), outer)
    return found


def in_place_of_weights(provenance: Provenance, repeats: Repeats) -> set[int]:
    """Origins of what forward mode has in the place of weights, as a direction to differentiate."""
    found = _Tangents(provenance, (), repeats)
    found.in_place_of_weights()
    return {*found.seeds}


class Repetitions(NamedTuple):
    """The tangents of a program.

    Attributes:
      products: by their identity: what each repeats, if it does and that is in the program.
      seeds: by their origins, tokens of what stands in the place of a weight.
    """

    products: dict[int, Occurrence | None]
    seeds: dict[int, int]


def repetitions(
    provenance: Provenance, among: Sequence[Occurrence], repeats: Repeats
) -> Repetitions:
    """The tangents among some products, by structure."""
    found = _Tangents(provenance, among, repeats)
    certain = linear(provenance, found.in_place_of_weights()) & found.products.keys()
    for _ in range(_ROUNDS):
        sure = linear(provenance, found.sure()) | certain
        wrong = found.contradicted(sure, among) - certain
        if not wrong:
            made = [o for o in among if o.out.token in sure]
            repeated = {id(o): found.repeated.get(o.out.token) for o in made}
            return Repetitions(repeated, found.seeds)
        for token in wrong:
            found.repeated.pop(token, None)
    return Repetitions({}, {})


class _Tangents:
    def __init__(
        self, provenance: Provenance, among: Iterable[Occurrence], repeats: Repeats
    ) -> None:
        self.graph, self.made = provenance.graph, provenance.graph.made
        self.products = {o.out.token: o for o in provenance.occurrences}
        self.reading = {
            frozenset(v.token for v in o.operands): o for o in reversed(provenance.occurrences)
        }
        self.readers: dict[int, list[Occurrence]] = collections.defaultdict(list)
        for o in provenance.occurrences:
            for v in o.operands:
                if v.sources == _PARAMETER:
                    self.readers[v.origin].append(o)
        self.repeats, self.seeds = repeats, dict[int, int]()
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
            if made.name in ADDITIONS
        ]

    def repetitions(self) -> list[Repetition]:
        """All repetitions, whether they are tangents or not."""
        return [(self.products[t], p, self.sides[t]) for t, p in self.repeated.items()]

    def in_place_of_weights(self) -> set[int]:
        """Tokens of tangents beside which something else stands in the place of a weight.

        Forward mode adds ``h @ v`` to ``t @ w``, where ``v`` is no weight and shaped as ``w``, and
        so ``t`` as ``h``: both are tangents, and so is what ``t`` is made of and ``h`` is not. The
        gradient of a gradient may be such a sum too, but reads ``w`` the other way around.
        """
        found: set[int] = set()
        for pair in self.sums:
            products = [self.products.get(t) for t in pair[:2]]
            for a, b in zip(products, reversed(products), strict=True):
                side = a and b and self._of_weight(a, b)
                if a is None or b is None or side is None:
                    continue
                t, h, v = a.operands[1 - side], b.operands[1 - side], b.operands[side]
                found |= {a.out.token, b.out.token, v.token}
                before = self.feeding(h.token)
                above = self.feeding(t.token) - before
                found |= above
                self.seeds[v.origin] = v.token
                self.seeds |= self._places(above, before)
                p = self.reading.get(frozenset({h.token, a.operands[side].token}))
                if p is not None:
                    self.repeated |= {a.out.token: p, b.out.token: p}
                    self.sides |= {a.out.token: 1 - side, b.out.token: side}
        return found

    def _places(self, above: set[int], before: set[int]) -> dict[int, int]:
        """The operands of products that stand where alike products have a weight."""
        pairs = [(self.products[a], self.products[b]) for a in above for b in before]
        return {
            v.origin: v.token
            for a, b in pairs
            for side, (v, w) in enumerate(zip(a.operands, b.operands, strict=True))
            if a.operands[1 - side].token == b.operands[1 - side].token
            and w.sources == _PARAMETER != v.sources
        }

    def _of_weight(self, a: Occurrence, b: Occurrence) -> int | None:
        """The side on which ``a`` reads a weight, and ``b`` so something else, or a batch of it."""
        for side in (0, 1):
            weight, other = a.operands[side], b.operands[side]
            t, h = a.operands[1 - side], b.operands[1 - side]
            if weight.sources != _PARAMETER or _PARAMETER in (other.sources, h.sources):
                continue
            if t.origin == h.origin:
                continue
            is_alike = _read(a, side)[:1] in [[read] for read in _read(b, side)]
            if is_alike and self._is_forward(a, side):
                return side
        return None

    def _is_forward(self, o: Occurrence, side: int) -> bool:
        """True if a product reads a weight as the first one does that is made of others."""
        weight = o.operands[side].origin
        for p in self.readers[weight]:
            other = [v.origin for v in p.operands].index(weight)
            if p is o or self.feeding(p.operands[1 - other].token):
                return other == side and self.repeats(o, p, side)
        return False

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


def linear(provenance: Provenance, seeds: Iterable[int]) -> set[int]:
    """Some values and all that is linear in them: a sum is, if all that it adds is."""
    graph, found, touched = provenance.graph, set(seeds), set(seeds)
    products = {o.out.token for o in provenance.occurrences}

    def is_linear(token: int, made: Made) -> bool:
        is_product = token in products
        if not is_product and (parts := made.parts) is not None:
            return all(t in found or graph.is_constant(t, provenance.given) for t in parts)
        inside = [t for t in made.operands if t in touched]
        is_one = len(inside) == 1 or not (is_product or made.name in FACTORS)
        return (is_product or made.name in LINEAR) and is_one and found.issuperset(inside)

    before = -1
    while len(touched) != before:  # what loops carry may be made later
        before = len(touched)
        for token, made in graph.made.items():
            if not touched.isdisjoint(made.operands):
                touched.add(token)
    before = -1
    while len(found) != before:
        before = len(found)
        for token, made in graph.made.items():
            if token in touched and token not in found and is_linear(token, made):
                found.add(token)
    return found


def _read(o: Occurrence, side: int) -> list[tuple[list[Any], list[int]]]:
    """The shape of an operand and its dimensions that are summed; then without each of the rest."""
    shape, product = list(o.eqn.invars[side].aval.shape), product_of(o.eqn)
    if product is None:
        return []
    sums = sorted(product.contracting(side))
    batches = [
        (shape[:d] + shape[d + 1 :], [s - (s > d) for s in sums])
        for d in range(len(shape))
        if d not in sums
    ]
    return [(shape, sums), *batches]
