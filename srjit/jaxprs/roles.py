"""What each product of a program computes: fprop, dgrad or wgrad, and of which kinds of operand.

Where differentiation happened inside the function, roles are inferred: (1) an explicit tag wins;
(2) the phase is on the typed name stack; (3) the residual of a backward product is the operand that
a forward product also read; (4) a residual that comes only from parameters makes a dgrad, else the
residual's forward partner decides: a weight makes a wgrad, an activation the dgrad of attention;
(5) else the forward product of the same source location, then the shape of a weight, decide.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Literal

from srjit.jaxprs.provenance import CAPTURED, PARAMETER, Occurrence, Provenance, Value

Phase = Literal["forward", "recompute", "backward"]
KEEP_SCOPE = "srjit.keep_high_precision"
ROLE_SCOPE = "srjit.role"
_ROLE = re.compile(rf"{re.escape(ROLE_SCOPE)}=(fprop|dgrad|wgrad)(?:;gradient=(\d))?$")


@dataclasses.dataclass(frozen=True)
class Classified:
    """A product with its role.

    Attributes:
      occurrence: where it stands.
      phase: of the training step.
      role: ``fprop``, ``dgrad``, ``wgrad`` or ``unknown``.
      lhs_kind, rhs_kind: ``activation``, ``weight``, ``gradient`` or ``unknown``.
      why: how the role was found, or why it could not be.
      partner: for a backward product, the forward product whose gradient it is.
    """

    occurrence: Occurrence
    phase: Phase
    role: str
    lhs_kind: str
    rhs_kind: str
    why: str
    partner: Occurrence | None = None


def role_scope(role: str, gradient: int | None) -> str:
    """The scope name that carries an explicit role."""
    return f"{ROLE_SCOPE}={role}" + ("" if gradient is None else f";gradient={gradient}")


def phase_of(occurrence: Occurrence) -> Phase:
    """The phase that the typed name stack tells."""
    if "transpose" not in occurrence.transforms:
        return "forward"
    return "recompute" if "rematted_computation" in occurrence.transforms + occurrence.scopes else (
        "backward"
    )


def classify(provenance: Provenance) -> list[Classified]:
    """Roles of all products, in execution order."""
    occurrences = provenance.occurrences
    forward = [o for o in occurrences if phase_of(o) != "backward"]
    readers: dict[int, list[tuple[Value, Occurrence]]] = collections.defaultdict(list)
    for o in forward:
        readers[o.lhs.origin].append((o.rhs, o))
        readers[o.rhs.origin].append((o.lhs, o))
    by_location = {o.location: o for o in reversed(forward) if o.location}
    weight_shapes = {
        tuple(sorted(v.aval.shape))
        for o in forward
        for v, kind in zip(o.eqn.invars, _forward_kinds(o), strict=False)
        if kind == "weight"
    }
    return [_classify_one(o, readers, by_location, weight_shapes) for o in occurrences]


def _classify_one(
    o: Occurrence,
    readers: dict[int, list[tuple[Value, Occurrence]]],
    by_location: dict[str, Occurrence],
    weight_shapes: set[tuple[int, ...]],
) -> Classified:
    phase = phase_of(o)
    tagged = _tag(o)
    if tagged is not None:
        return Classified(o, phase, *tagged, "srjit.role")
    if _derivative_order(o) > 1:
        return Classified(o, phase, "unknown", "unknown", "unknown", "second derivative")
    if phase != "backward":
        return Classified(o, phase, "fprop", *_forward_kinds(o), "forward")
    # AD puts the cotangent on the left of what it makes, so the residual is looked for on the right.
    for residual, on_left in ((o.rhs, False), (o.lhs, True)):
        if residual.origin not in readers:
            continue
        partners = readers[residual.origin]
        same_line = [p for p in partners if p[1].location == o.location]
        by_weight = [p for p in same_line or partners if _is_weight(p[0])]
        if _is_weight(residual):
            partner = (same_line or partners)[0][1]
            return _backward(o, "dgrad", "weight", on_left, "residual is a weight", partner)
        if by_weight:
            why, partner = "residual's partner is a weight", by_weight[0][1]
            return _backward(o, "wgrad", "activation", on_left, why, partner)
        why, partner = "residual's partner is an activation", (same_line or partners)[0][1]
        return _backward(o, "dgrad", "activation", on_left, why, partner)
    partner = by_location.get(o.location)
    if partner is not None:
        why = "same source line as a forward product"
        if "weight" not in _forward_kinds(partner):
            return _backward(o, "dgrad", "activation", False, why, partner)
        if _is_weight(o.rhs) or _is_weight(o.lhs):
            return _backward(o, "dgrad", "weight", _is_weight(o.lhs), why, partner)
        shapes = {tuple(sorted(v.aval.shape)) for v in partner.eqn.invars[:2]}
        if tuple(sorted(o.eqn.outvars[0].aval.shape)) in shapes & weight_shapes:
            return _backward(o, "wgrad", "activation", False, why, partner)
    return Classified(
        o, phase, "unknown", "unknown", "unknown",
        "no operand of this backward product was read by a forward one: say srjit.role(...)",
    )  # fmt: skip


def _backward(
    o: Occurrence,
    role: str,
    kind: str,
    residual_left: bool,
    why: str,
    partner: Occurrence,
) -> Classified:
    kinds = (kind, "gradient") if residual_left else ("gradient", kind)
    return Classified(o, "backward", role, *kinds, why, partner)


def _forward_kinds(o: Occurrence) -> tuple[str, str]:
    """A weight is what comes only from parameters, or, beside data, only from captured arrays."""
    left, right = _rank(o.lhs), _rank(o.rhs)
    if left == right == 0:
        return "activation", "activation"
    return ("weight", "activation") if left > right else ("activation", "weight")


def _rank(value: Value) -> int:
    if value.labels == {PARAMETER}:
        return 2
    return 1 if value.labels and value.labels <= {PARAMETER, CAPTURED} else 0


def _is_weight(value: Value) -> bool:
    return _rank(value) > 0


def _derivative_order(o: Occurrence) -> int:
    return max(o.transforms.count("transpose"), o.transforms.count("jvp"))


def _tag(o: Occurrence) -> tuple[str, str, str] | None:
    match = next((m for s in reversed(o.scopes) if (m := _ROLE.match(s))), None)
    if match is None:
        return None
    role, gradient = match.groups()
    backward_role = role in ("dgrad", "wgrad")
    if backward_role and gradient is not None:
        other = "weight" if role == "dgrad" else "activation"
        return (role, "gradient", other) if gradient == "0" else (role, other, "gradient")
    if role == "fprop" and phase_of(o) != "backward":
        return role, *_forward_kinds(o)
    return None
