"""Reports of compiled programs and their sites, beside the program that is not rewritten."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from srjit.aot.compiled_program import CompiledProgram, SiteCost, program_of
from srjit.aot.compilers import optimized
from srjit.aot.placement import Placement
from srjit.aot.rates import rate
from srjit.aot.step_time import StepTime
from srjit.planning.profit import counted
from srjit.planning.site import SitePlan
from srjit.report.document import Column, Document, Documented, Table, as_json
from srjit.report.report import SITE, Report, operand, reasons
from srjit.targets.target import FASTER, Target

Verdict = Literal["native", "narrow", "emulated", "kept", "unseen"]

_MIB = 2**20
_NONE = "no usable estimate"


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
      cycles_per_byte: in which the chip's memory moves a byte, at its peak; None: not known.
      clock: cycles a second; None: not known.
      interconnect: bytes a second that a device sends to others at its peak; None: not known.
      notes: what else a user should know.
    """

    sites: tuple[CompiledSite, ...]
    before: CompiledProgram
    after: CompiledProgram
    recipe: str
    target: str
    mode: str
    devices: int = 1
    cycles_per_byte: float | None = None
    clock: float | None = None
    interconnect: float | None = None
    notes: tuple[str, ...] = ()

    def speedup(self) -> float | None:
        """Estimated cycles of the program before over those after; None if there is no estimate.

        Kernels' are not among them: nothing that has kernels has a speedup by one model.
        """
        both = self.before, self.after
        if any(p.kernels or p.unusable for p in both) or not self.before.cycles:
            return None
        return self.before.cycles / self.after.cycles if self.after.cycles else None

    def kernel_cycles(self, program: CompiledProgram) -> int | None:
        """Cycles of a program's kernels, at least: of each the larger of two models.

        They are the estimate of its schedule, where there is one, and its bytes at the memory's
        peak. None if nothing is known of the memory.
        """
        if self.cycles_per_byte is None:
            return None
        return sum(
            max(k.cycles or 0, round(k.moved * self.cycles_per_byte)) for k in program.kernels
        )

    def step_time(self, program: CompiledProgram) -> StepTime:
        """Estimates the seconds of one step: compute, wire, and what runs beside compute."""
        cycles = None if program.unusable else program.cycles
        if cycles is not None:
            cycles += self.kernel_cycles(program) or 0
        rate = self.interconnect
        return StepTime(
            compute=None if cycles is None or not self.clock else cycles / self.clock,
            wire=program.sent / rate if rate else None,
            beside=sum(c.beside for c in program.collectives.values()) / rate if rate else 0.0,
        )

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
                Table(_TOTALS, self._totals(), group=lambda t: t.group),
            ],
            notes=[f"note: {remark}" for remark in self._remarks()],
        )

    def to_json(self) -> str:
        """The report as a JSON object.

        Its keys are ``recipe``, ``target``, ``mode``, ``devices``, ``speedup``, ``notes``;
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
                "sites": sites,
            }
        )

    # --------------------------------------------------------------------------------- its parts

    def _totals(self) -> list[_Total]:
        return [
            *self._cycles(),
            *self._time(),
            *self._kernels(),
            *self._memory(),
            *self._collectives(),
        ]

    def _cycles(self) -> Iterator[_Total]:
        before, after = self.before, self.after
        if not after.cycles:
            name = "bytes that instructions read and write"
            yield _compared("cycles", name, before.moved, after.moved, _mib)
        if not before.cycles or not after.cycles:
            return
        both = _compared("cycles", "estimated cycles", before.cycles, after.cycles, counted)
        unusable = before.unusable + after.unusable
        if not self.speedup():  # without its kernels a program only looks fast
            left_out = ["kernels"] if before.kernels or after.kernels else []
            left_out += ["what has no usable estimate"] if unusable else []
            both = both._replace(name=f"{both.name}, {' and '.join(left_out)} excluded", ratio="")
        yield both
        dots = sum(s.cost.cycles or 0 for s in self.sites)
        around = sum(s.cost.around for s in self.sites)
        yield _Total("cycles", "  of sites' products", "", counted(dots))
        yield _Total("cycles", "  of what is around them", "", counted(around))
        yield _Total("cycles", "  of everything else", "", counted(after.cycles - dots - around))
        was, now = self.kernel_cycles(before), self.kernel_cycles(after)
        if was is not None and now is not None and was + now:
            yield _Total("cycles", "kernels, at least", counted(was), counted(now))
            sums = before.cycles + was, after.cycles + now
            added = _compared("cycles", "both models added up", *sums, counted)
            yield added._replace(ratio="") if unusable else added

    def _time(self) -> Iterator[_Total]:
        if self.devices == 1 or not self.interconnect:
            return
        was, now = self.step_time(self.before), self.step_time(self.after)
        at = f" at {self.clock / 1e9:.3g} GHz" if self.clock else ""
        for name, figure in (
            (f"time of compute{at}", lambda t: t.compute),
            (f"time on the wire at {self.interconnect / 1e9:.3g} GB/s", lambda t: t.wire),
            ("  of that beside compute, at most", lambda t: t.overlap),
            ("step, nothing overlapped", lambda t: t.apart),
            ("step, that overlapped", lambda t: t.step),
        ):
            yield _compared("time", name, figure(was), figure(now), _ms)
            if was.compute is now.compute is None and figure(was) is not None:
                return  # nothing else is known

    def _kernels(self) -> Iterator[_Total]:
        for kernel in self.after.kernels:
            told = _mib(kernel.moved)
            if kernel.cycles is not None:
                told += f", {counted(kernel.cycles)} (schedule)"
            name = f"kernel {kernel.name}" + (f" x{kernel.times}" if kernel.times > 1 else "")
            where = "" if kernel.site is None else f", site {kernel.site}"
            yield _Total("kernels", name + where, "", ", ".join(kernel.rounds_by) or told)

    def _memory(self) -> Iterator[_Total]:
        before = dataclasses.asdict(self.before.memory)
        for name, now in dataclasses.asdict(self.after.memory).items():
            yield _compared("memory", f"memory: {name}", before[name], now, _mib)

    def _collectives(self) -> Iterator[_Total]:
        def told(program: CompiledProgram, kind: str) -> str:
            found = program.collectives.get(kind)
            return f"{found.count} of {_mib(found.size)}" if found else "none"

        for kind in dict.fromkeys((*self.before.collectives, *self.after.collectives)):
            yield _Total("collectives", kind, told(self.before, kind), told(self.after, kind))
        if self.before.sent or self.after.sent:
            sent = self.before.sent, self.after.sent
            yield _compared("collectives", "bytes that a device sends", *sent, _mib)

    def _remarks(self) -> list[str]:
        remarks = [*reasons([s.plan for s in self.sites]), *self.notes]
        if self.after.cycles:
            remarks.append(
                "cycles are the compiler's estimate of every instruction alone, added up, loops by "
                "their trip counts: no run, and without what collectives and copies wait for; the "
                "rate is of one large product of the same kind, relative to bfloat16; around a "
                "product are quantizations, scales and transposes, at the first site if several "
                "share them"
            )
        else:
            remarks.append(f"the compiler of {self.target} estimates no cycles")
            if any(rate for site in self.sites for rate in site.rates.values()):
                remarks.append("rates are of the vendor's peaks, relative to bfloat16")
        if self.after.kernels:
            remarks.append(
                "kernels are not in the estimated cycles: they take what their bytes take at the "
                "peak of the memory, at least, or what their schedule takes, by another model; to "
                "have that one, see docs/aot.md"
            )
        if self.before.cycles and self.after.cycles and self.before.cycles < self.after.cycles:
            remarks.append("by these estimates the program is slower than it was")
        if self.before.unusable or self.after.unusable:
            lacking = [str(s.plan.site.number) for s in self.sites if s.cost.cycles is None]
            of = f"site {', '.join(lacking)}" if lacking else "the program as it was"
            remarks.append(
                f"the compiler has no usable estimate of {of}: it is in no sum, and no ratio of "
                "cycles is told"
            )
        if self.devices > 1 and self.interconnect:
            remarks.append(
                "the wire is what a device sends, if collectives are made as rings are, over what "
                "its vendor says that it can send at once; beside compute travels what the "
                "compiler made asynchronous"
            )
        loops = max(self.before.unknown_loops, self.after.unknown_loops)
        if loops:
            remarks.append(f"{loops} loops have a trip count that is not known: counted once")
        return remarks


def _as_json(program: CompiledProgram) -> dict[str, object]:
    return {k: v for k, v in dataclasses.asdict(program).items() if k != "sites"}


def _site_cycles(cost: SiteCost) -> str:
    return _NONE if cost.cycles is None else counted(cost.cycles) if cost.cycles else "-"


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


class _Total(NamedTuple):
    """A figure of the whole program, before and after; rows of one group stand together."""

    group: str
    name: str
    before: str
    after: str
    ratio: str = ""


_TOTALS: tuple[Column[_Total], ...] = (
    Column("", lambda t: t.name),
    Column("as it was", lambda t: t.before, align="right"),
    Column("rewritten", lambda t: t.after, align="right"),
    Column("ratio", lambda t: t.ratio, align="right"),
)


def _compared(
    group: str, name: str, before: Any, after: Any, shown: Callable[[Any], str]
) -> _Total:
    ratio = f"{before / after:.3f}x" if before and after else ""
    was, now = (_NONE if figure is None else shown(figure) for figure in (before, after))
    return _Total(group, name, was, now, ratio)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"


def _mib(size: int) -> str:
    return f"{size / _MIB:.{1 if size >= 10 * _MIB else 3}f} MiB"


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
    estimates = place.target.estimates
    return CompiledReport(
        sites=sites,
        before=was,
        after=now,
        recipe=planned.recipe,
        target=planned.target,
        mode=planned.mode,
        devices=place.count,
        cycles_per_byte=estimates.cycles_per_byte if estimates else None,
        clock=estimates.clock if estimates else None,
        interconnect=place.target.interconnect,
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
    "emulated": "what is multiplied is no narrower than bfloat16 at site {}: quantizing that has "
    "the numbers of the recipe, and gains no speed",
    "unseen": "no product in the optimized program tells that it is of site {}: the compiler "
    "removed it, or made something else of it, or joined it with another site's",
}


def _rates(cost: SiteCost, program: CompiledProgram, target: Target) -> dict[Any, float | None]:
    if program.cycles is None:
        peak = target.peak or (lambda lhs, rhs: None)
        return {p.kind: peak(p.lhs.dtype, p.rhs.dtype) for p in cost.products if p.is_narrow}
    return {p.kind: rate(target, *p.kind) for p in cost.products if p.is_narrow}
