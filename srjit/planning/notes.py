"""Notes of a plan: what a user should know beside the sites."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.numerics.symbolic import may_repeat
from srjit.planning.layers import trips_of_layers
from srjit.planning.plan import Settings
from srjit.planning.provenance import Provenance
from srjit.planning.roles import Classified
from srjit.planning.site import SitePlan, listed
from srjit.planning.value_graph import ValueGraph
from srjit.program.values import DATA, Path, visible
from srjit.recipes import BUILTIN, Recipe

_INDEXING = {"dynamic_slice", "gather", "stablehlo.dynamic_slice", "stablehlo.gather"}

# What built-in recipes keep, if a model has it, is not missed where it has not.
_IF_THERE = frozenset(rule for r in BUILTIN.values() for rule in r.rules if rule.keep)


def notes_of(
    provenance: Provenance,
    classified: Sequence[Classified],
    plans: Sequence[SitePlan],
    recipe: Recipe,
    used: set[int],
    settings: Settings,
    over: frozenset[Path],
) -> Iterator[str]:
    """Yields the notes on a planned program.

    Args:
      provenance: of the program.
      classified: its products with their roles.
      plans: what becomes of them.
      recipe: what it is planned by.
      used: which rules of the recipe decided something.
      settings: what a user chose.
      over: paths of the loops over weights.
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
    given = [
        str(c.number)
        for c, p in zip(classified, plans, strict=True)
        if c.product is not None and c.product.along(0) is not None
        if any(q and _is_given(q) for s in p.with_gradients for q in (s.lhs, s.rhs))
    ]
    if given:
        yield (
            f"sites {', '.join(given)}: one scale is given for all experts, and integers lose "
            "those whose numbers are small beside it; dynamic and delayed scales are of each expert"
        )
    indexed = [
        str(c.number)
        for c, p in zip(classified, plans, strict=True)
        if None in trips_of_layers(provenance, over, c.occurrence)
        and _by_index(c, p, provenance.graph)
    ]
    if indexed:
        yield (
            f"sites {', '.join(indexed)}: a loop reads their weights by an index (ws[i]), so that "
            "delayed scales have one history for all its trips; scan over the stacked weights for "
            "one a layer"
        )
    shapes = [
        v.aval.shape
        for c, p in zip(classified, plans, strict=True)
        if any(q and q.rounding == "stochastic" for s in p.with_gradients for q in (s.lhs, s.rhs))
        for v in (*c.occurrence.eqn.invars[:2], *c.occurrence.eqn.outvars)
    ]
    yield from filter(None, dict.fromkeys(map(may_repeat, shapes)))
    yield from filter(None, dict.fromkeys(map(settings.target.remark, specs)))


def _is_given(q: Quantization) -> bool:
    """True if integers have a scale that is given."""
    return q.scaling == "static" and get_format(q.format).element.is_integer


def _by_index(c: Classified, plan: SitePlan, graph: ValueGraph) -> bool:
    """True if a site with delayed scales reads another weight on every trip, such as ``ws[i]``."""
    specs = [q for s in plan.with_gradients for q in (s.lhs, s.rhs) if q]
    if all(q.scaling != "delayed" for q in specs):
        return False
    kinds = zip((c.lhs_kind, c.rhs_kind), c.occurrence.operands, strict=True)
    return any(_changes(graph, value.token) for kind, value in kinds if kind == "weight")


def _changes(graph: ValueGraph, weight: int) -> bool:
    """True if a loop's counter, or what is scanned, says which part of a stack a weight is."""
    made = graph.made.get(graph.viewed(weight))
    if made is not None and made.name == "select_n":  # as jnp.take lets no index out of range
        made = graph.made.get(graph.viewed(made.operands[-1]))
    if made is None or made.name not in _INDEXING:
        return False
    seen: set[int] = set()
    pending = list(made.operands[1:])
    while pending:
        token = pending.pop()
        above = graph.made.get(token)
        if above is None or token in seen:
            continue
        if above.name == "carry" or (above.name == "slice" and above.eqn is None):
            return True
        seen.add(token)
        pending += above.operands
    return False
