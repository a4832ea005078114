"""Says where less of a program is quantized than a user expects of a recipe."""

from __future__ import annotations

import collections
from collections.abc import Sequence, Set

from srjit.planning.roles import CONSTANT_REASON
from srjit.planning.site import SitePlan
from srjit.recipes import Recipe
from srjit.recipes.rule import ROLES, Operands

_CURE = (
    "if weights are in other arguments than those that were taken for parameters, name these with "
    "params_argnums= or params_argnames= (a pipeline: srjit-annotate-matmuls{params=...})"
)


def _words(s: SitePlan) -> tuple[str, ...]:
    return s.site.role, s.site.lhs_kind, s.site.rhs_kind


def shortfall(plans: Sequence[SitePlan], recipe: Recipe, own: Set[str]) -> str:
    """A sentence if less than half of the FLOPs is quantized and the recipe wants more; or nothing.

    What the recipe or the user keeps does not count, unless no product has a weight: then products
    of activations, which most recipes keep, are hardly what they seem.

    Args:
      plans: what becomes of every site, before any is left out because it does not pay.
      recipe: what asks.
      own: reasons to keep sites that are the recipe's or the user's own.
    """
    asks = any(getattr(r, role) not in (None, Operands()) for r in recipe.rules for role in ROLES)
    sites = [part for plan in plans for part in plan.with_gradients]
    if not asks or not sites:
        return ""
    work = [s.site.flops * s.site.trips for s in sites]
    if any(type(n) is not int for n in work):  # of symbolic shapes
        work = [1] * len(sites)
    # Where gradients are taken inside, those of weights are among them.
    trains = any(s.site.phase == "backward" and s.site.role != "unknown" for s in sites)
    weighted = any(("wgrad" if trains else "weight") in _words(s) for s in sites)
    if not weighted:
        own = own - {r.keep for r in recipe.rules if r.operands == "activations"}
    done, lost = 0, collections.Counter[str]()
    for s, n in zip(sites, work, strict=True):
        if s.status != "kept":
            done += n
        elif not s.asked and s.reason not in own:  # what is asked for is warned of by itself
            lost[s.reason] += n
    total = sum(work)
    if not total or lost.total() <= done or 10 * lost.total() < total:
        return ""
    reasons = "; ".join(f"{n / total:.1%}: {reason}" for reason, n in lost.most_common(3))
    none = (
        "" if weighted else f", and no product {'is the gradient of' if trains else 'has'} a weight"
    )
    cure = _CURE
    if CONSTANT_REASON in lost:
        cure += (
            "; constants that hold no weights: srjit.keep_high_precision() around their products"
        )
    if any("complex" in reason for reason in lost):
        cure += "; complex products that are to stay: srjit.keep_high_precision() around them"
    return f"{done / total:.1%} of the FLOPs are quantized{none}. Kept, {reasons}. Cure: {cure}"
