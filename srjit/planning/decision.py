"""Decides about a product: finds the recipe's rule for it, and the operands' quantizations."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

from srjit.numerics.quantization import Quantization
from srjit.numerics.symbolic import in_numbers, is_known, with_ones
from srjit.planning.examples import REACHES, Examples
from srjit.planning.plan import Settings
from srjit.planning.planned_site import within_groups
from srjit.planning.roles import CONSTANT_REASON, KEEP_REASON, KEEP_SCOPE, Classified
from srjit.planning.site import Site, SitePlan
from srjit.products.kinds import rules_of
from srjit.products.product import Product
from srjit.program.left_alone import is_of_activations
from srjit.program.values import Opaque, visible
from srjit.recipes import Operands, Recipe, Rule

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_RULED = "differentiated by its function's own rule, in high precision"


class Decisions:
    """Decides for every product of a program.

    Args:
      classified: the products.
      settings: what a user chose.
      recipe: the user's, as the mode rounds.
      differentiable: whether the program may still be differentiated from outside.

    Attributes:
      used: which rules of the recipe decided something.
      own: reasons to keep sites that are the recipe's or the user's own.
    """

    def __init__(
        self,
        classified: Sequence[Classified],
        settings: Settings,
        recipe: Recipe,
        differentiable: bool,
    ) -> None:
        self.recipe, self.target, self.differentiable = recipe, settings.target, differentiable
        self.used: set[int] = set()
        self.own: set[str] = {r.keep for r in recipe.rules if r.keep}
        self._ends = _ends(classified, recipe)
        self._examples = Examples(classified)

    def of(self, c: Classified) -> SitePlan:
        """Decides about a site, and about its gradients should it be differentiated."""
        site = c.site
        differentiable = self.differentiable and _impossible(c) is None
        if differentiable and c.occurrence.scope.ruled:
            site = dataclasses.replace(site, why=f"{site.why}; {_RULED}")
            differentiable = False
        forward = self._decide(c, site, c.product)
        if not (differentiable and c.role == "fprop"):
            return forward
        gradients = (
            self._decide(c, _gradient_site(site, side), c.gradient(side), is_gradient=True)
            for side in (0, 1)
        )
        return dataclasses.replace(forward, backward=tuple(gradients))

    def left_alone(self, o: Opaque, number: int) -> SitePlan:
        """The entry of an equation that may multiply where srjit does not look.

        A recipe asks for it if it would quantize a product there, whatever that computes.
        """
        operands = [v.aval for v in o.eqn.invars]
        operands = [a for a in operands if a.ndim > 1] or operands
        lhs, rhs = [*(in_numbers(a.shape) for a in operands), (), ()][:2]
        out = o.eqn.outvars[0].aval if o.eqn.outvars else None
        site = Site(
            number=number,
            path="/".join(visible(o.scope.names)),
            role="unknown",
            phase=o.scope.phase,
            op=o.name,
            lhs_kind="unknown",
            rhs_kind="unknown",
            lhs_shape=lhs,
            rhs_shape=rhs,
            out_shape=in_numbers(out.shape) if out else (),
            dtype=str(out.dtype) if out else "",
            flops=with_ones(o.flops),
            trips=math.prod(n for n, _ in o.scope.loops if n and is_known(n)),
            location=o.location,
            why=o.why,
        )
        kept = functools.partial(SitePlan, site=site, status="kept")
        if KEEP_SCOPE in o.scope.names:
            self.own.add(KEEP_REASON)
            return kept(reason=KEEP_REASON)
        weights = (False,) if is_of_activations(o.name) else (True, False)
        size = min((n for shape in (lhs, rhs) for n in shape[-2:] if n > 0), default=0)
        rule = self._asking(site, weights, size)
        if rule is not None and rule.keep:
            return kept(reason=rule.keep, rule=self.recipe.name_of(rule))
        return kept(
            reason=o.why,
            asked=rule is not None,
            rule="" if rule is None else self.recipe.name_of(rule),
        )

    def _decide(
        self, c: Classified, site: Site, product: Product | None, is_gradient: bool = False
    ) -> SitePlan:
        unknown = site.role == "unknown"
        rule = self._asking(site, (True, False), _size(c)) if unknown else self._rule(c, site)
        wanted = _wanted(rule, site) if rule else None
        name = "" if rule is None else self.recipe.name_of(rule)
        kept = self._kept(c, site, rule, wanted, is_gradient)
        if kept is not None:
            reason, asked = kept
            return SitePlan(site=site, status="kept", reason=reason, asked=asked, rule=name)
        assert wanted is not None and product is not None
        lhs, rhs = wanted
        if not product.can_rotate:
            lhs, rhs = (q and q.unrotated for q in wanted)
            if (lhs, rhs) != wanted:
                why = f"{site.why}; no Hadamard transform: it does not cancel in this product"
                site = dataclasses.replace(site, why=why)
        lhs, rhs = self._examples.apart(c, (lhs, rhs))
        shapes = site.lhs_shape, site.rhs_shape
        lhs = lhs and within_groups(lhs, product, 0, shapes[0])
        rhs = rhs and within_groups(rhs, product, 1, shapes[1])
        target = self.target.for_shapes(*shapes)
        native = target.native(product, shapes, (lhs, rhs))
        status = "native" if native else "emulated"
        if not native and (why := target.hindrance(product, shapes, (lhs, rhs))):
            site = dataclasses.replace(site, why=f"{site.why}; emulated: {why}")
        return SitePlan(site=site, lhs=lhs, rhs=rhs, status=status, asked=True, rule=name)

    def _kept(
        self,
        c: Classified,
        site: Site,
        rule: Rule | None,
        wanted: Sequence[Quantization | None] | None,
        is_gradient: bool,
    ) -> tuple[str, bool] | None:
        """Returns why a site is kept, and whether the recipe asks otherwise; None if it is not."""
        if c.keep:
            if c.keep != CONSTANT_REASON:
                self.own.add(c.keep)
            return c.keep, False
        if site.role == "unknown":
            if rule is not None and rule.keep:
                return rule.keep, False
            why = f"unknown role: {c.why}"
            if rule is None:
                self.own.add(why)
            return why, rule is not None
        impossible = _impossible(c)
        if impossible:
            asked = c.product is None and wanted is not None
            if not asked and "complex" not in impossible:  # it is of integers, or of nothing
                self.own.add(impossible)
            return impossible, asked
        if rule is not None and rule.keep:
            return rule.keep, False
        why = ""
        if rule is None:
            why = "no rule of the recipe matches it"
        elif (c.partner or c.occurrence).out.origin in self._ends:
            why = "kept in high precision by the recipe: at an end of the network"
        elif wanted is None:
            why = f"the recipe leaves {site.role} in high precision"
        if why or wanted is None:
            self.own.add(why)
            return why, False
        if self._examples.reach(c, wanted):
            return REACHES, True
        if any(q is not None and q.scaling == "delayed" for q in wanted):
            if c.occurrence.scope.ruled:
                why = "delayed scales do not reach into a function with its own derivative rule"
                return why, True
            if is_gradient:
                return "delayed scales of gradients need the whole training step inside srjit", True
        return None

    def _asking(self, site: Site, weights: Sequence[bool], size: int) -> Rule | None:
        """The first rule that would quantize a site of unknown role, whatever role it has.

        Or one before it that keeps the site, whatever role it has.
        """
        possible = ("dgrad", "wgrad") if site.phase == "backward" else ("fprop",)
        cases = list(itertools.product(possible, weights))
        for rule in self.recipe.rules:
            matched = [rule.matches(site.path, site.number, site.op, *case, size) for case in cases]
            if rule.keep and all(matched):
                return rule
            asks = (getattr(rule, role) not in (None, Operands()) for role, _ in cases)
            if any(a and m for a, m in zip(asks, matched, strict=True)):
                return rule
        return None

    def _rule(self, c: Classified, site: Site) -> Rule | None:
        weighted = "weight" in (site.lhs_kind, site.rhs_kind) or site.role == "wgrad"
        for i, rule in enumerate(self.recipe.rules):
            if rule.matches(site.path, site.number, site.op, site.role, weighted, _size(c)):
                self.used.add(i)
                return rule
        return None


def _ends(classified: Sequence[Classified], recipe: Recipe) -> set[int]:
    """Origins of the forward weight products that the recipe keeps at the program's two ends."""
    weighted = [
        c.occurrence.out.origin
        for c in classified
        if c.phase == "forward" and "weight" in (c.lhs_kind, c.rhs_kind)
    ]
    last = weighted[len(weighted) - recipe.keep_last :] if recipe.keep_last else []
    return {*weighted[: recipe.keep_first], *last}


def _size(c: Classified) -> int:
    extents = rules_of(c.occurrence.eqn).extents(c.occurrence.eqn)
    return min((n for n in extents if is_known(n) and n), default=0)


def _wanted(rule: Rule, site: Site) -> tuple[Quantization | None, Quantization | None] | None:
    """The quantizations that a rule asks for of both operands; None if it asks for none."""
    operands: Operands | None = getattr(rule, site.role, None)
    if operands is None or operands == Operands():
        return None
    pair: list[Quantization | None] = []
    for kind in (site.lhs_kind, site.rhs_kind):
        spec = getattr(operands, kind)
        if spec is None and kind == "activation":  # dgrad of attention: as if it were a weight
            spec = operands.weight
        pair.append(spec)
    return (pair[0], pair[1]) if any(pair) else None


def _impossible(c: Classified) -> str | None:
    """Returns why no recipe can quantize a site; None if one can."""
    avals = [v.aval for v in c.occurrence.eqn.invars[:2]]
    dtypes = [str(a.dtype) for a in avals]
    if any(d not in _FLOATS for d in dtypes):
        return (
            f"{' x '.join(dtypes)} product: only {', '.join(_FLOATS[:-1])} and {_FLOATS[-1]} "
            "products are quantized"
        )
    if any(0 in a.shape for a in avals):
        return "zero-size operand"
    if c.product is None:
        return "ragged batch dimensions are not supported"
    return None


def _gradient_site(site: Site, side: int) -> Site:
    kinds, shapes = [site.lhs_kind, site.rhs_kind], [site.lhs_shape, site.rhs_shape]
    role = "wgrad" if kinds[side] == "weight" else "dgrad"
    # The cotangent stands where the differentiated operand stood.
    out, shapes[side], kinds[side] = shapes[side], site.out_shape, "gradient"
    return dataclasses.replace(
        site,
        role=role,
        phase="backward",
        lhs_kind=kinds[0],
        rhs_kind=kinds[1],
        lhs_shape=shapes[0],
        rhs_shape=shapes[1],
        out_shape=out,
        why="exact: the gradient of this site, if it is taken",
    )
