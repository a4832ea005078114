"""The products of a program in order, and the values that flow into each."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Collection, Iterable

from srjit.planning.multiples import weighs
from srjit.planning.provenance import Provenance
from srjit.planning.value_graph import ADDITIONS, FACTORS, LINEAR, Made
from srjit.program.values import PARAMETER, Occurrence, Value

_PARAMETER = frozenset({PARAMETER})
MOST = 512  # values that are looked at between two products


class Structure:
    """The values and products of a program.

    Attributes:
      provenance, graph: of the program.
      weighed: tokens of the results of those.
      order: numbers of products, by their identity.
      made: by the token of its result, the product that makes it first; not what only weighs.
      latest, first: by token, the last product that flows into a value, and the first one that it
        flows into.
      weights: tokens of the parameters that products read.
    """

    def __init__(self, provenance: Provenance) -> None:
        self.provenance, self.graph = provenance, provenance.graph
        self.order = {id(o): i for i, o in enumerate(provenance.occurrences)}
        self.made: dict[int, Occurrence] = {}
        for o in provenance.occurrences:
            if not weighs(o):
                self.made.setdefault(o.out.token, o)
        self.weighed = {o.out.token for o in provenance.occurrences if weighs(o)}
        self.numbers = {token: self.order[id(o)] for token, o in self.made.items()}
        self.latest, self.first = self._latest(), self._first()
        operands = [v for o in provenance.occurrences for v in o.operands]
        self.weights = {self.graph.viewed(v.token) for v in operands if v.sources == _PARAMETER}

    def _latest(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for _ in range(2):  # what loops carry is made later than it is read
            for token, made in self.graph.made.items():
                before = [found.get(t, -1) for t in made.operands]
                found[token] = max(self.numbers.get(token, -1), *before, -1)
        return found

    def _first(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for token, made in reversed(self.graph.made.items()):
            number = self.numbers.get(token, found.get(token))
            if number is not None:
                for t in made.operands:
                    found[t] = min(number, found.get(t, number))
        return found

    def above(
        self,
        tokens: Iterable[int],
        seen: set[int] | None = None,
        past: bool = False,
        only: Collection[str] | None = None,
    ) -> set[int]:
        """Some values, and all that they are made of, up to products, or to those with a weight.

        ``only``: the names of the operations that are looked through, if not all.
        """
        seen = set() if seen is None else seen
        todo = list(tokens)
        while todo:
            token = todo.pop()
            if token not in seen:
                seen.add(token)
                made = self.graph.made.get(token)
                o = self.made.get(token)
                is_other = only is not None and made is not None and made.name not in only
                is_end = made is None or (is_other and token not in self.weighed)
                if not is_end and (o is None or (past and not reads_weight(o))):
                    todo += self.graph.made[token].operands
        return seen

    def below(self, tokens: set[int]) -> set[int]:
        """Some values, and all that is made of them."""
        for _ in range(2):  # what loops carry is made later than it is read
            for token, made in self.graph.made.items():
                if not tokens.isdisjoint(made.operands):
                    tokens.add(token)
        return tokens

    def inputs(self, token: int) -> set[int]:
        """The program's inputs that a value is made of; none if products flow into it."""
        if self.latest.get(token, -1) >= 0:
            return set()
        return self.above([token]) & self.provenance.given.keys()

    def depends(self, o: Occurrence, p: Occurrence) -> bool:
        """True if a product is made of another one, as far as can be seen."""
        todo, seen, number = [v.token for v in o.operands], set[int](), self.order[id(p)]
        while todo:
            token = todo.pop()
            if token == p.out.token or len(seen) > MOST:
                return True
            if token not in seen and self.latest.get(token, -1) >= number:
                seen.add(token)
                todo += self.graph.made[token].operands
        return False

    def is_updated(self, token: int) -> bool:
        """True if a value is a weight with something added, as after a step."""
        made = self.graph.made.get(self.graph.viewed(token))
        if made is None or made.name not in ADDITIONS:
            return False
        return any(self.graph.viewed(t) in self.weights for t in made.operands)

    def is_linear_in(self, value: Value, is_one: Callable[[Occurrence], object]) -> bool:
        """True if a value is linear in some product's result, and no weight that was updated."""
        todo, seen = [value.token], set[int]()
        while todo and len(seen) < MOST:
            token = todo.pop()
            made, o = self.graph.made.get(token), self.made.get(token)
            if o is not None and is_one(o):
                return True
            is_linear = made is not None and made.name in LINEAR - {"carry"}
            is_updated = self.is_updated(token)
            if token not in seen and o is None and is_linear and not is_updated:
                todo += self.graph.made[token].operands
            seen.add(token)
        return False

    def is_activated(self, o: Occurrence) -> bool:
        """True if something that is not linear reads what a product made, before another product.

        Then it is of a forward pass: what is made of gradients by differentiation is linear.
        """
        todo, seen = [o.out.token], set[int]()
        while todo and len(seen) < MOST:
            token = todo.pop()
            if token in seen or (token in self.made and token != o.out.token):
                continue
            seen.add(token)
            for result, made in self.readers.get(token, ()):
                if made.name not in LINEAR:
                    return True
                todo += [result] if made.name not in FACTORS | {"carry"} else []
        return False

    @functools.cached_property
    def readers(self) -> dict[int, list[tuple[int, Made]]]:
        """For every value what is made of it, without products."""
        found: dict[int, list[tuple[int, Made]]] = collections.defaultdict(list)
        for token, made in self.graph.made.items():
            if token not in self.numbers:
                for t in made.operands:
                    found[t].append((token, made))
        return found


def reads_weight(o: Occurrence) -> bool:
    """True if an operand comes from parameters alone."""
    return any(v.sources == _PARAMETER for v in o.operands)
