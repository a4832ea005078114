"""Reports of compiled programs and their sites, beside the program that is not rewritten."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from srjit.aot.compiled_program import CompiledProgram, SiteCost, program_of
from srjit.aot.compilers import optimized
from srjit.aot.placement import Placement
from srjit.aot.rates import rate
from srjit.aot.step_time import Peaks, StepTime
from srjit.aot.totals import UNKNOWN, Total, Totals
from srjit.planning.profit import counted
from srjit.planning.site import SitePlan
from srjit.report.document import Column, Document, Documented, Table, as_json
from srjit.report.report import SITE, Report, operand, reasons
from srjit.targets.target import FASTER, Target

Verdict = Literal["native", "narrow", "emulated", "kept", "unseen"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledSite:
    """One site as it was planned and compiled.

    Attributes:
      plan: the site, and what srjit planned.
      cost: what the optimized program shows of it.
      rates: by kind of product, how many times faster than bfloat16 the unit multiplies, by the
        compiler's estimate of a large product of that kind, or by the vendor's peaks; None if
        neither tells.
      verdict: ``native``: elements of 8 bits at most enter a unit that is faster with them, in this
        order; ``narrow``: they do, and it is not; ``emulated``: wider ones enter it; ``kept``: as
        planned, in high precision; ``unseen``: no product in the optimized program tells that it is
        this site's.
    """

    plan: SitePlan
    cost: SiteCost
    rates: Mapping[tuple[str, str, str], float | None]

    @property
    def verdict(self) -> Verdict:
        """See the class."""
        if self.plan.status == "kept":
            return "kept"
        if not self.cost.products:
            return "unseen"
        if not all(p.is_narrow for p in self.cost.products):
            return "emulated"
        rates = [self.rates.get(p.kind) or 0 for p in self.cost.products]
        return "native" if min(rates) > FASTER else "narrow"

    def became(self) -> str:
        """Returns its products, their orders and rates: ``s8 x s8 NN 2.0x``."""
        parts: dict[str, None] = {}
        for product in self.cost.products:
            rate = self.rates.get(product.kind)
            told = f"{rate:.1f}x" if rate else ""
            parts[" ".join(filter(None, (str(product), product.order, told)))] = None
        return ", ".join(parts) or "-"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledReport(Documented):
    """The report that ``aot`` returns.

    Attributes:
      sites: in execution order.
      before, after: the program as it was, and rewritten.
      recipe, target, mode: names.
      devices: how many the program is compiled for.
      peaks: what one of them does at its peak.
      notes: what else a user should know.
    """

    sites: tuple[CompiledSite, ...]
    before: CompiledProgram
    after: CompiledProgram
    recipe: str
    target: str
    mode: str
    devices: int = 1
    peaks: Peaks = dataclasses.field(default_factory=Peaks)
    notes: tuple[str, ...] = ()

    @property
    def totals(self) -> Totals:
        """Figures of the whole program."""
        return Totals(
            before=self.before,
            after=self.after,
            devices=self.devices,
            peaks=self.peaks,
            costs=[s.cost for s in self.sites],
        )

    def speedup(self) -> float | None:
        """Estimated cycles of the program before over those after; None if there is no estimate.

        Kernels' are not among them: nothing that has kernels has a speedup by one model.
        """
        return self.totals.speedup()

    def step_time(self, program: CompiledProgram) -> StepTime:
        """Estimates the seconds of one step of a program, and of what they are made."""
        return self.peaks.step_time(program)

    def document(self) -> Document:
        """Returns the report as data: a row for each site, and the program before and after."""
        found = [s.verdict for s in self.sites]
        counts = ", ".join(f"{found.count(v)} {v}" for v in dict.fromkeys(found)) or "none"
        many = f" x {self.devices}" if self.devices > 1 else ""
        return Document(
            title=f"recipe {self.recipe}, compiled for {self.target}{many}, mode {self.mode}",
            lead=f"{len(self.sites)} sites: {counts}",
            tables=[
                Table(_COLUMNS, self.sites, kind=lambda s: s.verdict),
                Table(_TOTALS, self.totals.rows(), group=lambda t: t.group),
            ],
            notes=[
                *(f"warning: {warning}" for warning in self.totals.warnings()),
                *(f"note: {remark}" for remark in self._remarks()),
            ],
        )

    def to_json(self) -> str:
        """The report as a JSON object.

        Its keys are ``recipe``, ``target``, ``mode``, ``devices``, ``speedup``, ``notes``,
        ``warnings``;
        ``step_time``, a pair of objects with the attributes of a ``StepTime``;
        ``before`` and ``after``, objects with the attributes of a ``CompiledProgram`` except
        ``sites``; and ``sites``, a list of objects with the attributes of a ``Site`` and a
        ``SiteCost``, with ``status`` and ``reason`` (as planned), ``verdict`` and ``became``.
        """
        sites = [
            {
                **dataclasses.asdict(s.plan.site),
                "lhs": s.plan.lhs and dataclasses.asdict(s.plan.lhs),
                "rhs": s.plan.rhs and dataclasses.asdict(s.plan.rhs),
                "status": s.plan.status,
                "reason": s.plan.reason,
                "verdict": s.verdict,
                "became": s.became(),
                **dataclasses.asdict(s.cost),
            }
            for s in self.sites
        ]
        return as_json(
            {
                "recipe": self.recipe,
                "target": self.target,
                "mode": self.mode,
                "devices": self.devices,
                "speedup": self.speedup(),
                "step_time": [
                    dataclasses.asdict(self.step_time(p)) for p in (self.before, self.after)
                ],
                "before": _as_json(self.before),
                "after": _as_json(self.after),
                "notes": self._remarks(),
                "warnings": self.totals.warnings(),
                "sites": sites,
            }
        )

    # --------------------------------------------------------------------------------- its parts

    def _remarks(self) -> list[str]:
        remarks = [*reasons([s.plan for s in self.sites]), *self.notes]
        if self.after.cycles:
            remarks.append(
                "cycles: the compiler estimates each instruction alone, and these are added up, "
                "those of a loop as often as it runs. Nothing ran, and no time is counted that "
                "collectives and copies wait. rate: of one large product of the same kind, "
                "relative to bfloat16. around: quantizations, scales and transposes of a product, "
                "at the first site if several share them"
            )
        else:
            remarks.append(f"the compiler of {self.target} estimates no cycles")
            if any(rate for site in self.sites for rate in site.rates.values()):
                remarks.append("rates are of the vendor's peaks, relative to bfloat16")
        if self.after.kernels:
            remarks.append(
                "the estimated cycles leave kernels out. A kernel takes at least the time of its "
                "bytes at the memory's peak, of its products at bfloat16's peak, or of its "
                "schedule by another model, if that is there: docs/aot.md tells how to get it"
            )
        if self.before.unusable or self.after.unusable:
            lacking = [str(s.plan.site.number) for s in self.sites if s.cost.cycles is None]
            of = f"site {', '.join(lacking)}" if lacking else "the program as it was"
            remarks.append(
                f"the compiler has no usable estimate of {of}: it is in no sum, and no ratio of "
                "cycles is told"
            )
        if self.before.relayouts or self.after.relayouts:
            remarks.append(
                "another unit makes copies to other layouts, beside the rest, and the compiler "
                "does not estimate them: the time of their bytes is added, as if nothing ran "
                "beside them"
            )
        if self.devices > 1 and self.peaks.interconnect:
            remarks.append(
                "time on the wire: the bytes that a device sends, where collectives run as rings, "
                "over the bandwidth that its vendor states. Beside compute runs what the compiler "
                "made asynchronous"
            )
        loops = max(self.before.unknown_loops, self.after.unknown_loops)
        if loops:
            remarks.append(f"{loops} loops have a trip count that is not known: counted once")
        return remarks


def _as_json(program: CompiledProgram) -> dict[str, object]:
    return {k: v for k, v in dataclasses.asdict(program).items() if k != "sites"}


def _site_cycles(cost: SiteCost) -> str:
    return UNKNOWN if cost.cycles is None else counted(cost.cycles) if cost.cycles else "-"


def _around(cost: SiteCost) -> str:
    parts = [counted(cost.around)] if cost.around else []
    if cost.kernels:
        parts.append(f"{counted(cost.kernels)} (schedule)")
    return " + ".join(parts) or "-"


_COLUMNS: tuple[Column[CompiledSite], ...] = (
    *(column.of(lambda s: s.plan) for column in SITE),
    # The role tells what kinds they are.
    Column("lhs", lambda s: operand(s.plan.lhs, s.plan.site.lhs_shape), narrows="middle"),
    Column("rhs", lambda s: operand(s.plan.rhs, s.plan.site.rhs_shape), narrows="middle"),
    Column("became", lambda s: s.became()),
    Column("status", lambda s: s.verdict),
    Column("cycles", lambda s: _site_cycles(s.cost), align="right"),
    Column("around", lambda s: _around(s.cost), align="right"),
)


_TOTALS: tuple[Column[Total], ...] = (
    Column("", lambda t: t.name),
    Column("as it was", lambda t: t.before, align="right"),
    Column("rewritten", lambda t: t.after, align="right"),
    Column("ratio", lambda t: t.ratio, align="right"),
)


# ------------------------------------------------------------------------------------- making one


def reported(before: Any, after: Any, planned: Report, place: Placement) -> CompiledReport:
    """Compiles a program as it was and as it is now, and reads what became of it.

    Args:
      before, after: lowered for ``place``, as ``jax.stages.Lowered``.
      planned: what was planned for its sites.
      place: the devices.
    """
    was, now = (program_of(*optimized(place.target, lowered)) for lowered in (before, after))
    sites = tuple(
        CompiledSite(
            plan=plan,
            cost=(cost := now.sites.get(plan.site.number, SiteCost())),
            rates=_rates(cost, now, place.target),
        )
        for plan in planned.sites
    )
    return CompiledReport(
        sites=sites,
        before=was,
        after=now,
        recipe=planned.recipe,
        target=planned.target,
        mode=planned.mode,
        devices=place.count,
        peaks=Peaks.of(place.target),
        notes=(*planned.notes, *_notes(sites)),
    )


def _notes(sites: Sequence[CompiledSite]) -> list[str]:
    found = {
        verdict: ", ".join(str(s.plan.site.number) for s in sites if s.verdict == verdict)
        for verdict in _NOTES
    }
    return [_NOTES[verdict].format(numbers) for verdict, numbers in found.items() if numbers]


# By verdict, what to know of its sites.
_NOTES = {
    "emulated": "the unit multiplies nothing narrower than bfloat16 at site {}: the results are "
    "those of the recipe, and no speed is gained",
    "unseen": "the optimized program has no product that is known to be of site {}: the compiler "
    "removed it, made something else of it, or joined it with another site's",
}


def _rates(cost: SiteCost, program: CompiledProgram, target: Target) -> dict[Any, float | None]:
    if program.cycles is None:
        peak = target.peak or (lambda lhs, rhs: None)
        return {p.kind: peak(p.lhs.dtype, p.rhs.dtype) for p in cost.products if p.is_narrow}
    return {p.kind: rate(target, *p.kind) for p in cost.products if p.is_narrow}
