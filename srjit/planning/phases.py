"""The backward pass of a program that names nothing: of PyTorch, of Enzyme, text without locations.

Products that fit as gradients (``matching.py``) are believed where differentiation explains them:
what a gradient is made of depends on the product that it is the gradient of, and it leads to the
gradient of another product, or to a result of the program that has the shape of a parameter.
Gradients that are differentiated themselves, as forces are, follow one another by the chain rule.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from srjit.numerics.symbolic import stand_ins
from srjit.planning.matching import DOUBTFUL, Match, Matching
from srjit.planning.provenance import Provenance
from srjit.planning.tangents import TANGENT, repetitions
from srjit.planning.value_graph import ADDITIONS, ValueGraph
from srjit.program.values import PARAMETER, Occurrence, Path, SourceInfo, Value

_PARAMETER = frozenset({PARAMETER})
_ROUNDS = 8
_MOST = 512  # values that are looked at between two products
# What hands a gradient on: linear in one operand. Of these, the first that scale it.
_FACTORS = {"mul", "select_n", "div", "stablehlo.multiply", "stablehlo.divide"}
_LINEAR = _FACTORS | {
    "add", "add_any", "sub", "neg", "stablehlo.negate", "convert_element_type", "transpose",
    "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "rev", "reduce_sum",
    "reduce_precision", "stablehlo.reduce", "slice", "stablehlo.slice", "dynamic_slice",
    "stablehlo.dynamic_slice",
    "pad", "stablehlo.pad", "concatenate", "stablehlo.concatenate", "gather", "stablehlo.gather",
    "scatter-add", "scatter_add", "stack", "carry", "cross", "merge", "sharding_constraint",
    "psum", "cumsum", "dynamic_update_slice", "stablehlo.dynamic_update_slice",
}  # fmt: skip


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


class _Phases:
    def __init__(self, provenance: Provenance) -> None:
        self.provenance, self.graph = provenance, provenance.graph
        self.order = {id(o): i for i, o in enumerate(provenance.occurrences)}
        self.latest = _latest(provenance, self.graph)
        self.followed: set[int] = set()
        self.made: dict[int, Occurrence] = {}
        for o in provenance.occurrences:
            self.made.setdefault(o.out.token, o)
        # What products read of parameters alone.
        operands = [v for o in provenance.occurrences for v in o.operands]
        self.weights = {self.graph.viewed(v.token) for v in operands if v.sources == _PARAMETER}
        shapes = provenance.parameter_shapes
        # Of products with a weight, by the size of the other operand, those of result and weight.
        self.forms: dict[int, dict[tuple[int, int], int]] = collections.defaultdict(dict)
        for o in provenance.occurrences:
            *given, made = _sizes(o)
            weights = [v.sources == _PARAMETER for v in o.operands]
            if sum(weights) == 1:
                side = weights.index(True)
                self.forms[given[1 - side]].setdefault((made, given[side]), self.order[id(o)])
        self.results = self.above(t for t, shape in provenance.results if shape in shapes)
        wide = [shape for shape in shapes if len(shape) > 1]
        parts = (
            t
            for t, s in provenance.results
            if any(shape in (s[: len(shape)], s[-len(shape) :]) for shape in wide)
        )
        self.flowing = self.above(parts, past=True)

    def transforms(self) -> dict[Path, tuple[str, ...]]:
        """The transformations that products stand under, by path; none if nothing is a gradient."""
        occurrences = self.provenance.occurrences
        repeats = Matching(self.provenance, self.may_be_of).repeats
        self.tangents = repetitions(self.provenance, occurrences, repeats)
        repeated = [p for p in self.tangents.values() if p is not None]
        matching = self.matched([])
        if self.tangents and not any(map(matching.level, repeated)):
            matching = self.matched(self.made_of_last())  # gradients may lead to tangents alone
        if self.tangents and not any(map(matching.level, repeated)):
            self.tangents = {}  # of no gradient: they are products of a forward pass like others
            matching = self.matched([])
        levels = [matching.level(o) for o in occurrences]
        first = next((i for i, level in enumerate(levels) if level), len(levels))
        found: dict[Path, tuple[str, ...]] = {}
        for i, (o, level) in enumerate(zip(occurrences, levels, strict=True)):
            is_part = bool(level) or matching.is_differentiated(o)
            if i > first and not is_part:
                if self.made[o.out.token] is not o:
                    level = 1  # it is computed again
                elif max(levels) > 1 and o.out.token in self.leading:
                    level = 2  # part of a second derivative, of a gradient that nobody needed
            if id(o) in self.tangents:
                found[o.path] = (TANGENT, "jvp")
            elif id(o) in self.wrong:
                found[o.path] = (DOUBTFUL,)
            elif level or is_part:
                found[o.path] = ("transpose",) * level + ("jvp",)
        undecided = {
            o.out.token: o
            for o in occurrences
            if o.path not in found and self.made[o.out.token] is o
        }
        marked = [(o, found.get(o.path, ())) for o in occurrences]
        second = [o for o, names in marked if TANGENT in names or names.count("transpose") > 1]
        later = {token: o for token, o in undecided.items() if self.order[id(o)] > first}
        doubtful = self.leading_to(second, later)
        suspects = [o for o in undecided.values() if self.may_be_of_weight(o)]
        doubtful += suspects + self.leading_to(suspects, undecided)
        below = self.below({o.out.token for o in suspects})
        doubtful += [o for token, o in undecided.items() if token in below]
        return found | {o.path: (DOUBTFUL,) for o in doubtful}

    def may_be_of_weight(self, o: Occurrence) -> bool:
        """Whether a product has the sizes of a weight's gradient, and flows into such a result."""
        if o.out.token not in self.flowing or o.lhs.origin == o.rhs.origin or _reads_weight(o):
            return False
        *given, made = _sizes(o)
        return any(
            given[1 - i] * weight == made * out != 0 == given[1 - i] % out
            and self.latest.get(o.operands[1 - i].token, -1) >= number
            for i in (0, 1)
            for (out, weight), number in self.forms.get(given[i], {}).items()
        )

    def below(self, tokens: set[int]) -> set[int]:
        """Some values, and all that is made of them."""
        for _ in range(2):  # what loops carry is made later than it is read
            for token, made in self.graph.made.items():
                if not tokens.isdisjoint(made.operands):
                    tokens.add(token)
        return tokens

    def leading_to(
        self, products: Iterable[Occurrence], among: Mapping[int, Occurrence]
    ) -> list[Occurrence]:
        """Which of some products others are linear in, and these in turn."""
        todo, seen = [v.token for o in products for v in o.operands], set[int]()
        found: list[Occurrence] = []
        while todo:
            token = todo.pop()
            if token in seen:
                continue
            seen.add(token)
            made = self.graph.made.get(token)
            if (o := among.get(token)) is not None:
                found.append(o)
                todo += [v.token for v in o.operands]
            elif made is not None and token not in self.made and made.name in _LINEAR:
                todo += made.operands
        return found

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
        return matching

    def tried(self, blocked: set[int]) -> Matching:
        """All products that fit as gradients, but for some."""
        self.matching = matching = Matching(self.provenance, self.may_be_of)
        for o in self.provenance.occurrences:
            if id(o) not in blocked and o.out.token not in matching.made:
                matching.find(o)
            if id(o) not in self.tangents:
                matching.add(o)
        return matching

    def may_be_of(self, o: Occurrence, residual: int, p: Occurrence) -> bool:
        """Whether what ``o`` would have as a gradient depends on ``p``, or is constant."""
        value = o.operands[1 - residual]
        if not value.sources:
            return True
        last = self.latest.get(value.token, -1)
        if self.matching.level(p) and not self.is_linear_after(p, value.token):
            return False  # of another forward pass
        return last >= self.order[id(p)] and not self.updates(value)

    def is_linear_after(self, p: Occurrence, token: int) -> bool:
        """Whether a value depends on a product, or is linear in a later one."""
        todo, seen, first = [(token, True)], set[tuple[int, bool]](), self.order[id(p)]
        while todo and len(seen) < _MOST:
            token, is_linear = at = todo.pop()
            if token == p.out.token or (is_linear and token in self.made):
                return True
            if at not in seen and self.latest.get(token, -1) >= first:
                seen.add(at)
                made = self.graph.made[token]
                todo += [(t, is_linear and made.name in _LINEAR) for t in made.operands]
        return False

    def updates(self, value: Value) -> bool:
        """Whether a value is a weight with something added, as after a step."""
        made = self.graph.made.get(self.graph.viewed(value.token))
        if made is None or made.name not in ADDITIONS:
            return False
        return any(self.graph.viewed(t) in self.weights for t in made.operands)

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
        """Whether a gradient comes from another one by the chain rule, times a factor."""
        todo, seen, scaled = [gradient], set[int](), False
        while todo and len(seen) < _MOST:
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
            if made is not None and made.name in _LINEAR:
                scaled |= made.name in _FACTORS
                todo += made.operands
        return False

    def above(
        self, tokens: Iterable[int], seen: set[int] | None = None, past: bool = False
    ) -> set[int]:
        """Some values, and all that they are made of, up to products, or to those with a weight."""
        seen = set() if seen is None else seen
        todo = list(tokens)
        while todo:
            token = todo.pop()
            if token not in seen:
                seen.add(token)
                made = self.graph.made.get(token)
                o = self.made.get(token)
                if made is not None and (o is None or (past and not _reads_weight(o))):
                    todo += made.operands
        return seen


def _sizes(o: Occurrence) -> list[int]:
    return [math.prod(stand_ins(v.aval.shape)) for v in (*o.eqn.invars[:2], *o.eqn.outvars)]


def _reads_weight(o: Occurrence) -> bool:
    return any(v.sources == _PARAMETER for v in o.operands)


def _is_of_weight(match: Match) -> bool:
    return match.partner.operands[1 - match.side].sources == _PARAMETER


def _latest(provenance: Provenance, graph: ValueGraph) -> dict[int, int]:
    """For every value the last product that flows into it."""
    numbers: dict[int, int] = {}
    for i, o in enumerate(provenance.occurrences):
        numbers.setdefault(o.out.token, i)
    found: dict[int, int] = {}
    for _ in range(2):  # what loops carry is made later than it is read
        for token, made in graph.made.items():
            found[token] = numbers.get(token, -1)
            found[token] = max(found[token], *(found.get(t, -1) for t in made.operands), -1)
    return found
