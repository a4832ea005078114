"""Notes of a plan: what a user should know beside the sites."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

from srjit.planning.plan import Settings
from srjit.planning.provenance import Provenance
from srjit.planning.roles import Classified
from srjit.planning.site import SitePlan, listed
from srjit.program.values import DATA, visible
from srjit.recipes import BUILTIN, Recipe

# What built-in recipes keep, if a model has it, is not missed where it has not.
_IF_THERE = frozenset(rule for r in BUILTIN.values() for rule in r.rules if rule.keep)


def notes_of(
    provenance: Provenance,
    classified: Sequence[Classified],
    plans: Sequence[SitePlan],
    recipe: Recipe,
    used: set[int],
    settings: Settings,
) -> Iterator[str]:
    """Yields the notes on a planned program.

    Args:
      provenance: of the program.
      classified: its products with their roles.
      plans: what becomes of them.
      recipe: what it is planned by.
      used: which rules of the recipe decided something.
      settings: what a user chose.
    """
    places: dict[tuple[str, str], dict[str, None]] = collections.defaultdict(dict)
    for o in provenance.opaque:
        place = "/".join(visible(o.scope.names)) or o.location or "top level"
        places[o.name, o.why][place] = None
    for (name, why), at in places.items():
        yield f"{name} at {listed(list(at), 8)} left alone: {why}"
    kept = {p.site.number for p in plans if p.status == "kept" and p.rule and not p.asked}
    found = [
        str(c.number)
        for c in classified
        if c.number in kept and c.phase == "forward" and c.lhs_kind == c.rhs_kind == "activation"
        if any(provenance.given.get(v.origin) == DATA for v in c.occurrence.operands)
    ]
    if found:  # as the frozen base of LoRA
        yield (
            "kept as products of two activations, one of them an argument: sites "
            f"{', '.join(found)}; if the argument holds weights, frozen ones too, name it in "
            "params_argnums"
        )
    if settings.mode == "inference" and provenance.random:
        drawn = ", ".join(dict.fromkeys(provenance.random))
        yield f"the function draws random numbers of its own, as in dropout, which stay: {drawn}"
    for i, rule in enumerate(recipe.rules):
        if i not in used and rule not in _IF_THERE:
            yield f"{recipe.name_of(rule)} matched no site"
    specs = [q for p in plans for s in p.with_gradients for q in (s.lhs, s.rhs) if q]
    if apart := [q for q in specs if q.apart]:
        delayed = any(q.scaling == "delayed" for q in apart)
        yield "per-example gradients: every example has scales of its own" + (
            ", but for delayed ones, which are of all examples of earlier steps" if delayed else ""
        )
    yield from filter(None, dict.fromkeys(map(settings.target.remark, specs)))
