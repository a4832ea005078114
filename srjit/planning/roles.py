"""The role of each product of a program: fprop, dgrad or wgrad, and the kinds of its operands.

An explicit tag wins. The phase is on the typed name stack. Which backward product is the gradient
of which forward one, ``matching.py`` says; the forward one's operands say whether this is the
gradient of a weight (a wgrad) or of the other operand (a dgrad). Where the residual was changed on
the way, the three shapes of the product have to be those of one forward product, of the same source
line if there is one. What the backward pass computes again is forward. A gradient of a gradient,
and what forward mode adds to one, is a second derivative. Outside of what was differentiated,
products of gradients or of parameters alone are taken for an optimizer's.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import re
from typing import Any

from srjit.numerics.symbolic import in_numbers, is_known, stand_ins, with_ones
from srjit.planning.matching import DOUBTFUL, Match, matched
from srjit.planning.multiples import multiplies, weighs
from srjit.planning.provenance import Provenance
from srjit.planning.site import Site
from srjit.products.dot import DotProduct
from srjit.products.kinds import product_of, rules_of
from srjit.products.product import Product
from srjit.program.values import BACKWARD, CONSTANT, DATA, PARAMETER, Occurrence, Value, visible

KEEP_SCOPE = "srjit.keep_high_precision"
KEEP_REASON = "srjit.keep_high_precision"
ROLE_SCOPE = "srjit.role"
_ROLE = re.compile(rf"{re.escape(ROLE_SCOPE)}=(fprop|dgrad|wgrad)(?:;gradient=(\d))?$")
_FIRST_NOISE = {"forward": 0, "recompute": 1 << 29, "backward": 1 << 30}
_PARAMETER = frozenset({PARAMETER})
_UNKNOWN = ("unknown", "unknown", "unknown")
_SECOND = "the derivative of a gradient: a second derivative"
_TANGENT = (
    "a derivative of forward mode, around a gradient: a second derivative, or on the way to one"
)
_SUM = "a multiple, a weighed sum or an inner product: no product of matrices"
_DOUBTFUL = "it may be a gradient, or lead to one that no product explains: say srjit.role(...)"
_ALONE = "no operand of this backward product was read by a forward one: say srjit.role(...)"
_DEAD = "the gradient of a product that is dead code"
_OF_GRADIENTS = (
    "it reads gradients, and no gradient of it was found, as of the products of an update"
)
_OF_PARAMETERS = (
    "it reads parameters alone, and no gradient of it was found, as of the products of an update"
)

CONSTANT_REASON = (
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
            lhs_shape=in_numbers(lhs.shape),
            rhs_shape=in_numbers(rhs.shape),
            out_shape=in_numbers(out.shape),
            dtype=str(out.dtype),
            flops=with_ones(rules_of(eqn).flops(eqn)),
            trips=math.prod(n for n, _ in o.scope.loops if n and is_known(n)),
            location=o.location,
            why=self.why,
        )


def role_scope(role: str, gradient: int | None) -> str:
    """The scope name that carries an explicit role."""
    return f"{ROLE_SCOPE}={role}" + ("" if gradient is None else f";gradient={gradient}")


def classify(provenance: Provenance) -> list[Classified]:
    """Roles of all products, in execution order."""
    roles = _Roles(provenance)
    # Where nothing else is data, captured arrays are.
    has_data = any(DATA in o.lhs.labels | o.rhs.labels for o in roles.forward)
    ordinals = {phase: itertools.count(first) for phase, first in _FIRST_NOISE.items()}
    return [
        dataclasses.replace(
            c,
            number=i,
            noise=next(ordinals[c.phase]),
            path="/".join(visible(c.occurrence.scope.names)),
            keep=_reason_to_keep(c, has_data),
        )
        for i, c in enumerate(map(roles.of, provenance.occurrences))
    ]


def _reason_to_keep(c: Classified, has_data: bool) -> str:
    if KEEP_SCOPE in c.occurrence.scope.names:
        return KEEP_REASON
    out = c.occurrence.eqn.outvars[0].aval.shape
    # A gradient is kept as its product is, wherever that is differentiated.
    is_sum = weighs(c.occurrence) or multiplies(c.partner or c.occurrence)
    if is_sum or (c.role == "unknown" and not out):
        return c.keep or _SUM
    held = [value.sources == frozenset({CONSTANT}) for value in c.occurrence.operands]
    kinds = c.lhs_kind, c.rhs_kind
    if has_data and any(h and kind != "gradient" for h, kind in zip(held, kinds, strict=True)):
        return c.keep or CONSTANT_REASON
    return c.keep


class _Roles:
    """Tells roles, once it is known which product is the gradient of which."""

    def __init__(self, provenance: Provenance) -> None:
        occurrences, self.provenance = provenance.occurrences, provenance
        self.matching = matched(provenance)
        self.differentiated = any(o.scope.phase == "backward" for o in occurrences)
        self.forward = [o for o in occurrences if o.scope.phase != "backward"]
        matches = self.matching.gradients
        self._cotangents = {  # origins of what gradients read beside their residuals
            o.operands[1 - matches[id(o)].residual].origin for o in occurrences if id(o) in matches
        }
        # By source line, or anywhere, and shapes: the first of each side and kinds of operand.
        self._alike: dict[Any, dict[Any, Occurrence]] = collections.defaultdict(dict)
        for o in self.forward:
            for side in (0, 1):
                shared, other, out = _shapes(o, side)
                for place in (o.location, None):
                    first = self._alike[place, shared, out, other]
                    first.setdefault((side, forward_kinds(o)), o)

    def of(self, o: Occurrence) -> Classified:
        """The role of one product."""
        phase, tagged = o.scope.phase, _tag(o)
        if tagged is not None:
            return Classified(o, *tagged, "srjit.role", phase=phase)
        if id(o) in self.matching.tangents:
            return Classified(o, *_UNKNOWN, _TANGENT, phase=phase)
        if DOUBTFUL in o.scope.transforms:
            return Classified(o, *_UNKNOWN, _DOUBTFUL, phase=phase)
        if phase != "backward":
            if why := self._may_update(o):
                return Classified(o, *_UNKNOWN, why, keep=why, phase=phase)
            return Classified(o, "fprop", *forward_kinds(o), "forward", phase=phase)
        again = self.matching.computed_again(o)
        if again is not None:
            why = "computed again in the backward pass"
            kinds = forward_kinds(o)
            return Classified(o, "fprop", *kinds, why, again, phase="recompute")
        kinds = self.matching.orphans.get(id(o))
        match = self.matching.gradients.get(id(o)) or (None if kinds else self._by_shape(o))
        is_second = match.level > 1 if match else o.derivatives.count("transpose") > 1
        if match is None and kinds:
            role = "dgrad" if "weight" in kinds else "wgrad"
            return Classified(o, role, *kinds, _DEAD, phase=phase)
        if is_second or match is None:
            return Classified(o, *_UNKNOWN, _SECOND if is_second else _ALONE, phase=phase)
        role, kinds = _role(match)
        return Classified(o, role, *kinds, match.why, match.partner, phase=phase)

    def _may_update(self, o: Occurrence) -> str:
        """Why a product that is not of the backward pass may be an optimizer's, or nothing.

        One with a weight is none if it leads to no result that is shaped as a parameter.
        """
        if o.derivatives or not self.differentiated:
            return ""
        sources = [v.sources for v in o.operands]
        if _PARAMETER in sources and o.out.token not in self._leading:
            return ""
        if any(BACKWARD in v.labels for v in o.operands):
            return _OF_GRADIENTS
        return _OF_PARAMETERS if all(PARAMETER in s and DATA not in s for s in sources) else ""

    @functools.cached_property
    def _leading(self) -> set[int]:
        """Tokens of what leads to results that are shaped as parameters."""
        shapes = self.provenance.parameter_shapes - {()}
        todo = [token for token, shape in self.provenance.results if shape in shapes]
        seen: set[int] = set()
        while todo:
            token = todo.pop()
            if token not in seen and token in self.provenance.graph.made:
                todo += self.provenance.graph.made[token].operands
            seen.add(token)
        return seen

    def _by_shape(self, o: Occurrence) -> Match | None:
        """The match of a product whose residual was changed on the way, if shapes leave one."""
        is_second = o.derivatives.count("transpose") > 1
        may_be = list(map(self.matching.may_be_gradient, o.operands))
        read = [v.origin in self._cotangents for v in o.operands]
        if sum(read) == 1:  # the other one is the residual, though computed again
            may_be = read
        if is_second or weighs(o) or not any(may_be):
            return None
        for where, place in (("this source line", o.location), ("this program", None)):
            why = f"its shapes are those of a forward product of {where}"
            found = [
                Match(p, side, residual, why)
                for residual in (1, 0)
                if may_be[1 - residual]
                for (side, kinds), p in self._alike[place, *_shapes(o, residual)].items()
                if (kinds[side] == "weight") == (_rank(o.operands[residual]) > 0)
            ]
            if len({_role(m) for m in found}) == 1:
                return found[0]
        return None


def _shapes(o: Occurrence, side: int) -> tuple[tuple[int, ...], ...]:
    """The shapes of one operand, of the other, and of the result."""
    values = (o.eqn.invars[side], o.eqn.invars[1 - side], o.eqn.outvars[0])
    return tuple(stand_ins(v.aval.shape) for v in values)


def _role(match: Match) -> tuple[str, tuple[str, str]]:
    """The role of a gradient, and its kinds of operand."""
    kinds = forward_kinds(match.partner)
    role = "wgrad" if kinds[1 - match.side] == "weight" else "dgrad"
    kind = kinds[match.side]
    return role, (kind, "gradient") if match.residual == 0 else ("gradient", kind)


def forward_kinds(o: Occurrence) -> tuple[str, str]:
    """A weight is what comes only from parameters, or, without any, only from captured arrays."""
    left, right = map(_rank, o.operands)
    if left == right == 0:
        return "activation", "activation"
    return ("weight", "activation") if left > right else ("activation", "weight")


def _rank(value: Value) -> int:
    if value.sources == _PARAMETER:
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
