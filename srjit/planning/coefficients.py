"""The coefficients of derivatives that the backward pass keeps as codes, in place of floats.

Between two products a cotangent is multiplied, element by element, by what the forward pass made:
``gelu'(x)``, a dropout mask, the other half of a gated unit. All of that is one coefficient, in
which the gradient is linear, so that codes of it which are right on average make gradients that
are. The forward pass makes them; the floats that only the coefficient needed are kept no longer.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from srjit import _compat
from srjit.numerics.quantization import Quantization
from srjit.planning.kept import ELEMENTWISE, UNCHANGED, Part, Scopes, size_of, variables
from srjit.planning.provenance import Provenance
from srjit.planning.site import Residual
from srjit.planning.value_graph import VIEWS
from srjit.program.protocols import Equation, Variable
from srjit.program.values import Path, visible
from srjit.recipes import Recipe

_AGAIN = {*ELEMENTWISE, *VIEWS}  # what the forward pass may compute for a coefficient alone


@dataclasses.dataclass(frozen=True, eq=False)
class Coefficient:
    """A factor of a cotangent, element by element, kept as codes.

    Attributes:
      number: its noise comes from that.
      spec: how it is quantized: a scale a row.
      made: the equation of the forward pass after which there is all that it needs.
      read: the equation of the backward pass whose result is the coefficient times a cotangent.
      steps: what makes that result of the cotangent, and of values of the forward pass.
      given: those values: in the steps, and where the forward pass made them.
      cotangent, result: the variables.
    """

    number: int
    spec: Quantization
    made: Path
    read: Path
    steps: tuple[Equation, ...]
    given: tuple[tuple[Variable, Variable], ...]
    cotangent: Variable
    result: Variable

    def is_read_in(self, path: Path) -> bool:
        """True if it is read in the scope at ``path``, or in one inside."""
        return self.read[: len(path)] == path


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """All coefficients of a program that are kept as codes.

    Attributes:
      made: by the equation of the forward pass after which they are made.
      read: by the equation of the backward pass that reads one.
      reported: what becomes of what the backward pass needs.
      notes: what else a user should know.
    """

    made: Mapping[Path, Sequence[Coefficient]]
    read: Mapping[Path, Coefficient]
    reported: tuple[Residual, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def paths(self) -> set[Path]:
        """The places of equations that make or read one."""
        return {*self.made, *self.read}


NONE = Coefficients({}, {})
_ANYWAY = "what it is made of is kept anyway"
_NOT_SMALLER = "its codes would not be smaller"
_NOTHING = (
    "residuals: nothing is kept as codes, since no cotangent is multiplied element by element: "
    "srjit has to be around the whole step, with jax.grad inside of it"
)


def find(provenance: Provenance, coded: set[tuple[Path, int]], recipe: Recipe) -> Coefficients:
    """The coefficients that a recipe asks for, where codes are smaller than what they replace.

    Args:
      provenance: of the program, a jaxpr.
      coded: operands, by site and side, of which the backward pass needs no floats.
      recipe: what asks.
    """
    if not recipe.residuals:
        return NONE
    return _Search(Scopes(provenance, coded), recipe).run()


# ------------------------------------------------------------------------------------- coefficients


class _Chain(NamedTuple):
    """A cotangent, and the equations that multiply it element by element."""

    cotangent: Variable
    steps: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True, eq=False)
class _Candidate:
    """A coefficient that may be kept.

    Attributes:
      path, like: where it is read, and the variable that has its shape.
      size: bytes of its codes.
      sources: what the backward pass needs for it otherwise, in floats.
      coefficient: it; None: it cannot be kept.
      reason: why it is not.
    """

    path: str
    like: Variable
    size: int
    sources: Mapping[int, int]
    coefficient: Coefficient | None
    reason: str = ""


class _Search:
    def __init__(self, scopes: Scopes, recipe: Recipe) -> None:
        self.scopes, self.recipe = scopes, recipe
        self._numbers = itertools.count()
        self._without = scopes.needed({})  # what is kept if no coefficient is
        # By scope of the forward pass: what it has by token, and the equation that makes it.
        self.homes: dict[Path, dict[int, tuple[Variable, int]]] = {}
        for path, scope in scopes.all.items():
            if not scope.is_late:
                made = [(v, -1) for v in (*scope.program.constvars, *scope.program.invars)]
                made += [
                    (v, i)
                    for i, eqn in enumerate(scope.program.eqns)
                    for v in eqn.outvars
                    if not scope.late[i]
                ]
                tokens = [scope.values[v].token for v, _ in made]
                self.homes[path] = dict(zip(reversed(tokens), reversed(made), strict=True))

    def run(self) -> Coefficients:
        """Looks."""
        found = [c for scope in self.scopes.all.values() for c in self._candidates(scope)]
        chosen = [c for c in found if c.coefficient is not None]
        reasons = {c: c.reason for c in found}
        while True:
            needed = self.scopes.needed(_reads(chosen))
            worse = [g for g in _groups(chosen, needed) if not _is_less(g)]
            if not worse:
                break
            for members, freed in worse:
                reasons |= dict.fromkeys(members, _NOT_SMALLER if freed else _ANYWAY)
            chosen = [c for c in chosen if not reasons[c]]
        made: dict[Path, list[Coefficient]] = {}
        read: dict[Path, Coefficient] = {}
        for c in chosen:
            if c.coefficient is not None:
                made.setdefault(c.coefficient.made, []).append(c.coefficient)
                read[c.coefficient.read] = c.coefficient
        notes = () if found else (_NOTHING,)
        return Coefficients(made, read, tuple(_reported(reasons)), notes)

    def _candidates(self, scope: Part) -> Iterator[_Candidate]:
        chains: dict[Variable, _Chain] = {}
        ends: dict[Variable, int] = {}
        for index, eqn in enumerate(scope.program.eqns):
            chain = _extended(scope, eqn, index, chains) if scope.late[index] else None
            if chain is None:
                ends |= {v: scope.maker[v] for v in variables(eqn.invars) if v in chains}
            else:
                chains[eqn.outvars[0]] = chain
        ends |= {v: scope.maker[v] for v in variables(scope.program.outvars) if v in chains}
        for v, index in ends.items():
            eqns = [scope.program.eqns[i] for i in sorted(chains[v].steps)]
            inside = {out for eqn in eqns for out in eqn.outvars} | {chains[v].cotangent}
            read = variables(v for eqn in eqns for v in eqn.invars)
            factors = [v for v in read if v not in inside]
            made_of = self.scopes.sources(scope, factors)
            sources = {t: n for t, n in made_of.items() if t in self._without}
            # A loss's own derivative is read where it is made: nothing would be kept for long.
            if made_of and v.aval.shape and chains[v].cotangent not in scope.constants:
                yield self._candidate(scope, index, chains[v], factors, sources)

    def _candidate(
        self,
        scope: Part,
        index: int,
        chain: _Chain,
        factors: Sequence[Variable],
        sources: Mapping[int, int],
    ) -> _Candidate:
        path = "/".join(visible(scope.names[index]))
        [result] = scope.program.eqns[index].outvars
        spec = self.recipe.residual(path)
        if spec is None or not size_of(result):
            reason = "the recipe says nothing of it" if spec is None else "its size is not known"
            return _Candidate(path, result, 0, sources, None, reason)
        size = math.prod(result.aval.shape) + 4 * math.prod(result.aval.shape[:-1])
        for home, there in self.homes.items():
            trips = self.scopes.leads(home, scope.path)
            given = trips and _expressed(scope, chain, factors, there)
            if not (trips and given):
                continue
            steps, found = given
            last = max(there[scope.values[v].token][1] for v in found)
            if last < 0:
                continue
            coefficient = Coefficient(
                next(self._numbers),
                spec,
                (*home, last),
                (*scope.path, index),
                tuple(scope.program.eqns[i] for i in sorted(steps)),
                tuple((v, there[scope.values[v].token][0]) for v in found),
                chain.cotangent,
                result,
            )
            return _Candidate(path, result, size * trips, sources, coefficient)
        reason = "the forward pass cannot hand it on, or does not make what it is made of"
        return _Candidate(path, result, size, sources, None, reason)


def _extended(
    scope: Part, eqn: Equation, index: int, chains: Mapping[Variable, _Chain]
) -> _Chain | None:
    """The chain that an equation of the backward pass continues; None if it continues none."""
    name, (result, *others) = eqn.primitive.name, eqn.outvars
    gradients = [v for v in eqn.invars if scope.is_gradient(v)]
    is_linear = {
        "mul": len(gradients) == 1,
        "div": gradients == [eqn.invars[0]],
        "select_n": not scope.is_gradient(eqn.invars[0])
        and all(scope.is_gradient(v) or scope.is_zero(v) for v in eqn.invars[1:]),
        **dict.fromkeys(UNCHANGED, True),
        **dict.fromkeys(("add", "add_any", "sub"), len(gradients) == len(eqn.invars)),
    }.get(name, False)
    if others or not is_linear or not gradients:
        return None
    parents = [chains.get(v, _Chain(v)) for v in gradients]
    alike = {p.cotangent for p in parents}
    kinds = [v.aval for v in (*gradients, result, *alike)]
    if len(alike) > 1 or any(k.shape != result.aval.shape for k in kinds):
        return None
    if not all(_compat.is_float(k.dtype) for k in kinds):
        return None
    return _Chain(alike.pop(), frozenset([index]).union(*(p.steps for p in parents)))


def _expressed(
    scope: Part,
    chain: _Chain,
    factors: Sequence[Variable],
    there: Mapping[int, tuple[Variable, int]],
) -> tuple[set[int], list[Variable]] | None:
    """The steps from values of the forward pass to a coefficient, and these values."""
    steps, given = set(chain.steps), dict[Variable, None]()
    todo = list(factors)
    while todo:
        v = todo.pop()
        if v in given:
            continue
        eqn = scope.late_maker(v)
        home = there.get(scope.values[v].token)
        if home is not None and home[0].aval.shape == v.aval.shape:
            given[v] = None
        elif eqn is None or scope.is_gradient(v) or eqn.primitive.name not in _AGAIN:
            return None
        else:
            steps.add(scope.maker[v])
            todo += variables(eqn.invars)
    return steps, list(given)


def _reads(chosen: Iterable[_Candidate]) -> dict[Path, Variable]:
    found = [c.coefficient for c in chosen if c.coefficient is not None]
    return {c.read: c.cotangent for c in found}


_Group = tuple[list[_Candidate], dict[int, int]]  # with what is kept no longer


def _groups(chosen: Iterable[_Candidate], needed: Mapping[int, int]) -> list[_Group]:
    """Candidates that replace the same values stand together."""
    groups: list[_Group] = []
    for c in chosen:
        freed = {t: n for t, n in c.sources.items() if t not in needed}
        same = [g for g in groups if g[1].keys() & freed.keys()]
        groups = [g for g in groups if g not in same]
        members = [c, *(m for g in same for m in g[0])]
        groups.append((members, freed | {t: n for g in same for t, n in g[1].items()}))
    return groups


def _is_less(group: _Group) -> bool:
    """True if codes are smaller than what they replace."""
    return sum(c.size for c in group[0]) < sum(group[1].values())


def _reported(reasons: Mapping[_Candidate, str]) -> Iterator[Residual]:
    """The outcome for all candidates, which are kept in floats for these reasons."""
    told: set[int] = set()
    for c, reason in reasons.items():
        before = sum(n for t, n in c.sources.items() if t not in told)
        told |= c.sources.keys()
        if c.coefficient is not None and not reason:
            after, status, format = c.size, "stochastic", c.coefficient.spec.format
        elif before:
            after, status, format = before, "kept", ""
        else:
            continue
        yield Residual(
            path=c.path,
            shape=tuple(c.like.aval.shape),
            dtype=str(c.like.aval.dtype),
            format=format,
            before=before,
            after=after,
            status=status,
            reason=reason,
        )
