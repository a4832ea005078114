"""From a program to its plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from srjit import recipes, targets
from srjit.numerics.shards import shared_axes
from srjit.planning import coefficients, wires, write_backs
from srjit.planning import planned_site as planned
from srjit.planning.coverage import shortfall
from srjit.planning.decision import Decisions
from srjit.planning.layers import loops_over_weights, trips_of_layers
from srjit.planning.noise import Draw, Draws
from srjit.planning.notes import notes_of
from srjit.planning.phases import traced
from srjit.planning.plan import ProgramPlan, Settings
from srjit.planning.profit import Cuts, paying, uncut
from srjit.planning.provenance import Provenance
from srjit.planning.residuals import Residuals, Use
from srjit.planning.roles import Classified, classify
from srjit.planning.site import SitePlan
from srjit.planning.stated import with_stated
from srjit.program import left_alone
from srjit.program.values import Path
from srjit.recipes import Recipe

WHOLE = (
    "recipe='auto' weighs whole products, not what one device does: JAX lowers one of them to "
    "several operations, or Shardy cannot tell how the program is sharded"
)


def recipe_of(recipe: Any, target: str | targets.Target) -> Recipe:
    """The recipe that an option names: ``auto`` is the target's own, where quantizing pays.

    Raises:
      ValueError, TypeError: as of ``recipes.get``.
    """
    if recipe != "auto":
        return recipes.get(recipe)
    target = targets.get(target)
    recipe = recipes.get(target.recipe)
    if target.estimates is None:
        return recipe
    is_named = target.name in targets.names() and targets.get(target.name) is target
    return dataclasses.replace(recipe, pays_on=target.name if is_named else target)


def make_plan(
    closed: Any,
    labels: Sequence[str],
    settings: Settings,
    names: Sequence[str] | None = None,
    manual: frozenset[str] = frozenset(),
    cuts: Callable[[Sequence[Classified]], Cuts | None] = uncut,
) -> ProgramPlan:
    """Plans a closed jaxpr.

    Args:
      closed: the program.
      labels: for each of its inputs, whether it is a parameter or data.
      settings: what a user chose.
      names: what its inputs are called.
      manual: mesh axes around it whose types do not tell which values differ.
      cuts: finds out how devices cut its products, where what pays depends on it.
    """
    provenance = traced(closed, labels, manual=manual)
    classified = classify(provenance)
    differentiable = all(c.phase == "forward" for c in classified)
    plan = plan_of(provenance, classified, settings, differentiable, cuts)
    if settings.mode == "inference":
        return plan
    names = names or [f"input {i}" for i in range(len(labels))]
    found = write_backs.find(closed, labels, names, settings.recipe)
    if settings.recipe.casts is not None:
        found = write_backs.with_casts(found, provenance.casts)
    guessed = frozenset[str]().union(*(provenance.guessed.get(p, ()) for p in found.writes))
    found = dataclasses.replace(found, guessed=guessed)
    kept = coefficients.find(provenance, plan.coded, settings.recipe)
    notes = (*plan.notes, *found.notes, *kept.notes)
    return dataclasses.replace(plan, write_backs=found, coefficients=kept, notes=notes)


def plan_of(
    provenance: Provenance,
    classified: Sequence[Classified],
    settings: Settings,
    differentiable: bool,
    cuts: Callable[[Sequence[Classified]], Cuts | None] = uncut,
) -> ProgramPlan:
    """Plans a program whose products have roles.

    Args:
      provenance: of the program.
      classified: all its products, in execution order.
      settings: what a user chose.
      differentiable: whether the program may still be differentiated from outside.
      cuts: as of ``make_plan``.
    """
    recipe, is_training = settings.recipe, settings.mode == "train"
    if not is_training:
        recipe = recipe.with_rounding(activations="nearest", weights="nearest", gradients="nearest")
    stating = [i for i, rule in enumerate(recipe.rules) if rule.computes]
    statements = [(recipe.rules[i].path, recipe.rules[i].computes) for i in stating]
    classified, used = with_stated(classified, statements)
    decisions = Decisions(classified, settings, recipe, differentiable and is_training)
    decisions.used |= {stating[i] for i in used}
    rows = [decisions.of(c) for c in classified]
    opaque = (o for o in provenance.opaque if o.why != left_alone.INNER)
    alone = tuple(decisions.left_alone(o, i) for i, o in enumerate(opaque, len(rows)))
    short = shortfall([*rows, *alone], recipe, decisions.own)
    weighed: list[str] = []
    if recipe.pays_on:
        estimates = targets.get(recipe.pays_on).estimates
        found = cuts(classified)
        weighed = [] if found is not None else [WHOLE]
        rows = paying(classified, rows, provenance, estimates, found or uncut(classified))
    draws, over = Draws(), loops_over_weights(provenance, classified)
    params = [_params(c, row, settings) for c, row in zip(classified, rows, strict=True)]
    signs = [_signs(c, p, draws) for c, p in zip(classified, params, strict=True)]
    uses = [_uses(*each, provenance) for each in zip(classified, params, signs, strict=True)]
    residuals = Residuals(provenance, [use for both in uses for use in both], settings.target)
    sites = {
        each[0].occurrence.path: _planned(*each, residuals, provenance, draws, over)
        for each in zip(classified, rows, params, signs, uses, strict=True)
    }
    notes = tuple(notes_of(provenance, classified, rows, recipe, decisions.used, settings, over))
    sent = wires.notes_of(classified, rows, settings)
    notes = (*notes, *sent, *weighed, *filter(None, [short]))
    return ProgramPlan(sites, provenance, settings, notes=notes, left_alone=alone, shortfall=short)


def _signs(c: Classified, params: planned.SiteParams | None, draws: Draws) -> Draw | None:
    if params is None or not planned.draw_signs(params.lhs, params.rhs):
        return None
    return draws.draw(c.occurrence, c.noise, planned.SIGNS, c.noise)


def _uses(
    c: Classified, params: planned.SiteParams | None, signs: Draw | None, provenance: Provenance
) -> tuple[Use, Use]:
    def use(side: int) -> Use:
        token, spec = c.token(side, provenance), params and (params.lhs, params.rhs)[side]
        if signs is not None:  # both operands' are those of this product, and no other's
            token = provenance.derived("flipped", token, signs.number)
        return Use(c.occurrence, side, token, spec, c.phase != "forward")

    return use(0), use(1)


def _planned(
    c: Classified,
    row: SitePlan,
    params: planned.SiteParams | None,
    signs: Draw | None,
    uses: tuple[Use, Use],
    residuals: Residuals,
    provenance: Provenance,
    draws: Draws,
    over: frozenset[Path],
) -> planned.PlannedSite:
    o = c.occurrence
    if params is not None and params.backward:
        again = residuals.are_there_anyway(uses[0]), residuals.are_there_anyway(uses[1])
        params = dataclasses.replace(params, again=again)
    layers = trips_of_layers(provenance, over, o)
    alike = shared_axes(o.scope.names)

    def operand(use: Use) -> planned.Operand:
        side, spec = use.side, use.spec
        shared, history, draw = None, None, Draw(c.noise, side, ())
        again = residuals.are_made_again(use)
        waits = again and c.phase == "backward" and residuals.may_be_merged(use)
        experts: tuple[int, ...] = ()
        if spec is not None:
            if spec.group_dim is not None:
                experts = (o.eqn.invars[2].aval.shape[-1],)
            shared = planned.Shared(use.token, spec)
            draw = draws.draw(o, c.noise, side, shared)
            if spec.scaling == "delayed":
                name = f"{c.path or 'site'}#{c.number}.{('lhs', 'rhs')[side]}"
                history = draws.history(shared, tuple(n for n in layers if n is not None), name)
            shared = shared._replace(again=again)
        return planned.Operand(
            row=row,
            side=side,
            shared=shared,
            draw=draw,
            signs=signs,
            varies=o.operands[side].varies - alike,
            history=history,
            experts=experts,
            in_memory=waits or o.operands[side].origin in provenance.given,
            waits=waits,
        )

    return planned.PlannedSite(
        path=o.path,
        row=row,
        loops=o.scope.loops,
        layers=layers,
        number=c.noise,
        operands=(operand(uses[0]), operand(uses[1])),
        varies=o.scope.manual - alike,
        params=params,
    )


def _params(c: Classified, row: SitePlan, settings: Settings) -> planned.SiteParams | None:
    product, eqn = c.product, c.occurrence.eqn
    if product is None or all(r.status == "kept" for r in row.with_gradients):
        return None
    shapes = row.site.lhs_shape, row.site.rhs_shape
    target = settings.target.for_shapes(*shapes)
    lhs = row.lhs and planned.oriented(row.lhs, product, 0, shapes[0])
    rhs = row.rhs and planned.oriented(row.rhs, product, 1, shapes[1])
    return planned.SiteParams(
        product=product,
        dtype=eqn.outvars[0].aval.dtype,
        lhs=lhs,
        rhs=rhs,
        backward=tuple(planned.Gradient(g.site.role, g.lhs, g.rhs) for g in row.backward),
        target=target,
        rng=settings.rng,
        label=row.site.role,
        turned=target.turns(product, shapes, (lhs, rhs)),
        reduce=settings.recipe.reduce,
        wire=wires.sent_as(row.site, settings),
    )
