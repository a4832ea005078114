"""Roles that a recipe or a pass states for sites, by path or by number."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable, Sequence

from srjit.planning.roles import Classified, forward_kinds
from srjit.recipes.rule import computed

WHY = "stated"


def with_stated(
    classified: Sequence[Classified], statements: Iterable[tuple[str, str]]
) -> tuple[list[Classified], set[int]]:
    """The products, with the roles that somebody states for them.

    Args:
      classified: all products of a program.
      statements: each a site, as a glob over paths, or lines of code where there are
        none, or ``#`` and its number, and what it computes,
        as ``computed`` reads it; of several about one site the first counts.

    Returns:
      the products, and positions of the statements that are about any.
    """
    statements, used, found = list(statements), set[int](), list[Classified]()
    for c in classified:
        for i, (site, text) in enumerate(statements):
            name = c.path or c.occurrence.location
            if site == f"#{c.number}" or fnmatch.fnmatchcase(name, site):
                used.add(i)
                found.append(_with_role(c, *computed(text)))
                break
        else:
            found.append(c)
    return found, used


def _with_role(c: Classified, role: str, gradient: int | None) -> Classified:
    if gradient is None:
        kinds = forward_kinds(c.occurrence)
    else:
        other = "weight" if role == "dgrad" else "activation"
        kinds = ("gradient", other) if gradient == 0 else (other, "gradient")
    lhs, rhs = kinds
    return dataclasses.replace(c, role=role, lhs_kind=lhs, rhs_kind=rhs, why=WHY)
