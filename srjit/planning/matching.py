"""Pairs products with their gradients by structure: shared operands, dimensions and order.

A gradient of a forward product shares one operand with it, the residual, and sums over dimensions
of it that the forward product keeps. Its other operand has as many elements as the forward's
result, and its result as many as the forward's other operand. Each side of a forward product is
taken once, the latest first, as differentiation goes. Names, where there are any, leave fewer to
choose from: a gradient stands under one transposition more than what it is the gradient of.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from srjit.numerics.symbolic import stand_ins
from srjit.planning.multiples import is_captured_vector, weighs
from srjit.planning.provenance import Provenance
from srjit.planning.tangents import in_place_of_weights, tangents
from srjit.products.dot import DotProduct
from srjit.products.kinds import product_of
from srjit.products.product import Product
from srjit.program.protocols import Variable
from srjit.program.values import BACKWARD, DATA, PARAMETER, Occurrence, Value

_PARAMETER = frozenset({PARAMETER})
DOUBTFUL = "doubtful"  # the transformation under which phases.py puts what may be a gradient
_CERTAIN = 4  # of what makes a partner likely: what follows only prefers one to another
_MOST = 32  # candidates that are compared: many products read a weight that layers share


@dataclasses.dataclass(frozen=True)
class Match:
    """A product whose gradient another one is.

    Attributes:
      partner: the product.
      side: which of its operands is the residual.
      residual: which operand of the gradient that is.
      why: how it was found.
      level: 1 for the gradient of a forward product, 2 for that of such a gradient.
    """

    partner: Occurrence
    side: int
    residual: int
    why: str
    level: int = 1


def matched(provenance: Provenance) -> Matching:
    """Pairs the products of a program with their gradients."""
    matching = Matching(provenance)
    for o in provenance.occurrences:
        if weighs(o):
            continue
        is_tangent = id(o) in matching.tangents
        if o.scope.phase == "backward" and not is_tangent and o.out.token not in matching.made:
            matching.find(o)
        matching.add(o)
    matching.doubt_orphans(provenance.occurrences)
    return matching


# Whether a product, with this one of its operands as the residual, may be a gradient of another.
MayBe = Callable[[Occurrence, int, Occurrence], bool]


class Matching:
    """Finds the gradients among the products of a program.

    Args:
      provenance: of the program.
      may_be_of: what else has to be true of a gradient; without it, names have to allow it.

    Attributes:
      gradients: by the identity of an occurrence, its match.
      tangents: the products that differentiation in forward mode adds to a gradient, by their
        identities, with the differentiations that they stand under.
      orphans: by the identity of an occurrence, the kinds of a gradient whose forward product is
        not in the program.
      made: by the token of its result, the forward product that makes it first.
    """

    def __init__(self, provenance: Provenance, may_be_of: MayBe | None = None) -> None:
        self._may_be_of = may_be_of or self._names_allow
        self._graph = provenance.graph
        self._products: dict[int, Product | None] = {}
        self._summed: dict[tuple[int, int], tuple[int, frozenset[int]] | None] = {}
        self.gradients: dict[int, Match] = {}
        self.made: dict[int, Occurrence] = {}
        self.again: set[int] = set()  # results that are no gradients
        self.orphans: dict[int, tuple[str, str]] = {}
        self.tangents = tangents(provenance, self.repeats)
        self._provenance = provenance
        self._readers: dict[int, list[tuple[Occurrence, int]]] = collections.defaultdict(list)
        self._repeated: dict[int, Occurrence] = {}
        self._alike: set[int] = set()  # of the backward pass, and read what others read, as they do
        self._taken: dict[tuple[int, int], int] = {}  # by product and residual's side, a cotangent
        self._calls: collections.Counter[tuple[int, int]] = collections.Counter()  # not taken yet
        self._cotangents: dict[int, int] = {}
        self._scaled = provenance.scaled
        self._results = provenance.results
        self._products_made = {o.out.token for o in provenance.occurrences}
        shapes = provenance.parameter_shapes
        self._parameters = {stand_ins(shape) for shape in shapes if len(shape) > 1}
        self._data = {origin for origin, label in provenance.given.items() if label == DATA}
        self._forward_reads = {
            v.origin for o in provenance.occurrences if depth(o) == 0 for v in o.operands
        }

    # ------------------------------------------------------------------------------ building

    def add(self, o: Occurrence) -> None:
        """The next product in order, to be the partner of later ones."""
        if not self.level(o):
            self.again.add(o.out.token)
        if (original := self.made.get(o.out.token)) is not None:
            for side in (0, 1):  # it may be differentiated again
                was_taken = self._taken.pop((id(original), side), None) is not None
                self._calls[id(original), side] += was_taken or o.scope.phase != "backward"
            return
        if o.scope.phase != "backward" and not self.level(o):
            self.made[o.out.token] = o
        for side, value in enumerate(o.operands):
            self._readers[self._root(value)].append((o, side))

    def find(self, o: Occurrence) -> None:
        """The match of the next product in order, if it is a gradient."""
        found = [
            (self._rank(o, residual, p, side), n, p, side, residual)
            for residual in (1, 0)
            if not self._is_weight(o.operands[1 - residual])
            for n, (p, side) in enumerate(self._near(o.operands[residual]))
            if self._fits(o, residual, p, side)
            and self._may_be_of(o, residual, p)
            and not self._is_beside(o, p)
        ]
        if not found:
            self._note_repetition(o)
            is_constant = not all(v.sources for v in o.operands)
            may_be = is_constant or o.scope.phase == "backward"
            if may_be and id(o) not in self._alike and (kinds := self._of_dead_code(o)):
                self.orphans[id(o)] = kinds
            return
        rank, _, p, side, residual = min(found, key=lambda f: f[:2])
        if self._is_seed(p.operands[1 - side]) or self._is_direction(p, side, o):
            # It is that of the weight in whose place this stands, beside which nobody needed it.
            self.orphans[id(o)] = _kinds("activation", residual)
            return
        why = "the residual is read by this forward product"
        # What a product and its tangent share does not tell whose gradient this is.
        level = max(
            self.level(q) for r, _, q, *_ in found if q is p or self._is_as_likely(q, r, rank)
        )
        match = Match(p, side, residual, why, level + 1)
        self.gradients[id(o)] = match
        cotangent = o.operands[1 - residual].origin
        self._cotangents[id(p)] = self._taken[id(p), side] = cotangent
        self._calls[id(p), side] -= 1

    def _is_beside(self, o: Occurrence, p: Occurrence) -> bool:
        """True if forward mode added ``p``, and not to what ``o`` is the backward pass of."""
        outer = self.tangents.get(id(p))
        if outer is None:
            return False
        is_inside = o.derivatives[: len(outer)] == outer
        return is_inside or not _is_transpose(o.derivatives, p.derivatives)

    def _is_as_likely(self, p: Occurrence, rank: tuple[Any, ...], best: tuple[Any, ...]) -> bool:
        return id(p) in self.tangents and rank[:_CERTAIN] == best[:_CERTAIN]

    def _is_weight(self, value: Value) -> bool:
        """True if it is a parameter that a forward product read: no gradient."""
        readers = self._near(value) if value.sources == _PARAMETER else ()
        return any(not self.level(p) for p, _ in readers)

    def computed_again(self, o: Occurrence) -> Occurrence | None:
        """The product that ``o``, of the backward pass, computes again; itself if it is the first.

        It is no gradient: it is one of the forward pass, or like one but for its activation, or a
        gradient is taken of it.
        """
        original = self.made.get(o.out.token)
        if original is not None or id(o) in self.gradients:
            return original
        if id(o) in self.orphans or self._is_of_gradient(o):
            return None
        return self._repeated.get(id(o), o if self.is_differentiated(o) else None)

    def is_differentiated(self, o: Occurrence) -> bool:
        """True if a gradient of it was found."""
        return not self._taken.keys().isdisjoint(((id(o), 0), (id(o), 1)))

    def level(self, p: Occurrence) -> int:
        """0 for no gradient, 1 for that of a forward product, 2 for that of a gradient."""
        match = self.gradients.get(id(p))
        if match is not None:
            return match.level
        if self._is_of_gradient(p):
            return 2
        return int(id(p) in self.orphans or id(p) in self.tangents)

    def _is_of_gradient(self, o: Occurrence) -> bool:
        """True if names tell that a gradient was differentiated, and not what it computes again."""
        stack = o.derivatives
        is_of_gradient = stack.count("transpose") > 1 and stack[-2:] == ("transpose", "jvp")
        return is_of_gradient and o.out.token not in self.again

    def _of_dead_code(self, o: Occurrence) -> tuple[str, str] | None:
        """Kinds of a gradient whose forward product nobody needed, as in the grad of a sum.

        A product with one weight makes the gradient of an activation; one without, whose result has
        the shape of a parameter, makes that of the parameter, if it is plain which is the gradient.
        """
        weights = [v.sources == _PARAMETER for v in o.operands]
        if sum(weights) == 1 and self.may_be_gradient(o.operands[weights.index(False)]):
            return _kinds("weight", weights.index(True))
        made = [BACKWARD in v.labels for v in o.operands]
        for likely in (lambda v: not v.sources, self._is_cotangent):
            made = made if any(made) else [likely(v) for v in o.operands]
        is_weight = [DATA not in v.sources and PARAMETER in v.sources for v in o.operands]
        has_data = not any(w and not m for w, m in zip(is_weight, made, strict=True))
        shape = stand_ins(o.eqn.outvars[0].aval.shape)
        # Gradients of single examples have a dimension more.
        shapes = {shape, *(shape[:d] + shape[d + 1 :] for d in range(len(shape)))}
        is_of_parameter = shapes & self._parameters or o.out.token in self._returned
        weighs = any(is_captured_vector(o, side) for side in (0, 1))
        if has_data and sum(made) == 1 and is_of_parameter and not weighs:
            return _kinds("activation", made.index(False))
        return None

    def doubt_orphans(self, occurrences: Sequence[Occurrence]) -> None:
        """Leaves them out where two read one gradient both ways, each beside a declared weight.

        One of the weights is an activation: a backward pass alone has residuals for parameters.
        """
        read: dict[int, tuple[Occurrence, int]] = {}
        for o in occurrences:
            if "weight" in (kinds := self.orphans.get(id(o), ())):
                side = kinds.index("gradient")
                p, other = read.setdefault(o.operands[side].origin, (o, side))
                if not self.reads_alike(o, side, p, other):
                    self.orphans.clear()

    def _is_seed(self, value: Value) -> bool:
        """True if forward mode has a value in the place of a weight."""
        return value.sources != _PARAMETER and value.origin in self._seeds

    def _is_direction(self, p: Occurrence, side: int, o: Occurrence) -> bool:
        """True if a gradient is returned as a parameter's, and names tell that of a direction.

        Of one linear layer, forward mode reads the direction alone, in the weight's place.
        """
        is_given = p.operands[1 - side].origin in self._data
        return is_given and p.derivatives.count("jvp") > 1 and o.out.token in self._returned

    @functools.cached_property
    def _seeds(self) -> set[int]:
        return in_place_of_weights(self._provenance, self.repeats)

    @functools.cached_property
    def _returned(self) -> set[int]:
        """Tokens of what results in a parameter's shape are made of, up to products."""
        todo = [t for t, shape in self._results if stand_ins(shape) in self._parameters]
        seen: set[int] = set()
        while todo:
            token = todo.pop()
            if token not in seen and token not in self._products_made and token in self._graph.made:
                todo += self._graph.made[token].operands
            seen.add(token)
        return seen

    def _root(self, value: Value) -> int:
        """The origin of what a value is a multiple of."""
        origin = value.origin
        while origin in self._scaled:
            origin = self._scaled[origin]
        return origin

    def _near(self, value: Value) -> Iterator[tuple[Occurrence, int]]:
        """Yields the latest products that read a value, latest first."""
        readers = self._readers.get(self._root(value), [])
        yield from readers[: -_MOST - 1 : -1]
        if len(readers) > _MOST:
            yield from readers[:_MOST]

    def _note_repetition(self, o: Occurrence) -> None:
        """Notes that ``o`` reads a value as a product does that is no gradient."""
        for side, value in enumerate(o.operands):
            for p, other in self._near(value):
                is_alike = p.operands[other].origin == value.origin and other == side
                if is_alike and not self.level(p) and self.reads_alike(o, side, p, side):
                    self._alike.add(id(o))
                    is_weight = value.sources == _PARAMETER
                    if is_weight and self._sizes(o) == self._sizes(p):
                        self._repeated.setdefault(id(o), self._repeated.get(id(p), p))

    # ------------------------------------------------------------------------------ comparing

    def _names_allow(self, o: Occurrence, residual: int, p: Occurrence) -> bool:
        """True if names allow ``o`` to be a gradient of ``p``."""
        if depth(o) != depth(p):
            return depth(o) > depth(p)
        # Written by hand in a backward pass, with what it computes again: of that, not of its like.
        return id(p) in self._alike

    def _rank(self, o: Occurrence, residual: int, p: Occurrence, side: int) -> tuple[Any, ...]:
        """Smallest for the likeliest of several partners."""
        cotangent = self._cotangents.get(id(p))
        other = o.operands[1 - residual]
        taken = self._taken.get((id(p), side))
        # Both gradients of a product read the same one; a constant is that of many products.
        is_other_side = bool(other.sources) and cotangent == other.origin != taken
        return (
            not _is_transpose(o.derivatives, p.derivatives),
            not self.may_be_gradient(other),
            p.operands[side].origin != o.operands[residual].origin,
            not is_other_side,
            self.level(p),
            _size(o.eqn.invars[1 - residual]) != _size(p.eqn.outvars[0]),
            depth(o) == depth(p),
            taken is not None and self._calls[id(p), side] < 0,
            self._is_seed(p.operands[1 - side]),
            PARAMETER not in p.operands[1 - side].labels,
            not self._sums_alike(o, residual, p, side),
            {None: 1, other.origin: 0}.get(cotangent, 2),
            o.location != p.location,
        )

    def may_be_gradient(self, value: Value) -> bool:
        """True if the backward pass made it, or it is a constant (of a sum) or a cotangent."""
        return BACKWARD in value.labels or not value.sources or self._is_cotangent(value)

    def _is_cotangent(self, value: Value) -> bool:
        """True if it is an argument that no forward product reads."""
        return value.origin in self._data and value.origin not in self._forward_reads

    def _fits(self, o: Occurrence, residual: int, p: Occurrence, side: int) -> bool:
        """True if ``o`` can be the gradient of the other operand of ``p``."""
        given = _size(o.eqn.invars[1 - residual]), _size(p.eqn.outvars[0])
        made = _size(o.eqn.outvars[0]), _size(p.eqn.invars[1 - side])
        if not all((*given, *made)):
            return False
        is_outer = self._extent(o, residual) == self._extent(p, side) == 1  # no sum tells them
        if not o.operands[1 - residual].sources and not is_outer:  # vmap repeats no constants
            if given[1] % given[0] or (made[0] % made[1] and made[1] % made[0]):
                return False
        # Gradients of single examples have a dimension more; groups have a masked gradient each.
        elif given[0] % given[1] or made[0] % made[1]:
            return False
        sums, kept = self._sums(o, residual), self._sums(p, side)
        if sums is not None and kept is not None and sums[0] == kept[0]:
            return not sums[1] & kept[1]
        if given[0] > given[1]:
            return False
        return self._extent(o, residual) != self._extent(p, side) or made[0] == made[1]

    def _sums_alike(self, o: Occurrence, residual: int, p: Occurrence, side: int) -> bool:
        """True if ``o`` sums over those dimensions of a gradient that the residual gave."""
        here, there = self._product(o), self._product(p)
        if not isinstance(here, DotProduct) or not isinstance(there, DotProduct):
            return True
        value, shape = o.operands[1 - residual], o.eqn.invars[1 - residual].aval.shape
        given = frozenset(there.out.index(d) for d in there.groups(side)[1])
        dims = frozenset(here.contracting(1 - residual))
        if shape == p.eqn.outvars[0].aval.shape and dims == given:
            return True
        return (self._graph.frame(value.token, dims) or (0, None))[1] == given

    def repeats(self, o: Occurrence, p: Occurrence, side: int) -> bool:
        """True if ``o`` is ``p`` with another value, or a batch of them, on the other side."""
        pairs = list(zip(self._sizes(o), self._sizes(p), strict=True))
        if not o.operands[1 - side].sources:  # vmap repeats no constants
            return pairs[side][0] == pairs[side][1] and self.reads_alike(o, side, p, side)
        if not all(size for _, size in pairs) or any(a % b for a, b in pairs):
            return False
        times = {a // b for i, (a, b) in enumerate(pairs) if i != side}
        return (
            pairs[side][0] == pairs[side][1]
            and len(times) == 1
            and self.reads_alike(o, side, p, side)
        )

    def _sizes(self, o: Occurrence) -> list[int]:
        return [_size(v) for v in (*o.eqn.invars[:2], *o.eqn.outvars)]

    def reads_alike(self, o: Occurrence, side: int, p: Occurrence, other: int) -> bool:
        """True if two products sum over the same dimensions of an operand that they share."""
        here, there = self._sums(o, side), self._sums(p, other)
        if here is None or there is None or here[0] != there[0]:
            return self._extent(o, side) == self._extent(p, other)
        return here[1] == there[1]

    def _sums(self, o: Occurrence, side: int) -> tuple[int, frozenset[int]] | None:
        """The dimensions of an operand that are summed over, as those of what it is a view of."""
        key = id(o), side
        if key not in self._summed:
            product = self._product(o)
            shape = o.eqn.invars[side].aval.shape
            dims = [d for d in product.contracting(side) if shape[d] != 1] if product else []
            token = o.operands[side].token
            self._summed[key] = self._graph.frame(token, dims) if product else None
        return self._summed[key]

    def _extent(self, o: Occurrence, side: int) -> int:
        product, n = self._product(o), 1
        for d in product.contracting(side) if product else ():
            n *= o.eqn.invars[side].aval.shape[d]
        return n

    def _product(self, o: Occurrence) -> Product | None:
        if id(o) not in self._products:
            self._products[id(o)] = product_of(o.eqn)
        return self._products[id(o)]


def depth(o: Occurrence) -> int:
    """The number of transpositions in a product's name stack."""
    return 0 if o.scope.phase == "forward" else o.scope.transforms.count("transpose")


def _is_transpose(outer: Sequence[str], inner: Sequence[str]) -> bool:
    """True if ``outer`` is ``inner`` but for one transposition more."""
    if len(outer) != len(inner) + 1:
        return False
    n = next((i for i, (a, b) in enumerate(zip(outer, inner, strict=False)) if a != b), len(inner))
    return outer[n] == "transpose" and list(outer[n + 1 :]) == list(inner[n:])


def _kinds(kind: str, side: int) -> tuple[str, str]:
    """Kinds of a gradient's operands: on one side that, on the other what it is made of."""
    return (kind, "gradient") if side == 0 else ("gradient", kind)


def _size(v: Variable) -> int:
    return _elements(tuple(v.aval.shape))


@functools.lru_cache(maxsize=4096)
def _elements(shape: tuple[Any, ...]) -> int:
    return math.prod(stand_ins(shape))
