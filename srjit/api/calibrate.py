"""``calibrate``: a recipe whose scales are given, from the largest magnitudes of a run."""

from __future__ import annotations

import dataclasses
import glob
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from srjit.api.function import SrjitFunction, srjit
from srjit.api.options import UNDONATED, Resolved
from srjit.diagnostics.watch.stream import Record, Watch
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.planning.plan import ProgramPlan
from srjit.planning.planned_site import Operand, Shared
from srjit.recipes import Operands, Recipe, Rule
from srjit.recipes.rule import KINDS, ROLES

_Largest = Mapping[str, float]  # by kind


def calibrate(
    fn: Callable[..., Any],
    batches: Iterable[tuple[Any, ...]],
    *,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    margin: float = 1.0,
    seed: int = 0,
) -> Recipe:
    """Runs a function on batches, and returns its recipe with the scales that it had there.

    Every quantization gets the largest magnitude of its operand over all batches, steps of loops
    and sites of one path: a rule for each path, and after them one with the largest of all for what
    else the recipe's own rule matches. What is larger saturates.

    Args:
      fn: what is to run with the recipe: a training step, or a function in ``mode="inference"``. Of
        one that ``srjit`` decorated, all options count but the key, ``strict``, ``watch``,
        ``layer`` and ``dump_to``.
      batches: for each run, the tuple of fn's arguments, with values; nothing is donated.
      recipe: whose formats and rules it is, a name, a file or a Recipe; if None, fn's own.
      margin: factor of the largest magnitudes, for what batches have not shown.
      seed: of the noise of these runs.

    Returns:
      The recipe; ``.save("calibrated.toml")`` and ``recipe="calibrated.toml"`` keep it.

    Raises:
      TypeError: a batch is no tuple.
      ValueError: there are no batches; the recipe has scales that are given already, or none that
        are one for a tensor; an operand was not finite, always zero, or never reached; gradients
        are to be quantized, and fn takes none; margin is not positive and finite.
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"margin={margin!r}: it is a factor, positive and finite")
    decorated = fn if isinstance(fn, SrjitFunction) else srjit(fn)
    if recipe is not None:
        decorated = decorated.copy(recipe=recipe)
    settings = Resolved.of(*decorated.made_of()).settings
    base = settings.recipe
    measured = dataclasses.replace(base.map_quantizations(_dynamic), pays_on="")
    records: list[Record] = []
    watch = Watch(records.append, KINDS)
    key = None if settings.mode == "inference" else jax.random.key(seed)
    function = decorated.copy(
        recipe=measured, watch=watch, key=key, layer="jaxpr", strict=False, **UNDONATED
    )
    seen = _Seen()
    for number, batch in enumerate(batches):
        if not isinstance(batch, tuple):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"batch {number} is a {type(batch).__name__}: it is the tuple of the function's "
                "arguments, (params, batch) for a step(params, batch)"
            )
        records.clear()
        function(*batch)
        watch.wait()
        seen.add(function.planned(batch, {}), records)
    seen.check()
    rules: list[Rule] = []
    for number, rule in enumerate(base.rules, 1):
        own = [o for o in seen.operands.values() if o.row.rule.split()[:2] == ["rule", f"{number}"]]
        paths = dict.fromkeys(o.row.site.path for o in own)
        for path in paths if len(paths) > 1 else ():
            largest = seen.largest((o for o in own if o.row.site.path == path), margin)
            rules.append(dataclasses.replace(_static(rule, largest), path=glob.escape(path)))
        rules.append(_static(rule, seen.largest(own, margin)))
    return dataclasses.replace(base, name=f"{base.name}[calibrated]", rules=tuple(rules))


class _Seen:
    """The operands of a program, and the largest magnitude that each has had."""

    def __init__(self) -> None:
        self.operands: dict[tuple[int, str], Operand] = {}
        self._amaxes: dict[tuple[int, str], float] = {}

    def add(self, plan: ProgramPlan, records: list[Record]) -> None:
        """Adds a run; codes that several sites read are measured at one of them."""
        if any(g.status != "kept" for row in plan.rows for g in row.backward):
            raise ValueError(
                "the recipe quantizes gradients, and this function takes none: calibrate the "
                'training step, or the function in mode="inference"'
            )
        measured: dict[Shared, list[float]] = {}
        operands = {
            (o.row.site.number, o.name): o for s in plan.rewritten.values() for o, _ in s.quantized
        }
        for r in records:
            shared = operands[r.site, r.operand].shared
            assert shared is not None
            measured.setdefault(shared.first, []).append(r.amax)
        self.operands |= operands
        for place, o in operands.items():
            for amax in measured.get(o.shared.first, ()) if o.shared else ():
                if not math.isfinite(amax):
                    raise ValueError(f"{_place(o)} is not finite: its largest magnitude is {amax}")
                self._amaxes[place] = max(amax, self._amaxes.get(place, 0.0))

    def check(self) -> None:
        """Raises ValueError where something has no scale."""
        if not self.operands:
            raise ValueError("there are no batches, or nothing that the recipe quantizes in them")
        for place, o in self.operands.items():
            if place not in self._amaxes:
                raise ValueError(
                    f"{_place(o)} was never reached: add a batch that takes its branch, or a rule "
                    "of the recipe that keeps it"
                )
            if self._amaxes[place] == 0:
                raise ValueError(
                    f"{_place(o)} is zero in every batch, which tells no scale: calibrate after "
                    "some steps, or keep it by a rule of the recipe"
                )

    def largest(self, operands: Iterable[Operand], margin: float) -> _Largest:
        """The amaxes to give, by kind: a tensor that several roles read is to have one."""
        found: dict[str, float] = {}
        for o in operands:
            amax = margin * self._amaxes[o.row.site.number, o.name]
            found[o.kind] = max(amax, found.get(o.kind, 0.0))
        return found


def _place(o: Operand) -> str:
    site = o.row.site
    return f"{o.name} of site {site.number} ({site.path or site.location})"


def _dynamic(role: str, kind: str, q: Quantization) -> Quantization:
    where = f"the {kind} of {role}"
    if q.scaling == "static":
        raise ValueError(
            f"the recipe has a scale for {where} already: calibrate one whose scales are of the "
            "tensors themselves, such as 'fp8' or 'int8'"
        )
    if not (get_format(q.format).scales.takes_amax and q.shared == "tensor") or q.hadamard:
        raise ValueError(
            f"{where} has no scale to give: {q.format} there has one for each {q.shared}"
            f"{' after a Hadamard transform' if q.hadamard else ''}; calibrate a recipe with one "
            "for a tensor, such as 'fp8' or 'int8'"
        )
    return dataclasses.replace(q, scaling="dynamic")


def _static(rule: Rule, largest: _Largest) -> Rule:
    """The rule with these amaxes; what is not among them is as it was."""

    def operands(given: Operands | None) -> Operands | None:
        if given is None:
            return None
        specs = {kind: getattr(given, kind) for kind in KINDS}
        # What a rule says of weights, it says of the other activation of attention's gradients too.
        specs["activation"] = specs["activation"] or specs["weight"]
        return Operands(
            **{
                kind: dataclasses.replace(q, scaling="static", amax=largest[kind])
                if q is not None and kind in largest
                else getattr(given, kind)
                for kind, q in specs.items()
            }
        )

    return dataclasses.replace(rule, **{role: operands(getattr(rule, role)) for role in ROLES})
