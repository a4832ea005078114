"""The backward pass of a program that names nothing: of PyTorch, of Enzyme, text without locations.

Products that fit as gradients (``matching.py``) are believed where differentiation explains them:
what a gradient is made of depends on the product that it is the gradient of, and it leads to the
gradient of another product, or to a result of the program that has the shape of a parameter.
Gradients that are differentiated themselves, as forces are, follow one another by the chain rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from srjit.planning.doubts import Doubts
from srjit.planning.matching import DOUBTFUL, Match, Matching
from srjit.planning.multiples import weighs
from srjit.planning.provenance import Provenance
from srjit.planning.structure import MOST, Structure, reads_weight
from srjit.planning.tangents import TANGENT, Repetitions, repetitions
from srjit.planning.value_graph import FACTORS, LINEAR
from srjit.program.protocols import Variable
from srjit.program.values import PARAMETER, Occurrence, Path, SourceInfo, Value

_PARAMETER = frozenset({PARAMETER})
_ROUNDS = 8


def traced(
    closed: Any,
    labels: Sequence[str],
    source: SourceInfo[Any] | None = None,
    manual: frozenset[str] = frozenset(),
) -> Provenance:
    """The provenance of a program, whose backward pass is found if no name tells it."""
    provenance = Provenance(closed, labels, source, manual)
    if any(o.derivatives for o in provenance.occurrences):
        return provenance
    transforms = _Phases(provenance).transforms()
    return Provenance(closed, labels, source, manual, transforms) if transforms else provenance


class _Phases(Structure):
    def __init__(self, provenance: Provenance) -> None:
        super().__init__(provenance)
        self.followed: set[int] = set()
        self.indexed: set[int] = set()  # what depends on what it would be the gradient of by index
        shapes = provenance.parameter_shapes
        self.results = self.above(t for t, shape in provenance.results if shape in shapes)

    def transforms(self) -> dict[Path, tuple[str, ...]]:
        """The transformations that products stand under, by path; none if nothing is a gradient."""
        occurrences = self.provenance.occurrences
        repeats = Matching(self.provenance, self.may_be_of).repeats
        tangents = repetitions(self.provenance, occurrences, repeats)
        self.tangents = tangents.products
        repeated = [p for p in self.tangents.values() if p is not None]
        matching = self.matched([])
        if self.tangents and not any(map(matching.level, repeated)):
            matching = self.matched(self.made_of_last())  # gradients may lead to tangents alone
        is_of_gradient = any(map(matching.level, repeated)) or self.turns(tangents.seeds)
        if self.tangents and not is_of_gradient:
            self.tangents = {}  # of no gradient: they are products of a forward pass like others
            matching = self.matched([])
        if more := self.like_tangents(matching):
            self.tangents |= more
            matching = self.matched([])
        levels = [matching.level(o) for o in occurrences]
        first = next((i for i, level in enumerate(levels) if level), len(levels))
        most = max(levels, default=0)
        found: dict[Path, tuple[str, ...]] = {}
        for i, (o, level) in enumerate(zip(occurrences, levels, strict=True)):
            is_part = bool(level) or matching.is_differentiated(o)
            if i > first and not is_part:
                if self.made.get(o.out.token, o) is not o:
                    level = 1  # it is computed again
                elif o.out.token in self.leading and (most > 1 or self.is_backward(o)):
                    # Part of a second derivative, of a gradient that nobody needed; or a gradient
                    # beside what is no residual.
                    level = min(most, 2)
            if id(o) in self.tangents:
                found[o.path] = (TANGENT, "jvp")
            elif id(o) in self.wrong:
                found[o.path] = (DOUBTFUL,)
            elif level or is_part:
                found[o.path] = ("transpose",) * level + ("jvp",)
        tangents = Repetitions(self.tangents, tangents.seeds)
        doubtful = Doubts(self, matching, tangents, found).tokens(self.indexed)
        return found | {o.path: (DOUBTFUL,) for o in occurrences if o.out.token in doubtful}

    def like_tangents(self, matching: Matching) -> dict[int, Occurrence | None]:
        """Linear products of weights that activated products read so before, and these.

        Where a gradient is differentiated, forward mode may have added them: a layer of a network
        has its activation wherever it is called.
        """
        levels = {id(o): matching.level(o) for o in self.provenance.occurrences}
        activated: dict[int, Occurrence] = {}
        found: dict[int, Occurrence | None] = {}
        for o in self.provenance.occurrences if max(levels.values(), default=0) > 1 else ():
            if levels[id(o)] or self.made.get(o.out.token) is not o:
                continue
            for side, value in enumerate(o.operands):
                if value.sources != _PARAMETER:
                    continue
                p = activated.get(value.origin)
                if self.is_activated(o):
                    activated.setdefault(value.origin, o)
                elif p is not None and matching.repeats(o, p, side):
                    found[id(o)] = p
        return found

    def is_backward(self, o: Occurrence) -> bool:
        """True if a product that may lead to a gradient is one of another and of no weight."""
        is_linear = any(self.is_linear_in(v, self.matching.level) for v in o.operands)
        return is_linear and not reads_weight(o)

    def turns(self, seeds: Mapping[int, int]) -> bool:
        """True if tangents read a seed in two ways, as those of a forward pass alone do not."""
        first: dict[int, tuple[Occurrence, int]] = {}
        for o in self.provenance.occurrences:
            for side, value in enumerate(o.operands if id(o) in self.tangents else ()):
                if value.origin in seeds:
                    p, other = first.setdefault(value.origin, (o, side))
                    if not self.matching.reads_alike(o, side, p, other):
                        return True
        return False

    def matched(self, leading: Iterable[int]) -> Matching:
        """The gradients that differentiation explains, which may lead to some values."""
        start, blocked = self.above(leading), set(self.tangents)
        matching = self.tried(blocked)
        for _ in range(_ROUNDS):
            self.wrong = self.unexplained(matching, set(start))
            if not self.wrong:
                break
            blocked |= self.wrong
            matching = self.tried(blocked)
        else:
            self.wrong |= self.unexplained(matching, set(start))
        return self.tried_again(matching, blocked, set(start))

    def tried_again(self, matching: Matching, blocked: set[int], start: set[int]) -> Matching:
        """A matching, with the blocked gradients that are results if that explains them.

        What should explain them may have been taken for the gradient of what is blocked as well.
        """
        ends = {
            id(o)
            for o in self.provenance.occurrences
            if id(o) in blocked and id(o) not in self.tangents and o.out.token in self.results
        }
        if not ends:
            return matching
        again = self.tried(blocked - ends)
        is_more = matching.gradients.items() <= again.gradients.items()
        if is_more and not self.unexplained(again, set(start)):
            return again
        self.matching = matching
        self.unexplained(matching, set(start))
        return matching

    def tried(self, blocked: set[int]) -> Matching:
        """All products that fit as gradients, but for some."""
        self.matching = matching = Matching(self.provenance, self.may_be_of)
        for o in self.provenance.occurrences:
            if weighs(o):
                continue
            if id(o) not in blocked and o.out.token not in matching.made:
                matching.find(o)
            if id(o) not in self.tangents:
                matching.add(o)
        return matching

    def may_be_of(self, o: Occurrence, residual: int, p: Occurrence) -> bool:
        """True if what ``o`` would have as a gradient depends on ``p``, or is constant."""
        value = o.operands[1 - residual]
        if not value.sources:
            return True
        last = self.latest.get(value.token, -1)
        if last < self.order[id(p)]:
            return self.is_cotangent(value, o)
        if self.is_by_index(value.token, p):
            self.indexed.add(id(o))
            return False
        is_second = self.matching.level(p)
        if not is_second and any(self.is_linear_in(v, self.is_of_weight) for v in p.operands):
            return False  # of an optimizer's product
        if is_second and (not self.is_linear_after(p, value.token) or self.is_activated(o)):
            return False  # of another forward pass
        return not self.is_updated(value.token)

    def is_by_index(self, token: int, p: Occurrence) -> bool:
        """True if a value depends on a product by indices alone, as of its largest element."""
        todo, seen, by_index = [(token, False)], set[tuple[int, bool]](), False
        while todo and len(seen) < MOST:
            token, is_index = at = todo.pop()
            if token == p.out.token:
                if not is_index:
                    return False
                by_index = True
            elif at not in seen and self.latest.get(token, -1) >= self.order[id(p)]:
                made = self.graph.made[token]
                real = [True] * len(made.operands)
                if made.eqn is not None:
                    real = [not _is_integer(v) for v in made.eqn.invars]
                todo += [(t, is_index or not r) for t, r in zip(made.operands, real, strict=False)]
            seen.add(at)
        return by_index and len(seen) < MOST

    def is_of_weight(self, o: Occurrence) -> bool:
        """True if a product is found to be the gradient of a weight."""
        match = self.matching.gradients.get(id(o))
        return match is not None and match.level == 1 and _is_of_weight(match)

    def is_cotangent(self, value: Value, o: Occurrence) -> bool:
        """True if a value is made of inputs that no product before ``o`` is made of."""
        inputs, number = self.inputs(value.token), self.order[id(o)]
        is_later = all(self.first.get(t, number) >= number for t in inputs)
        return bool(inputs) and PARAMETER not in value.labels and is_later

    def is_linear_after(self, p: Occurrence, token: int) -> bool:
        """True if a value depends on a product and no later one, or is linear in a later one."""
        todo, seen, first = [(token, True)], set[tuple[int, bool]](), self.order[id(p)]
        while todo and len(seen) < MOST:
            token, is_linear = at = todo.pop()
            if token == p.out.token or (is_linear and token in self.made):
                return True
            if at not in seen and token not in self.made and self.latest.get(token, -1) >= first:
                seen.add(at)
                made = self.graph.made[token]
                stays = is_linear and (made.name in LINEAR or token in self.weighed)
                todo += [(t, stays) for t in made.operands]
        return False

    def unexplained(self, matching: Matching, leading: set[int]) -> set[int]:
        """Identities of the gradients of forward products that lead nowhere."""
        first = [o for o in self.provenance.occurrences if matching.level(o) == 1]
        believed: set[int] = set()
        pairs: set[tuple[int, int]] = set()  # products, with the gradients of their results
        self.leading = leading  # and what the gradients that are believed are made of
        before = -1
        while before != len(believed):
            before = len(believed)
            for o in reversed(first):
                match = matching.gradients.get(id(o))
                if id(o) in believed:
                    continue
                if match is None:  # of a product that is dead code
                    gradient = o.operands[matching.orphans[id(o)].index("gradient")]
                    pair = 0, gradient.origin
                    is_believed = pair in pairs or id(o) in self.followed
                else:
                    gradient = o.operands[1 - match.residual]
                    pair = id(match.partner), gradient.origin
                    is_believed = (
                        o.out.token in self.leading
                        or pair in pairs
                        or (_is_of_weight(match) and o.out.token in self.results)
                        or self.follows(gradient.token, match, matching)
                    )
                if is_believed:
                    believed.add(id(o))
                    pairs.add(pair)
                    self.above([gradient.token], self.leading)
                    if match is not None:
                        self.follows(gradient.token, match, matching)
        return {id(o) for o in first} - believed

    def made_of_last(self) -> list[int]:
        """Tokens that the tangents read that no other one reads, or that repeat no product."""
        found = [o for o in self.provenance.occurrences if id(o) in self.tangents]
        read = self.above(v.token for o in found for v in o.operands)
        last = [o for o in found if o.out.token not in read or self.tangents[id(o)] is None]
        return [v.token for o in last for v in o.operands]

    def follows(self, gradient: int, match: Match, matching: Matching) -> bool:
        """True if a gradient comes from another one by the chain rule, times a factor."""
        todo, seen, scaled = [gradient], set[int](), False
        while todo and len(seen) < MOST:
            token = todo.pop()
            if token in seen:
                continue
            seen.add(token)
            p = self.made.get(token)
            if p is not None:
                before = matching.gradients.get(id(p))
                later = p if before is None else before.partner
                is_later = self.order[id(later)] > self.order[id(match.partner)]
                if scaled and is_later and matching.level(p) == 1:
                    self.followed.add(id(p))
                    return True
                continue
            made = self.graph.made.get(token)
            if made is not None and (made.name in LINEAR or token in self.weighed):
                scaled |= made.name in FACTORS
                todo += made.operands
        return False


def _is_integer(v: Variable) -> bool:
    return np.issubdtype(v.aval.dtype, np.integer)


def _is_of_weight(match: Match) -> bool:
    return match.partner.operands[1 - match.side].sources == _PARAMETER
