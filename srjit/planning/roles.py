"""The role of each product of a program: fprop, dgrad or wgrad, and the kinds of its operands.

Where differentiation happened inside the function, roles are inferred: (1) an explicit tag wins;
(2) the phase is on the typed name stack; (3) the residual of a backward product is the operand that
a forward product also read; (4) that forward product says which gradient this is: of a weight (a
wgrad) or of the other operand (a dgrad); (5) where the residual was changed on the way, the three
shapes of the product have to be those of one forward product, of the same source line if there is
one. A backward product that a forward one is too, or that no gradient reaches, is a recomputation
by hand. Outside of what was differentiated, products of gradients or of parameters alone belong to
an optimizer.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterator

from srjit.planning.provenance import Provenance
from srjit.planning.site import Site
from srjit.products.dot import DotProduct
from srjit.products.kinds import product_of, rules_of
from srjit.products.product import Product
from srjit.program.protocols import Variable
from srjit.program.values import BACKWARD, CONSTANT, DATA, PARAMETER, Occurrence, Value, visible

KEEP_SCOPE = "srjit.keep_high_precision"
KEEP_REASON = "srjit.keep_high_precision"
ROLE_SCOPE = "srjit.role"
_ROLE = re.compile(rf"{re.escape(ROLE_SCOPE)}=(fprop|dgrad|wgrad)(?:;gradient=(\d))?$")
_FIRST_NOISE = {"forward": 0, "recompute": 1 << 29, "backward": 1 << 30}
_UNKNOWN = ("unknown", "unknown", "unknown")
_SECOND = (
    "under two derivatives: a second derivative, or a custom_jvp or custom_vjp rule that "
    "differentiates by itself: say srjit.role(...)"
)
_UPDATE = "outside the differentiated function, of gradients or parameters alone: an update's"

_CONSTANT = (
    "an array that the function captures is a constant beside its parameters: make it an argument "
    "if it holds weights"
)


@dataclasses.dataclass(frozen=True)
class Classified:
    """A product with its role.

    Attributes:
      occurrence: where it stands.
      role: ``fprop``, ``dgrad``, ``wgrad`` or ``unknown``.
      lhs_kind, rhs_kind: ``activation``, ``weight``, ``gradient`` or ``unknown``.
      why: how the role was found, or why it could not be.
      partner: for a backward product, the forward product whose gradient it is.
      keep: a reason to keep it in high precision, whatever a recipe says.
      number: ordinal in execution order.
      noise: ordinal that its noise comes from: forward, recomputed and backward products are
        counted apart, so that recomputation does not shift the others.
      path: name-scope path, for people.
      phase: ``forward``, ``recompute`` or ``backward``.
    """

    occurrence: Occurrence
    role: str
    lhs_kind: str
    rhs_kind: str
    why: str
    partner: Occurrence | None = None
    keep: str = ""
    number: int = 0
    noise: int = 0
    path: str = ""
    phase: str = "forward"

    @functools.cached_property
    def product(self) -> Product | None:
        """The product; None where srjit has no rule for its form."""
        product = product_of(self.occurrence.eqn)
        if isinstance(product, DotProduct) and self.occurrence.is_turned:
            return dataclasses.replace(product, is_turned=True)
        return product

    def gradient(self, side: int) -> Product | None:
        """The product that is the gradient of the operand on one side."""
        return self.product and self.product.transpose(side, self.occurrence.eqn.invars[side].aval)

    def token(self, side: int, provenance: Provenance) -> int:
        """The value of the operand on one side, as the product sees it."""
        o = self.occurrence
        token = o.operands[side].token
        if self.product is not None and self.product.masks(side):
            # Other codes than those of the same value unmasked.
            return provenance.derived("masked", token, *(v.token for v in o.extras))
        return token

    @functools.cached_property
    def site(self) -> Site:
        """The site, as a report describes it."""
        o, eqn = self.occurrence, self.occurrence.eqn
        (lhs, rhs), out = (v.aval for v in eqn.invars[:2]), eqn.outvars[0].aval
        return Site(
            number=self.number,
            path=self.path,
            role=self.role,
            phase=self.phase,
            op=eqn.primitive.name,
            lhs_kind=self.lhs_kind,
            rhs_kind=self.rhs_kind,
            lhs_shape=lhs.shape,
            rhs_shape=rhs.shape,
            out_shape=out.shape,
            dtype=str(out.dtype),
            flops=rules_of(eqn).flops(eqn),
            trips=math.prod(n for n, _ in o.scope.loops if n),
            location=o.location,
            why=self.why,
        )


def role_scope(role: str, gradient: int | None) -> str:
    """The scope name that carries an explicit role."""
    return f"{ROLE_SCOPE}={role}" + ("" if gradient is None else f";gradient={gradient}")


def classify(provenance: Provenance) -> list[Classified]:
    """Roles of all products, in execution order."""
    occurrences = provenance.occurrences
    forward = [o for o in occurrences if o.scope.phase != "backward"]
    differentiated = len(forward) < len(occurrences)
    twice = any(_derivatives(o)[:1] == ["jvp"] != _derivatives(o) for o in occurrences)
    partners = _Partners(forward, provenance)
    classified = [_classify_one(o, partners, differentiated, twice) for o in occurrences]
    # Where nothing else is data, captured arrays are.
    has_data = any(DATA in o.lhs.labels | o.rhs.labels for o in forward)
    ordinals = {phase: itertools.count(first) for phase, first in _FIRST_NOISE.items()}
    return [
        dataclasses.replace(
            c,
            number=i,
            noise=next(ordinals[c.phase]),
            path="/".join(visible(c.occurrence.scope.names)),
            keep=_reason_to_keep(c, has_data),
        )
        for i, c in enumerate(classified)
    ]


def _reason_to_keep(c: Classified, has_data: bool) -> str:
    if KEEP_SCOPE in c.occurrence.scope.names:
        return KEEP_REASON
    operands = c.occurrence.operands
    if has_data and any(value.sources == frozenset({CONSTANT}) for value in operands):
        return c.keep or _CONSTANT
    return c.keep


def _derivatives(o: Occurrence) -> list[str]:
    """The differentiating transformations around a product, outermost first."""
    return [t for t in o.scope.transforms if t in ("jvp", "transpose")]


def _is_second_derivative(o: Occurrence, twice: bool) -> bool:
    """Whether it may be one.

    Where a derivative is differentiated, products stand under a jvp and another derivative inside
    (``twice``). Elsewhere a second one is that of a rule which differentiates by itself.
    """
    transforms = _derivatives(o)
    return twice and max(transforms.count("transpose"), transforms.count("jvp")) > 1


def _classify_one(
    o: Occurrence, partners: _Partners, differentiated: bool, twice: bool
) -> Classified:
    phase = o.scope.phase
    tagged = _tag(o)
    if tagged is not None:
        return Classified(o, *tagged, "srjit.role", phase=phase)
    if _is_second_derivative(o, twice):
        return Classified(o, *_UNKNOWN, _SECOND, phase=phase)
    if phase != "backward":
        labels = o.lhs.labels | o.rhs.labels
        is_update = BACKWARD in labels or DATA not in labels
        if differentiated and not _derivatives(o) and is_update:
            return Classified(o, *_UNKNOWN, _UPDATE, keep=_UPDATE, phase=phase)
        return Classified(o, "fprop", *forward_kinds(o), "forward", phase=phase)
    if (again := partners.recomputation(o)) is not None:
        return again
    if (match := partners.of(o)) is not None:
        return Classified(o, match.role, *match.kinds, match.why, match.partner, phase=phase)
    why = "no operand of this backward product was read by a forward one: say srjit.role(...)"
    return partners.orphan(o) or Classified(o, *_UNKNOWN, why, phase=phase)


@dataclasses.dataclass(frozen=True)
class _Match:
    """A forward product whose gradient a backward one may be.

    Attributes:
      partner: the forward product.
      side: which of its operands is the residual.
      residual: which operand of the backward product that is.
      why: how it was found.
    """

    partner: Occurrence
    side: int
    residual: int
    why: str

    @property
    def role(self) -> str:
        return "wgrad" if forward_kinds(self.partner)[1 - self.side] == "weight" else "dgrad"

    @property
    def kinds(self) -> tuple[str, str]:
        kind = forward_kinds(self.partner)[self.side]
        return (kind, "gradient") if self.residual == 0 else ("gradient", kind)

    def fits(self, o: Occurrence) -> bool:
        """Whether the shapes of ``o`` are those of this gradient, up to the order of dimensions."""
        given, made = o.eqn.invars, self.partner.eqn.invars
        pairs = (
            (given[self.residual], made[self.side]),
            (given[1 - self.residual], self.partner.eqn.outvars[0]),
            (o.eqn.outvars[0], made[1 - self.side]),
        )
        return all(_extents(a) == _extents(b) for a, b in pairs)


class _Partners:
    def __init__(self, forward: list[Occurrence], provenance: Provenance) -> None:
        shapes = provenance.parameter_shapes
        self.parameters = {tuple(sorted(shape)) for shape in shapes if len(shape) > 1}
        self.data = {origin for origin, label in provenance.given.items() if label == DATA}
        self.readers: dict[int, list[tuple[Occurrence, int]]] = collections.defaultdict(list)
        self.at_location: dict[str, list[tuple[Occurrence, int]]] = collections.defaultdict(list)
        self.everywhere: list[tuple[Occurrence, int]] = []
        self.made: dict[int, Occurrence] = {}
        for o in forward:
            self._add(o)

    def _add(self, o: Occurrence) -> None:
        self.made.setdefault(o.out.token, o)
        for side, value in enumerate(o.operands):
            self.readers[value.origin].append((o, side))
            self.at_location[o.location].append((o, side))
            self.everywhere.append((o, side))

    def _residuals(self, o: Occurrence) -> Iterator[int]:
        """Yields the possible residuals: if the backward pass computed one operand, the other."""
        computed = [BACKWARD in v.labels or self._is_cotangent(v) for v in o.operands]
        for residual in (1, 0):
            if not computed[residual] or all(computed):
                yield residual

    def _is_cotangent(self, value: Value) -> bool:
        """Whether it is an argument that no forward product reads."""
        return value.origin in self.data and value.origin not in self.readers

    def _may_be_gradient(self, value: Value) -> bool:
        """Whether the backward pass made it, or it is a constant (of a sum) or a cotangent."""
        return BACKWARD in value.labels or not value.sources or self._is_cotangent(value)

    def recomputation(self, o: Occurrence) -> Classified | None:
        """The role of a backward product that is a forward one, in a rule written by hand."""
        original = self.made.get(o.out.token)
        if original is None:
            if _derivatives(o).count("transpose") > 1 or any(
                map(self._may_be_gradient, o.operands)
            ):
                return None
            both = {v.origin for v in o.operands}
            readers = (p for p, _ in self.readers.get(o.lhs.origin, ()))
            original = next((p for p in readers if {v.origin for v in p.operands} == both), None)
            if original is None and self.of(o) is not None:
                return None
        self._add(o)
        why = "computed again in the backward pass"
        return Classified(o, "fprop", *forward_kinds(o), why, original, phase="recompute")

    def of(self, o: Occurrence) -> _Match | None:
        """The match of a backward product, or None."""
        # The cotangent may be an argument of the function; that it is one, shapes have to tell.
        given = not any(map(self._may_be_gradient, o.operands))
        # AD puts the cotangent on the left of what it makes: look for the residual on the right.
        for residual in (1, 0):
            why = "the residual is read by this forward product"
            readers = self.readers.get(o.operands[residual].origin, ())
            found = [_Match(p, side, residual, why) for p, side in readers]
            if given:
                found = [m for m in found if m.fits(o)]
            elif not self._may_be_gradient(o.operands[1 - residual]):
                continue
            if found:
                return min(found, key=lambda m: _distance(m, o))
        return None if given else self._by_shape(o)

    def orphan(self, o: Occurrence) -> Classified | None:
        """The role of a product whose forward product nobody needed, as in the grad of a sum.

        A product with one weight makes the gradient of an activation; one without, whose result has
        the shape of a parameter, makes that of the parameter.
        """
        if not any(map(self._may_be_gradient, o.operands)):
            return None
        weights = [_rank(v) > 0 for v in o.operands]
        if sum(weights) == 1:
            kinds = ("weight", "gradient") if weights[0] else ("gradient", "weight")
            why = "the gradient of a product that is dead code"
            return Classified(o, "dgrad", *kinds, why, phase="backward")
        residual = next(self._residuals(o), None)
        if (
            not any(weights)
            and residual is not None
            and tuple(_extents(o.eqn.outvars[0])) in (self.parameters)
        ):
            kinds = ("activation", "gradient") if residual == 0 else ("gradient", "activation")
            why = "it has the shape of a parameter"
            return Classified(o, "wgrad", *kinds, why, phase="backward")
        return None

    def _by_shape(self, o: Occurrence) -> _Match | None:
        for where, candidates in (
            ("this source line", self.at_location.get(o.location, [])),
            ("this program", self.everywhere),
        ):
            why = f"its shapes are those of a forward product of {where}"
            found = [
                m
                for residual in self._residuals(o)
                for p, side in candidates
                if (m := _Match(p, side, residual, why)).fits(o)
                and (m.kinds[residual] == "weight") == (_rank(o.operands[residual]) > 0)
            ]
            if len({(m.role, m.kinds) for m in found}) == 1:
                return found[0]
        return None


def _distance(match: _Match, o: Occurrence) -> tuple[bool, ...]:
    """Smallest for the most likely of several forward products that read one residual."""
    return (
        not match.fits(o),
        match.partner.location != o.location,
        "weight" not in forward_kinds(match.partner),
    )


def _extents(v: Variable) -> list[int]:
    return sorted(v.aval.shape)


def forward_kinds(o: Occurrence) -> tuple[str, str]:
    """A weight is what comes only from parameters, or, without any, only from captured arrays."""
    left, right = map(_rank, o.operands)
    if left == right == 0:
        return "activation", "activation"
    return ("weight", "activation") if left > right else ("activation", "weight")


def _rank(value: Value) -> int:
    if value.sources == frozenset({PARAMETER}):
        return 2
    if value.sources == frozenset({CONSTANT}):
        return 0
    return 1 if value.sources and DATA not in value.sources else 0


def _tag(o: Occurrence) -> tuple[str, str, str] | None:
    match = next((m for s in reversed(o.scope.names) if (m := _ROLE.match(s))), None)
    if match is None:
        return None
    role, gradient = match.groups()
    if gradient is not None:
        other = "weight" if role == "dgrad" else "activation"
        return (role, "gradient", other) if gradient == "0" else (role, other, "gradient")
    return (role, *forward_kinds(o)) if o.scope.phase != "backward" else None
