"""Products of a program that names nothing which may be gradients, or second derivatives.

Nothing explains them (``phases.py``), but to take them for products of a forward pass could be
wrong. They are unknown.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from srjit.numerics.symbolic import stand_ins
from srjit.planning.matching import DOUBTFUL, Matching
from srjit.planning.multiples import weighs
from srjit.planning.structure import MOST, Structure, reads_weight
from srjit.planning.tangents import TANGENT, Repetitions
from srjit.planning.tangents import linear as linear_in
from srjit.planning.value_graph import FACTORS, LINEAR, SLICES
from srjit.program.values import PARAMETER, Occurrence, Path, Value

_PARAMETER = frozenset({PARAMETER})


class Doubts:
    """Finds them.

    Args:
      structure: of the program.
      matching: the gradients that are believed.
      tangents: those of forward mode, around a gradient.
      found: the transformations of products by their paths, as far as they are explained.
    """

    def __init__(
        self,
        structure: Structure,
        matching: Matching,
        tangents: Repetitions,
        found: Mapping[Path, Sequence[str]],
    ) -> None:
        self.structure, self.matching, self.tangents = structure, matching, tangents
        self.graph, self.made, self.order = structure.graph, structure.made, structure.order
        self.occurrences = structure.provenance.occurrences
        self.names = [found.get(o.path, ()) for o in self.occurrences]
        pairs = list(zip(self.occurrences, self.names, strict=True))
        self.undecided = {
            o.out.token: o
            for o in self.occurrences
            if o.path not in found and self.made.get(o.out.token) is o
        }
        wrong = {"transpose", TANGENT, DOUBTFUL}
        self.forward = [o for o, names in pairs if wrong.isdisjoint(names) and not weighs(o)]
        self.second = [o for o, n in pairs if TANGENT in n or n.count("transpose") > 1]
        shapes = structure.provenance.parameter_shapes
        # Of products with a weight, by the size of the other operand, those of result and weight.
        self.forms: dict[int, dict[tuple[int, int], int]] = collections.defaultdict(dict)
        for o in self.occurrences:
            *given, made = _sizes(o)
            weights = [v.sources == _PARAMETER for v in o.operands]
            if sum(weights) == 1:
                side = weights.index(True)
                self.forms[given[1 - side]].setdefault((made, given[side]), self.order[id(o)])
        wide = [shape for shape in shapes if len(shape) > 1]
        parts = (
            t
            for t, s in structure.provenance.results
            if any(shape in (s[: len(shape)], s[-len(shape) :]) for shape in wide)
        )
        self.flowing = structure.above(parts, past=True)

    def tokens(self, indexed: Collection[int]) -> set[int]:
        """Tokens of their results.

        ``indexed``: what would be the gradient of a product on which it depends by index alone.
        """
        levels = map(self.matching.level, self.occurrences)
        first = next((i for i, level in enumerate(levels) if level), len(self.occurrences))
        later = {t: o for t, o in self.undecided.items() if self.order[id(o)] > first}
        found = self.leading_to(self.second, later)
        suspects = [
            o
            for o in self.undecided.values()
            if any(self.cotangents(o)) and not (self.order[id(o)] < first and self.is_residual(o))
        ]
        found += suspects + self.leading_to(suspects, self.undecided)
        if self.tangents.products:
            found += self.beside(suspects)
        below = self.structure.below({o.out.token for o in suspects})
        found += [o for token, o in self.undecided.items() if token in below]
        found += [o for t, o in self.undecided.items() if self.reads_cotangent(o, t in later)]
        if first < len(self.occurrences):
            found += [o for o in self.undecided.values() if id(o) in indexed and reads_weight(o)]
        found += self.of_seeds() + self.turned() + self.along_directions()
        found += self.of_unread() + self.of_dead_code()
        if first == len(self.occurrences):
            alone = self.backward_alone()
            below = self.structure.below({o.out.token for o in alone})
            found += alone + [o for o in self.forward if o.out.token in below]
        found += self.of_given([*found, *self.second]) + self.of_parts()
        return {o.out.token for o in found} | self.of_doubtful(found)

    def of_given(self, doubtful: Iterable[Occurrence]) -> list[Occurrence]:
        """Products of an input and a weight, where the input may be a cotangent.

        The gradient of the weight reads it too, beside a residual that was made before.
        """
        readers: dict[int, list[tuple[Occurrence, int]]] = collections.defaultdict(list)
        for o in doubtful:
            for side, value in enumerate(o.operands):
                readers[value.origin].append((o, side))
        return [
            o
            for o in self.forward
            for side, value in enumerate(o.operands)
            if value.origin in readers and o.operands[1 - side].sources == _PARAMETER
            if self.structure.inputs(value.token)
            for q, at in readers[value.origin]
            if 0 <= self.structure.latest.get(q.operands[1 - at].token, -1) < self.order[id(o)]
            and not self.matching.reads_alike(o, side, q, at)
        ]

    def of_parts(self) -> list[Occurrence]:
        """Products of a part of what others read, which gradients are made of by the chain rule.

        They are gradients in blocks, where the forward pass had other blocks or none. So is what
        reads their other operand.
        """
        found: dict[int, Occurrence] = {}
        wholes = collections.Counter(self.whole(v) for o in self.forward for v in o.operands)
        lone = {
            t: o
            for t, o in self.undecided.items()
            if not self.matching.is_differentiated(o) and not reads_weight(o)
        }
        for o in self.occurrences if lone else ():
            match = self.matching.gradients.get(id(o))
            if match is None:
                continue
            for token in self.scaled(o.operands[1 - match.residual].token):
                if (p := lone.get(token)) is not None and any(
                    self.graph.viewed(v.token) != self.whole(v) and wholes[self.whole(v)] > 1
                    for v in p.operands
                ):
                    found[id(p)] = p
        read = {v.origin for p in found.values() for v in p.operands}
        found |= {id(o): o for o in lone.values() if any(v.origin in read for v in o.operands)}
        return list(found.values())

    def whole(self, value: Value) -> int:
        """The value that one is a part of, or a view."""
        token = self.graph.viewed(value.token)
        while (made := self.graph.made.get(token)) is not None and made.name in SLICES:
            token = self.graph.viewed(made.operands[0])
        return token

    def scaled(self, token: int) -> set[int]:
        """Tokens that a value is linear in, times a factor that products made."""
        todo, seen, found = [(token, False)], set[tuple[int, bool]](), set[int]()
        while todo and len(seen) < MOST:
            token, is_scaled = at = todo.pop()
            if at in seen:
                continue
            seen.add(at)
            if token in self.made:
                found |= {token} if is_scaled else set()
                continue
            made = self.graph.made.get(token)
            if made is not None and made.name in LINEAR:
                by = [self.structure.latest.get(t, -1) >= 0 for t in made.operands]
                is_scaled |= made.name in FACTORS and sum(by) > 1
                todo += [(t, is_scaled) for t in made.operands]
        return found

    def of_unread(self) -> list[Occurrence]:
        """Products that fit, by shape, as gradients of parameters that no product reads.

        The Hessian of a linear layer is so, times a vector: the layer's own product is dead code.
        """
        provenance = self.structure.provenance
        read = {
            x.aval.shape
            for o in self.occurrences
            for v, x in zip(o.operands, o.eqn.invars[:2], strict=True)
            if v.sources == _PARAMETER
        }
        unread = {s for s in provenance.parameter_shapes - read if len(s) > 1}
        ends = (t for t, shape in provenance.results if shape in unread)
        above = self.structure.above(ends, only=LINEAR)
        readers: dict[int, list[tuple[Occurrence, int]]] = collections.defaultdict(list)
        found: list[Occurrence] = []
        for o in self.forward:
            for side, value in enumerate(o.operands):
                for p, at in readers[value.origin] if o.out.token in above else ():
                    is_turned = not self.matching.reads_alike(o, side, p, at)
                    if is_turned and self.structure.depends(o, p):
                        found += [o, p]
                readers[value.origin].append((o, side))
        return found

    def of_seeds(self) -> list[Occurrence]:
        """Products that make seeds of forward mode, or read them or tangents and are neither."""
        products, seeds = self.tangents.products, dict(self.tangents.seeds)
        makers = self.structure.above(seeds.values())
        made = [o for o in self.forward if o.out.token in makers]
        found = made + self.leading_to(made, self.undecided)
        for o in self.occurrences:
            p = products.get(id(o))
            for a, b in zip(o.operands, p.operands, strict=True) if p else ():
                if b.sources == _PARAMETER != a.sources:
                    seeds[a.origin] = a.token
        if products:
            found += [o for o in self.forward if any(v.origin in seeds for v in o.operands)]
            found += [o for o in self.forward if any(map(self.is_of_tangents, o.operands))]
        return found

    def along_directions(self) -> list[Occurrence]:
        """Gradients that are linear in products of their residual and a direction, and these.

        Forward mode around a gradient makes both. So may a gradient around forward mode, whose
        products would have a role: but seldom that of an input.
        """
        readers: dict[int, list[tuple[Occurrence, int]]] = collections.defaultdict(list)
        for o in self.occurrences:
            for side, value in enumerate(o.operands if not self.matching.level(o) else ()):
                readers[value.origin].append((o, side))
        found: list[Occurrence] = []
        for o in self.occurrences:
            match = self.matching.gradients.get(id(o))
            if match is None or match.level > 1:
                continue
            p, side = match.partner, match.side
            is_last = self.structure.latest.get(p.operands[1 - side].token, -1) < 0
            near = readers[p.operands[side].origin] if is_last else []
            alike = [(q, at) for q, at in near if self.matching.reads_alike(q, at, p, side)]
            along = [
                q
                for q, at in alike
                if q.operands[1 - at].sources != _PARAMETER and not self.structure.is_activated(q)
            ]
            if len(along) < len(alike):
                linear = linear_in(self.structure.provenance, [q.out.token for q in along])
                if o.operands[1 - match.residual].token in linear:
                    found += [o, *along]
        return found

    def cotangents(self, o: Occurrence) -> list[bool]:
        """True if each operand may be that of a weight's gradient, by its sizes and its result."""
        if o.out.token not in self.flowing or o.lhs.origin == o.rhs.origin or reads_weight(o):
            return [False, False]
        *given, made = _sizes(o)
        return [
            any(
                given[i] * weight == made * out != 0 == given[i] % out
                and self.structure.latest.get(o.operands[i].token, -1) >= number
                for (out, weight), number in self.forms.get(given[1 - i], {}).items()
            )
            for i in (0, 1)
        ]

    def reads_cotangent(self, o: Occurrence, is_later: bool) -> bool:
        """True if a product reads what gradients read that are believed, and nothing given.

        One with a weight may be a forward one before all of them.
        """
        if reads_weight(o) and not is_later:
            return False
        made = [v.origin for v in o.operands if self.structure.latest.get(v.token, -1) >= 0]
        return not self.read_by_gradients.isdisjoint(made)

    @functools.cached_property
    def read_by_gradients(self) -> set[int]:
        """Origins of the cotangents of these."""
        matches = self.matching.gradients
        found = [(o, matches[id(o)]) for o in self.occurrences if id(o) in matches]
        return {o.operands[1 - match.residual].origin for o, match in found}

    def is_residual(self, o: Occurrence) -> bool:
        """True if a product reads the result of which gradients are believed, beside a weight."""
        return any(
            self.matching.is_differentiated(p) and reads_weight(p)
            for p in self.forward
            if any(v.origin == o.out.origin for v in p.operands)
        )

    def beside(self, suspects: Iterable[Occurrence]) -> list[Occurrence]:
        """Products that read the cotangents of some gradients of weights, for other gradients.

        Where forward mode is around a gradient, they may be of what it added.
        """
        read = {
            o.operands[i].origin: (o, i)
            for o in suspects
            for i, may_be in enumerate(self.cotangents(o))
            if may_be
        }
        return [
            o
            for o in self.occurrences
            for i, value in enumerate(o.operands)
            if value.origin in read and not self.matching.reads_alike(o, i, *read[value.origin])
        ]

    def leading_to(
        self, products: Iterable[Occurrence], among: Mapping[int, Occurrence]
    ) -> list[Occurrence]:
        """The products that others are linear in, and these in turn."""
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
            elif made is not None and (made.name in LINEAR or token in self.structure.weighed):
                todo += made.operands
        return found

    def is_of_tangents(self, value: Value) -> bool:
        """True if a value is linear in a tangent, and no weight that was updated."""
        return self.structure.is_linear_in(value, lambda o: id(o) in self.tangents.products)

    def turned(self) -> list[Occurrence]:
        """Products that read a weight the other way around, of a gradient or of inputs alone.

        Such a product may be a gradient whose cotangent is given to the program, or was made of
        random numbers in it: the one of two that nothing else flows into, or else the later one.
        """
        first: dict[int, tuple[Occurrence, int]] = {}
        found: dict[int, Occurrence] = {}
        for o in self.forward:
            for side, value in enumerate(o.operands):
                if value.sources != _PARAMETER:
                    continue
                p, other = first.setdefault(value.origin, (o, side))
                if self.matching.reads_alike(o, side, p, other):
                    continue
                seeds = self.seeded(p)
                if self.structure.is_linear_in(
                    o.operands[1 - side],
                    lambda q, seeds=seeds: q.out.token in seeds or self.matching.level(q),
                ):
                    found |= {id(q): q for q in [o, *self.leading_to([o], seeds)]}
                elif o.operands[1 - side].origin == p.operands[1 - other].origin:
                    continue  # no gradient, since the other one is a forward product of it
                elif not self.structure.depends(o, p):
                    alone = [
                        q
                        for q, at in ((p, other), (o, side))
                        if self.structure.inputs(q.operands[1 - at].token)
                    ]
                    found |= {id(q): q for q in alone[-1:]}
        given = {
            t for o in found.values() for v in o.operands for t in self.structure.inputs(v.token)
        }
        given -= {t for t in given if self.structure.provenance.given[t] == PARAMETER}
        for o in self.forward:
            inputs = [self.structure.inputs(v.token) for v in o.operands if v.sources != _PARAMETER]
            if any(i and i <= given for i in inputs):
                found[id(o)] = o
        return list(found.values())

    def seeded(self, p: Occurrence) -> dict[int, Occurrence]:
        """Products after another one of a weight and an input that nothing read before, by token.

        The input may be the cotangent of what a product made that is dead code.
        """
        found: dict[int, Occurrence] = {}
        for q in self.forward:
            number = self.order[id(q)]
            given = [self.structure.inputs(v.token) for v in q.operands if v.sources != _PARAMETER]
            is_after = number > self.order[id(p)] and len(given) == 1 and given[0]
            if is_after and all(self.structure.first.get(t, number) >= number for t in given[0]):
                found[q.out.token] = q
        return found

    def of_dead_code(self) -> list[Occurrence]:
        """Such products in which gradients are linear that are differentiated themselves."""
        matches = [(o, self.matching.gradients.get(id(o))) for o in self.occurrences]
        first = [(o, m) for o, m in matches if m is not None and m.level == 1]
        if not first or not self.second:
            return []
        seeds = self.seeded(first[0][1].partner)
        linear = linear_in(self.structure.provenance, seeds)
        ends = [o for o, m in first if o.operands[1 - m.residual].token in linear]
        return self.leading_to(ends, seeds)

    def backward_alone(self) -> list[Occurrence]:
        """Products of what may be a gradient, in a program that has residuals for inputs.

        Two read it, each summing over other dimensions of it, beside values that no product made;
        one of them has a result that the program returns, as the gradient of a weight.
        """
        provenance = self.structure.provenance
        ends: dict[int, list[int]] = collections.defaultdict(list)
        for token, shape in provenance.results:
            ends[math.prod(stand_ins(shape))].append(token)
        above = {n: self.structure.above(tokens, only=LINEAR) for n, tokens in ends.items()}
        shaped = (t for t, shape in provenance.results if shape in provenance.parameter_shapes)
        like_weights = self.structure.above(shaped, only=LINEAR)

        def is_of_weight(o: Occurrence, side: int) -> bool:  # and returned whole, no sum of it
            size = _sizes(o)[2]
            if not any(size <= n and o.out.token in above[n] for n in above):
                return False
            return o.out.token in like_weights or o.operands[1 - side].sources != _PARAMETER

        readers: dict[int, list[tuple[Occurrence, int]]] = collections.defaultdict(list)
        for o in self.occurrences:
            for side, value in enumerate(o.operands):
                is_bare = self.structure.latest.get(o.operands[1 - side].token, -1) < 0
                if is_bare and o.lhs.origin != o.rhs.origin and value.sources != _PARAMETER:
                    readers[value.origin].append((o, side))
        return [
            o
            for (p, other), *rest in readers.values()
            for q, side in rest
            if not self.matching.reads_alike(q, side, p, other)
            and (is_of_weight(p, other) or is_of_weight(q, side))
            for o in (p, q)
        ]

    def of_doubtful(self, doubtful: Iterable[Occurrence]) -> set[int]:
        """Tokens of the gradients of some products, and of their gradients."""
        partners, found = {id(o) for o in doubtful}, set[int]()
        for o in self.occurrences:
            match = self.matching.gradients.get(id(o))
            if match is not None and id(match.partner) in partners:
                partners.add(id(o))
                found.add(o.out.token)
        return found


def _sizes(o: Occurrence) -> list[int]:
    return [math.prod(stand_ins(v.aval.shape)) for v in (*o.eqn.invars[:2], *o.eqn.outvars)]
