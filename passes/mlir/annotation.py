"""``srjit.sites``: what the passes tell each other about a multiplication.

An operation has one entry for each time that calls from @main reach it, in execution order.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from srjit._mlir import ir
from srjit.passes.driver.registry import PassError
from srjit.passes.mlir import attributes
from srjit.program.stablehlo.operations import inside as operations
from srjit.program.stablehlo.operations import text
from srjit.program.stablehlo.program import read_equation

if TYPE_CHECKING:
    from srjit.planning.provenance import Provenance
    from srjit.planning.roles import Classified
    from srjit.program.values import Occurrence

PREFIX = "srjit."  # of all that is ours: functions, composites, attributes
SITES = "srjit.sites"
REPORT = "srjit.report"
# What is true of an operation's results, whatever makes them.
MOVED = (SITES, "sdy.sharding", "mhlo.sharding")
PARAMETERS = "srjit.parameters"
KEY = "srjit.key"
STATE = "srjit.state"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotation:
    """The findings of ``srjit-annotate-matmuls`` about a multiplication.

    Attributes:
      number: ordinal in execution order.
      noise: ordinal that its noise comes from.
      path: name-scope path, for people.
      role, lhs, rhs: what it computes, of which kinds of operand.
      phase: ``forward``, ``recompute`` or ``backward``.
      why: how the role was found.
      partner: number of the forward multiplication whose gradient it is.
      keep: a reason to leave it in high precision, whatever a recipe says.
    """

    number: int
    noise: int
    path: str = ""
    role: str
    phase: str = "forward"
    lhs: str
    rhs: str
    why: str = ""
    partner: int | None = None
    keep: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Taken:
    """``srjit.parameters``, on an annotated module: the parameters that roles were found with.

    Attributes:
      inputs: numbers of @main's arguments.
      note: for the report; or empty.
      constants: numbers of those that are arrays which the program captures.
    """

    inputs: tuple[int, ...] = ()
    note: str = ""
    constants: tuple[int, ...] = ()


def taken_of(module: Any) -> Taken:
    """The parameters of an annotated module.

    Raises:
      PassError: they are not what srjit writes.
    """
    try:
        return attributes.decode(Taken, module.attributes[PARAMETERS])
    except ValueError as error:
        raise PassError(None, f"malformed {PARAMETERS}: {error}") from None


def annotate(classified: Sequence[Classified]) -> None:
    """Writes what is known about multiplications onto their operations."""
    numbers = {id(c.occurrence): c.number for c in classified}
    found: dict[Any, list[Annotation]] = collections.defaultdict(list)
    for c in classified:
        partner = numbers.get(id(c.partner)) if c.partner else None
        entry = Annotation(lhs=c.lhs_kind, rhs=c.rhs_kind, partner=partner, **_alike(c))
        found[read_equation(c.occurrence.eqn).op].append(entry)
    for op, entries in found.items():
        write(op, entries)


def classified(provenance: Provenance) -> list[Classified]:
    """The multiplications of an annotated program with the roles that are written on them.

    Raises:
      PassError: some are not annotated, or not for as many calls as there are.
    """
    from srjit.planning.roles import Classified

    reached: dict[Any, list[Occurrence]] = collections.defaultdict(list)
    for o in provenance.occurrences:
        reached[read_equation(o.eqn).op].append(o)
    entries: dict[int, Annotation] = {}
    for op, occurrences in reached.items():
        if SITES not in op.attributes:
            raise PassError(op, "not annotated: run srjit-annotate-matmuls before this pass")
        found = read(op, Annotation)
        if len(found) != len(occurrences):
            raise PassError(
                op,
                f"annotated for {len(found)} calls, and reached by {len(occurrences)}: run "
                "srjit-annotate-matmuls after passes that inline or clone functions",
            )
        entries |= {id(o): entry for o, entry in zip(occurrences, found, strict=True)}
    forward = {entries[id(o)].number: o for o in provenance.occurrences}
    return [
        Classified(
            occurrence=o,
            lhs_kind=entry.lhs,
            rhs_kind=entry.rhs,
            partner=None if entry.partner is None else forward.get(entry.partner),
            **_alike(entry),
        )
        for o in provenance.occurrences
        for entry in [entries[id(o)]]
    ]


def _alike(source: Annotation | Classified) -> dict[str, Any]:
    """The fields that annotations and classified products have in common."""
    names = ("number", "noise", "path", "role", "phase", "why", "keep")
    return {name: getattr(source, name) for name in names}


def write(op: Any, entries: Sequence[Any]) -> None:
    """Sets the entries of one operation."""
    op.attributes[SITES] = ir.ArrayAttr.get([attributes.encode(e) for e in entries])


def move(old: Any, new: Any) -> None:
    """Says of the results of a new operation what was said of those of an old one."""
    for name in MOVED:
        if name in old.attributes and name not in new.attributes:
            new.attributes[name] = old.attributes[name]


def erase(function: Any) -> None:
    """Takes all entries off the operations of a function."""
    for op in operations(function):
        if SITES in op.attributes:
            del op.attributes[SITES]


def read(op: Any, cls: type[T]) -> list[T]:
    """The entries of one operation.

    Raises:
      PassError: they are not what srjit writes.
    """
    try:
        return [attributes.decode(cls, entry) for entry in ir.ArrayAttr(op.attributes[SITES])]
    except ValueError as error:
        raise PassError(op, f"malformed {SITES}: {error}") from None


def is_composite(op: Any, prefix: str = PREFIX) -> bool:
    """True if an operation is a composite of ours."""
    return op.name == "stablehlo.composite" and text(op, "name").startswith(prefix)
