"""The backward pass of a program that names nothing: of PyTorch, of Enzyme, text without locations.

Products that fit as gradients (``matching.py``) are believed where differentiation explains them:
what a gradient is made of depends on the product that it is the gradient of, and it leads to the
gradient of another product, or to a result of the program that has the shape of a parameter.
Gradients that are differentiated themselves, as forces are, follow one another by the chain rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from srjit.planning.matching import Match, Matching, derivatives
from srjit.planning.provenance import Provenance
from srjit.planning.value_graph import ValueGraph
from srjit.program.values import PARAMETER, Occurrence, Path, SourceInfo

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
    if any(derivatives(o) for o in provenance.occurrences):
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
        shapes = provenance.parameter_shapes
        self.results = self.above(t for t, shape in provenance.results if shape in shapes)

    def transforms(self) -> dict[Path, tuple[str, ...]]:
        """The transformations that products stand under, by path; none if nothing is a gradient."""
        blocked: set[int] = set()
        for _ in range(_ROUNDS):
            matching = self.tried(blocked)
            wrong = self.unexplained(matching)
            if not wrong:
                break
            blocked |= wrong
        else:
            return {}
        occurrences = self.provenance.occurrences
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
            if level or is_part:
                found[o.path] = ("transpose",) * level + ("jvp",)
        return found

    def tried(self, blocked: set[int]) -> Matching:
        """All products that fit as gradients, but for some."""
        matching = Matching(self.provenance, self.may_be_of)
        for o in self.provenance.occurrences:
            if id(o) not in blocked and o.out.token not in matching.made:
                matching.find(o)
            matching.add(o)
        return matching

    def may_be_of(self, o: Occurrence, residual: int, p: Occurrence) -> bool:
        """Whether what ``o`` would have as a gradient depends on ``p``, or is constant."""
        value = o.operands[1 - residual]
        return not value.sources or self.latest.get(value.token, -1) >= self.order[id(p)]

    def unexplained(self, matching: Matching) -> set[int]:
        """Identities of the gradients of forward products that lead nowhere."""
        first = [o for o in self.provenance.occurrences if matching.level(o) == 1]
        believed: set[int] = set()
        pairs: set[tuple[int, int]] = set()  # products, with the gradients of their results
        self.leading: set[int] = set()  # what the gradients that are believed are made of
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

    def above(self, tokens: Iterable[int], seen: set[int] | None = None) -> set[int]:
        """Some values, and all that they are made of up to products."""
        seen = set() if seen is None else seen
        todo = list(tokens)
        while todo:
            token = todo.pop()
            if token not in seen:
                seen.add(token)
                made = self.graph.made.get(token)
                if made is not None and token not in self.made:
                    todo += made.operands
        return seen


def _is_of_weight(match: Match) -> bool:
    return match.partner.operands[1 - match.side].sources == frozenset({PARAMETER})


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
