"""Notes of a plan: what a user should know beside the sites."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from srjit.planning.plan import Settings
from srjit.planning.provenance import Provenance
from srjit.planning.roles import Classified
from srjit.planning.site import SitePlan
from srjit.program.values import DATA, visible
from srjit.recipes import BUILTIN, Recipe
from srjit.targets import Target


def notes_of(
    provenance: Provenance,
    classified: Sequence[Classified],
    plans: Sequence[SitePlan],
    recipe: Recipe,
    used: set[int],
    settings: Settings,
) -> tuple[str, ...]:
    """Returns the notes on a planned program.

    Args:
      provenance: of the program.
      classified: its products with their roles.
      plans: what becomes of them.
      recipe: what it is planned by.
      used: which rules of the recipe decided something.
      settings: what a user chose.
    """
    return (
        *_opaque(provenance),
        *_argument(provenance, classified, plans),
        *_random(provenance, settings.mode),
        *_unused(recipe, used),
        *_of_target(plans, settings.target),
    )


def _of_target(plans: Sequence[SitePlan], target: Target) -> list[str]:
    specs = [q for p in plans for s in p.with_gradients for q in (s.lhs, s.rhs) if q]
    return [said for said in dict.fromkeys(map(target.remark, specs)) if said]


def _opaque(provenance: Provenance) -> list[str]:
    places: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for o in provenance.opaque:
        place = "/".join(visible(o.scope.names)) or o.location or "top level"
        if place not in places[o.name, o.why]:
            places[o.name, o.why].append(place)
    return [
        f"{name} at {', '.join(at[:8])}{f' and {len(at) - 8} more' if len(at) > 8 else ''} "
        f"left alone: {why}"
        for (name, why), at in places.items()
    ]


def _argument(
    provenance: Provenance, classified: Sequence[Classified], plans: Sequence[SitePlan]
) -> list[str]:
    """Arguments that may hold weights: the frozen base of LoRA."""
    kept = {p.site.number for p in plans if p.status == "kept" and p.rule and not p.asked}
    found = [
        str(c.number)
        for c in classified
        if c.number in kept and c.phase == "forward" and c.lhs_kind == c.rhs_kind == "activation"
        if any(provenance.given.get(v.origin) == DATA for v in c.occurrence.operands)
    ]
    if not found:
        return []
    return [
        f"kept as products of two activations, one of them an argument: sites {', '.join(found)}; "
        "if the argument holds weights, frozen ones too, name it in params_argnums"
    ]


def _random(provenance: Provenance, mode: str) -> list[str]:
    if mode != "inference" or not provenance.random:
        return []
    places = ", ".join(dict.fromkeys(provenance.random))
    return [f"the function draws random numbers of its own, as in dropout, which stay: {places}"]


# What built-in recipes keep, if a model has it, is not missed where it has not.
_IF_THERE = frozenset(rule for r in BUILTIN.values() for rule in r.rules if rule.keep)


def _unused(recipe: Recipe, used: set[int]) -> list[str]:
    return [
        f"{recipe.name_of(rule)} matched no site"
        for i, rule in enumerate(recipe.rules)
        if i not in used and rule not in _IF_THERE
    ]
