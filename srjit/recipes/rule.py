"""Rules: what happens to the operands of the sites that one matches."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any, Literal, get_args

from srjit.choices import unknown_name
from srjit.numerics.quantization import Quantization

Role = Literal["fprop", "dgrad", "wgrad"]
Kind = Literal["activation", "weight", "gradient"]
ROLES: tuple[Role, ...] = get_args(Role)
KINDS: tuple[Kind, ...] = get_args(Kind)
_OPERANDS = ("any", "weight", "activations")
# Which kinds meet in each product of a layer.
_KINDS_OF: dict[Role, tuple[Kind, Kind]] = {
    "fprop": ("activation", "weight"),
    "dgrad": ("gradient", "weight"),
    "wgrad": ("activation", "gradient"),
}


class RecipeError(ValueError):
    """A recipe that says something srjit cannot do; the message names the rule or the line.

    Attributes:
      where: the keys that lead to what is wrong, inside the rule or recipe.
    """

    def __init__(self, message: str, where: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.where = where


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operands:
    """The quantizations of one role's operands; None leaves an operand in high precision."""

    activation: Quantization | None = None
    weight: Quantization | None = None
    gradient: Quantization | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """A pattern of sites, and how their operands are quantized.

    Attributes:
      path: glob over the site's name-scope path (``*/attn/*``), or ``#`` and the site's number.
      op: glob over the operation (``dot_general``, ``conv_general_dilated``, ``ragged_dot*``).
      role: the one role that it matches, or ``*``.
      operands: ``weight`` matches products that involve a weight (its gradient too),
        ``activations`` those of two activations, as in attention, and their gradients.
      min_size: matches products whose smallest of (rows, columns, contraction) is at least this.
      computes: a role that srjit is to believe, whatever it finds: ``fprop``, or ``dgrad`` or
        ``wgrad`` with the operand that is the gradient (``wgrad:rhs``). Such a rule says nothing
        else; of several about a site the first counts, and the other rules see that role.
      keep: a reason; the site stays in high precision and the report gives the reason.
      fprop, dgrad, wgrad: what each role's operands become; None keeps that role in high precision.
    """

    path: str = "*"
    op: str = "*"
    role: Role | Literal["*"] = "*"
    operands: Literal["any", "weight", "activations"] = "any"
    min_size: int = 0
    computes: str = ""
    keep: str = ""
    fprop: Operands | None = None
    dgrad: Operands | None = None
    wgrad: Operands | None = None

    def __post_init__(self) -> None:
        check_types(self, ("path", "op", "role", "operands", "computes", "keep"), ("min_size",))
        for field, known in (("role", (*ROLES, "*")), ("operands", _OPERANDS)):
            if getattr(self, field) not in known:
                raise RecipeError(str(unknown_name(field, getattr(self, field), known)), (field,))
        if self.keep and (self.fprop or self.dgrad or self.wgrad):
            message = f"rule {self.path!r} both keeps sites and quantizes them: drop one"
            raise RecipeError(message, ("keep",))
        if self.computes:
            computed(self.computes)
            said = {f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}
            if not said <= {"path", "computes"}:
                message = f"rule {self.path!r} states a role: it has a path, and nothing else"
                raise RecipeError(message, ("computes",))
        for role in ROLES:
            if (operands := getattr(self, role)) is not None:
                self._check_operands(role, operands)

    def _check_operands(self, role: Role, operands: Operands) -> None:
        given = {k: q for k in KINDS if (q := getattr(operands, k)) is not None}
        for kind in given:
            if kind not in (*_KINDS_OF[role], "activation"):
                message = f"{role} multiplies {' and '.join(_KINDS_OF[role])}; it has no {kind}"
                raise RecipeError(f"rule {self.path!r}: {message}", (role, kind))
        turned = {q.rotation for q in given.values()}
        if any(turned) and not (len(turned) == 1 and len(given) > 1):
            message = (
                "a Hadamard transform has to be on both operands, or it does not cancel; "
                "that of scale_rounding='eden' is another than that of the rest"
            )
            raise RecipeError(f"rule {self.path!r}, {role}: {message}", (role,))

    def matches(self, path: str, number: int, op: str, role: str, weight: bool, size: int) -> bool:
        """True if this rule decides about a site."""
        return (
            not self.computes
            and (self.path == f"#{number}" or fnmatch.fnmatchcase(path, self.path))
            and fnmatch.fnmatchcase(op, self.op)
            and self.role in ("*", role)
            and self.operands in ("any", "weight" if weight else "activations")
            and size >= self.min_size
        )


def computed(text: str) -> tuple[Role, int | None]:
    """The role that a text states, and which operand is the gradient: 0, 1, or None of fprop.

    Raises:
      RecipeError: it states none.
    """
    role, _, side = text.partition(":")
    for known in ROLES:
        if role == known and (known == "fprop") == (not side) and side in ("", "lhs", "rhs"):
            return known, {"": None, "lhs": 0, "rhs": 1}[side]
    message = f"{text!r} states no role: write fprop, dgrad:lhs, dgrad:rhs, wgrad:lhs or wgrad:rhs"
    raise RecipeError(message, ("computes",))


def check_types(made: Any, strings: Sequence[str], counts: Sequence[str]) -> None:
    """Raises RecipeError unless some fields are strings and others numbers from 0 on."""
    for field in strings:
        if not isinstance(value := getattr(made, field), str):
            raise RecipeError(f"{field} is a string, got {value!r}", (field,))
    for field in counts:
        value = getattr(made, field)
        if type(value) is not int or value < 0:
            raise RecipeError(f"{field} is a number from 0 on, got {value!r}", (field,))
