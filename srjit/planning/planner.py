"""From a classified product to a plan: which recipe rule decides, and what the operands become."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

from srjit import recipes, targets
from srjit.numerics.quantization import Quantization
from srjit.planning import write_backs
from srjit.planning.plan import Draw, PlannedSite, ProgramPlan, Settings, Shared
from srjit.planning.profit import Candidate, Codes, not_worth
from srjit.planning.provenance import Provenance
from srjit.planning.remarks import notes_of
from srjit.planning.roles import Classified, classify
from srjit.planning.site import SIGNS, Backward, Site, SiteParams, SitePlan, draw_signs, oriented
from srjit.products.dot import DotProduct
from srjit.products.kinds import extents_of, flops_of, product_of
from srjit.program.values import Occurrence, Path
from srjit.recipes import Operands, Recipe, Rule

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def recipe_of(target: targets.Target) -> Recipe:
    """What ``recipe="auto"`` is for a target: its own, where quantizing pays by its estimates."""
    recipe = recipes.get(target.recipe)
    return dataclasses.replace(recipe, pays_on=target.name) if target.estimates else recipe


def make_plan(
    closed: Any, labels: Sequence[str], settings: Settings, names: Sequence[str] | None = None
) -> ProgramPlan:
    """Plans a closed jaxpr.

    Args:
      closed: the program.
      labels: for each of its inputs, whether it is a parameter or data.
      settings: what a user chose.
      names: what its inputs are called.
    """
    provenance = Provenance(closed, labels)
    classified = classify(provenance)
    differentiable = all(c.phase == "forward" for c in classified)
    plan = plan_of(provenance, classified, settings, differentiable)
    if settings.mode == "inference":
        return plan
    names = names or [f"input {i}" for i in range(len(labels))]
    found = write_backs.find(closed, labels, names, settings.recipe)
    if settings.recipe.casts is not None:
        found = write_backs.with_casts(found, provenance.casts)
    return dataclasses.replace(plan, write_backs=found, notes=(*plan.notes, *found.notes))


def plan_of(
    provenance: Provenance,
    classified: Sequence[Classified],
    settings: Settings,
    differentiable: bool,
) -> ProgramPlan:
    """Plans a program whose products have roles.

    Args:
      provenance: of the program.
      classified: all its products, in execution order.
      settings: what a user chose.
      differentiable: whether the program may still be differentiated from outside.
    """
    recipe = settings.recipe
    if settings.mode == "inference":
        recipe = recipe.with_rounding(activations="nearest", weights="nearest", gradients="nearest")
    noise = _Noise()
    ends = _ends(classified, recipe)
    sites: dict[Path, PlannedSite] = {}
    plans: list[SitePlan] = []
    used: set[int] = set()
    planners = [
        _SitePlanner(c, settings, recipe, provenance, ends, used, differentiable)
        for c in classified
    ]
    decided = [(planner, planner.plan()) for planner in planners]
    if recipe.pays_on:
        decided = _paying(decided, recipe.pays_on)
    for planner, plan in decided:
        plans += [plan, *plan.backward]
        if plan.status != "kept" or any(b.status != "kept" for b in plan.backward):
            sites[planner.o.path] = planner.planned(plan, noise)
    return ProgramPlan(
        sites,
        tuple(plans),
        provenance,
        settings,
        notes=(
            *notes_of(provenance, classified, plans, recipe, used, settings.mode),
            *_remarks(plans, settings.target),
        ),
    )


def _remarks(plans: Sequence[SitePlan], target: targets.Target) -> list[str]:
    specs = [q for plan in plans if plan.status != "kept" for q in (plan.lhs, plan.rhs) if q]
    return [said for said in dict.fromkeys(map(target.remark, specs)) if said]


class _Noise:
    """Tells every quantization whose noise is its own, and whose history.

    A value that is quantized again, as in a recomputation, takes the noise and the history that it
    had when it was quantized first.
    """

    def __init__(self) -> None:
        self._first: dict[Shared | int, tuple[int, int, tuple[Any, ...]]] = {}
        # Of delayed scales: the history of a value, by the lengths of the loops around.
        self.states: dict[tuple[Shared, tuple[int, ...]], str] = {}

    def draw(self, o: Occurrence, number: int, slot: int, shared: Shared | int) -> Draw:
        """The noise of one operand of the site with that number, or that of its signs.

        Args:
          o: the site.
          number: of it.
          slot: which of its draws.
          shared: what its codes are; of signs, the number again.
        """
        loops = o.scope.loops
        number, slot, others = self._first.setdefault(shared, (number, slot, loops))
        pairs = itertools.zip_longest(loops, others[: len(loops)], fillvalue=(None, False))
        return Draw(number, slot, tuple(a[1] != b[1] and a[0] == b[0] for a, b in pairs))


def _ends(classified: Sequence[Classified], recipe: Recipe) -> set[int]:
    """Origins of the forward weight products that the recipe keeps at the program's two ends."""
    weighted = [
        c.occurrence.out.origin
        for c in classified
        if c.phase == "forward" and "weight" in (c.lhs_kind, c.rhs_kind)
    ]
    last = weighted[len(weighted) - recipe.keep_last :] if recipe.keep_last else []
    return {*weighted[: recipe.keep_first], *last}


def _paying(
    decided: Sequence[tuple[_SitePlanner, SitePlan]], target: str
) -> list[tuple[_SitePlanner, SitePlan]]:
    """The plans, without what does not pay by the estimates of a target."""
    estimates = targets.get(target).estimates
    if estimates is None:
        return list(decided)
    weighed = [planner.weighed(plan) for planner, plan in decided]
    reasons = iter(not_worth([c for parts in weighed for c in parts if c], estimates))
    paying: list[tuple[_SitePlanner, SitePlan]] = []
    for (planner, plan), candidates in zip(decided, weighed, strict=True):
        parts = zip((plan, *plan.backward), candidates, strict=True)
        first, *backward = [_if_worth(p, next(reasons)) if c else p for p, c in parts]
        paying.append((planner, dataclasses.replace(first, backward=tuple(backward))))
    return paying


def _if_worth(plan: SitePlan, reason: str | None) -> SitePlan:
    if reason is None:
        return plan
    return dataclasses.replace(plan, lhs=None, rhs=None, status="kept", reason=reason, asked=False)


class _SitePlanner:
    """Plans one site."""

    def __init__(
        self,
        classified: Classified,
        settings: Settings,
        recipe: Recipe,
        provenance: Provenance,
        ends: set[int],
        used: set[int],
        differentiable: bool,
    ) -> None:
        self.c, self.settings, self.recipe = classified, settings, recipe
        self.provenance, self.ends, self.used = provenance, ends, used
        self.differentiable = differentiable and settings.mode == "train"
        o = classified.occurrence
        self.o, self.eqn = o, o.eqn
        self.avals = tuple(v.aval for v in self.eqn.invars[:2])
        product = product_of(self.eqn)
        if isinstance(product, DotProduct) and o.is_turned:
            product = dataclasses.replace(product, is_turned=True)
        self.product = product
        self.site = Site(
            number=classified.number,
            path=classified.path,
            role=classified.role,
            phase=classified.phase,
            op=self.eqn.primitive.name,
            lhs_kind=classified.lhs_kind,
            rhs_kind=classified.rhs_kind,
            lhs_shape=self.avals[0].shape,
            rhs_shape=self.avals[1].shape,
            out_shape=self.eqn.outvars[0].aval.shape,
            dtype=str(self.eqn.outvars[0].aval.dtype),
            flops=flops_of(self.eqn),
            trips=math.prod(n for n, _ in o.scope.loops if n),
            location=o.location,
            why=classified.why,
        )
        if self.differentiable and o.scope.ruled and self._impossible() is None:
            why = f"{classified.why}; differentiated by its function's own rule, in high precision"
            self.differentiable, self.site = False, dataclasses.replace(self.site, why=why)

    def plan(self) -> SitePlan:
        """What becomes of the site, and of its gradients should it be differentiated."""
        forward = self._decide(self.site)
        backward: tuple[SitePlan, ...] = ()
        if self.differentiable and self.c.role == "fprop" and self._impossible() is None:
            backward = tuple(self._decide(s) for s in self._gradient_sites())
        return dataclasses.replace(forward, backward=backward)

    def weighed(self, plan: SitePlan) -> list[Candidate | None]:
        """The site and the gradients of its operands, as candidates; None: kept anyway."""
        parts = zip((None, 0, 1), (plan, *plan.backward), strict=False)
        return [None if p.status == "kept" else self._candidate(p, side) for side, p in parts]

    def _candidate(self, plan: SitePlan, differentiated: int | None) -> Candidate:
        product = self.product
        assert product is not None
        if differentiated is not None:
            product = product.transpose(differentiated, self.avals[differentiated])
        shapes = plan.site.lhs_shape, plan.site.rhs_shape

        def codes(side: int, spec: Quantization | None) -> Codes | None:
            if spec is None:
                return None
            spec, size = oriented(spec, product, side, shapes[side]), math.prod(shapes[side])
            if side == differentiated:
                return Codes(("cotangent", self.o.path, spec), spec, size, in_memory=False)
            return Codes((self._token(side), spec), spec, size, self._in_memory(side))

        return Candidate(product, shapes, (codes(0, plan.lhs), codes(1, plan.rhs)), plan.site.trips)

    def _in_memory(self, side: int) -> bool:
        return self.o.operands[side].origin in self.provenance.given

    def _token(self, side: int) -> int:
        """What an operand is, as the product sees it."""
        token = self.o.operands[side].token
        if self.product is not None and self.product.masks(side):
            # Other codes than those of the same value unmasked.
            return self.provenance.derived("masked", token, *(v.token for v in self.o.extras))
        return token

    def planned(self, plan: SitePlan, noise: _Noise) -> PlannedSite:
        """The site primitive's parameters, and what its codes and its noise are."""
        product, o, number = self.product, self.o, self.c.noise
        assert product is not None
        shapes = self.site.lhs_shape, self.site.rhs_shape
        specs = [
            q and oriented(q, product, side, shapes[side])
            for side, q in enumerate((plan.lhs, plan.rhs))
        ]
        shared: list[Shared | None] = [None, None]
        draws = [Draw(number, side, ()) for side in (0, 1)]
        signs = noise.draw(o, number, SIGNS, number) if draw_signs(*specs) else None
        for side, q in enumerate(specs):
            if q is not None:
                token = self._token(side)
                if signs is not None:  # both operands' are those of this product, and no other's
                    token = self.provenance.derived("flipped", token, signs.number)
                shared[side] = (token, q)
                draws[side] = noise.draw(o, number, side, (token, q))
        backward: list[Backward | None] = [None, None]
        for side, b in enumerate(plan.backward):
            ct, residual = (b.lhs, b.rhs) if side == 0 else (b.rhs, b.lhs)
            backward[side] = Backward(b.site.role, ct, residual)
        params = SiteParams(
            product=product,
            dtype=self.eqn.outvars[0].aval.dtype,
            lhs=specs[0],
            rhs=specs[1],
            backward=(backward[0], backward[1]),
            extras=len(self.eqn.invars) - 2,
            target=self.settings.target.name,
            rng=self.settings.rng,
            label=self.site.role,
            turned=self.settings.target.turns(product, shapes, (specs[0], specs[1])),
        )
        varies = (o.lhs.varies, o.rhs.varies, o.scope.manual)
        states: list[str | None] = [None, None]
        for side, known in enumerate(shared):
            if known is not None and known[1].scaling == "delayed":
                name = f"{self.site.path or 'site'}#{self.site.number}.{('lhs', 'rhs')[side]}"
                lengths = tuple(n for n, _ in o.scope.loops if n is not None)
                states[side] = noise.states.setdefault((known, lengths), name)
        return PlannedSite(
            params,
            number,
            shared[0],
            shared[1],
            (draws[0], draws[1]),
            varies,
            (states[0], states[1]),
            (self._in_memory(0), self._in_memory(1)),
            signs,
        )

    def _gradient_sites(self) -> list[Site]:
        """The products that differentiating a forward site makes: of its lhs and of its rhs."""
        site = self.site
        kinds = (site.lhs_kind, site.rhs_kind)
        sites: list[Site] = []
        for side in (0, 1):
            role = "wgrad" if kinds[side] == "weight" else "dgrad"
            other = kinds[1 - side]
            pair = ("gradient", other) if side == 0 else (other, "gradient")
            shapes = [site.lhs_shape, site.rhs_shape]
            out, shapes[side] = shapes[side], site.out_shape
            sites.append(
                dataclasses.replace(
                    site,
                    role=role,
                    phase="backward",
                    lhs_kind=pair[0],
                    rhs_kind=pair[1],
                    lhs_shape=shapes[0],
                    rhs_shape=shapes[1],
                    out_shape=out,
                    why="exact: the gradient of this site, if it is taken",
                )
            )
        return sites

    def _decide(self, site: Site) -> SitePlan:
        keep = lambda reason, asked=False: SitePlan(  # noqa: E731
            site=site, lhs=None, rhs=None, status="kept", reason=reason, asked=asked, rule=name
        )
        rule = self._asking(site) if site.role == "unknown" else self._rule(site)
        name = "" if rule is None else self.recipe.name_of(rule)
        wanted = self._wanted(rule, site) if rule else None
        if self.c.keep:
            return keep(self.c.keep)
        if site.role == "unknown":
            return keep(f"unknown role: {self.c.why}", asked=rule is not None)
        impossible = self._impossible()
        if impossible:
            return keep(impossible, asked=self.product is None and wanted is not None)
        if rule is None:
            return keep("no rule of the recipe matches it")
        if rule.keep:
            return keep(rule.keep)
        if (self.c.partner or self.o).out.origin in self.ends:
            return keep("kept in high precision by the recipe: at an end of the network")
        if wanted is None:
            return keep(f"the recipe leaves {site.role} in high precision")
        product = self.product
        if site is not self.site:
            side = 0 if site.lhs_kind == "gradient" else 1
            assert product is not None
            product = product.transpose(side, self.avals[side])
        lhs, rhs = wanted
        if any(q is not None and q.scaling == "delayed" for q in wanted):
            if self.o.scope.ruled:
                why = "delayed scales do not reach into a function with its own derivative rule"
                return keep(why, asked=True)
            if site is not self.site:
                why = "delayed scales of gradients need the whole training step inside srjit"
                return keep(why, asked=True)
        if product is not None and not product.can_rotate:
            dropped = [q and q.unrotated for q in (lhs, rhs)]
            if dropped != [lhs, rhs]:
                lhs, rhs = dropped
                site = dataclasses.replace(
                    site,
                    why=f"{site.why}; no Hadamard transform: it does not cancel in this product",
                )
        shapes = site.lhs_shape, site.rhs_shape
        native = product is not None and self.settings.target.native(product, shapes, (lhs, rhs))
        return SitePlan(
            site=site,
            lhs=lhs,
            rhs=rhs,
            status="native" if native else "emulated",
            asked=True,
            rule=name,
        )

    def _asking(self, site: Site) -> Rule | None:
        """The first rule that would quantize a site of unknown role, whatever role it has."""
        possible = ("dgrad", "wgrad") if site.phase == "backward" else ("fprop",)
        for rule in self.recipe.rules:
            for role, weight in itertools.product(possible, (True, False)):
                asks = getattr(rule, role) not in (None, Operands())
                if asks and rule.matches(site.path, site.op, role, weight, self._size()):
                    return rule
        return None

    def _size(self) -> int:
        return min((n for n in extents_of(self.eqn) if n), default=0)

    def _rule(self, site: Site) -> Rule | None:
        weighted = "weight" in (site.lhs_kind, site.rhs_kind) or site.role == "wgrad"
        for i, rule in enumerate(self.recipe.rules):
            if rule.matches(site.path, site.op, site.role, weighted, self._size()):
                self.used.add(i)
                return rule
        return None

    def _wanted(
        self, rule: Rule, site: Site
    ) -> tuple[Quantization | None, Quantization | None] | None:
        """What the rule says of the two operands; None: nothing."""
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

    def _impossible(self) -> str | None:
        """Why the site cannot be quantized, whatever the recipe says."""
        dtypes = [str(a.dtype) for a in self.avals]
        if any(d not in _FLOATS for d in dtypes):
            return (
                f"{' x '.join(dtypes)} product: only {', '.join(_FLOATS[:-1])} and {_FLOATS[-1]} "
                "products are quantized"
            )
        if any(a.size == 0 for a in self.avals):
            return "zero-size operand"
        if self.product is None:
            return "ragged batch dimensions are not supported"
        return None
