"""Diagnoses a watched program from its records, in words."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from srjit.diagnostics.watch.stream import Record
from srjit.jaxprs.figures import FIGURES, Figure
from srjit.numerics.formats import FORMATS
from srjit.planning.site import listed
from srjit.report.curves import sparkline
from srjit.report.document import Column, Document, Documented, Table, as_json

# Gradient norm over noise norm below which stochastic rounding stops paying (arXiv 2505.19115).
PAYS = math.sqrt(3)
VANISHING = 0.05  # of the nonzero elements that nearest rounding would send to zero
GROWING = 100.0  # times, of the norm between the first and the last tenth of the steps
SATURATED = 1e-3  # of the elements, which clip: that is a bias
CLIPPING = 0.08  # of them, at most, where the format's own rule for scales lets elements clip


@dataclasses.dataclass(frozen=True)
class Finding:
    """The diagnosis of one quantization.

    Attributes:
      name, path, format, rounding: the quantization's, as of ``Record``.
      verdict: ``healthy``, or the worst of ``exploding``, ``noisy``, ``saturated``, ``clipping``,
        ``vanishing``.
      advice: what to do about it; of what is healthy, nothing.
      norms: the operand's norm, step by step.
      figures: by the names of ``FIGURES``, those of all steps.
      ratio: the operand's norm over the noise's, of all steps.
    """

    name: str
    path: str
    format: str
    rounding: str
    verdict: str
    advice: tuple[str, ...]
    norms: tuple[float, ...]
    figures: dict[str, float]
    ratio: float

    def to_dict(self) -> dict[str, Any]:
        """All attributes, figures among them."""
        fields = dataclasses.asdict(self)
        return fields | fields.pop("figures")


@dataclasses.dataclass(frozen=True)
class Diagnosis(Documented):
    """The diagnosis of a program.

    Attributes:
      findings: of every quantization that was watched.
      notes: what else a reader has to know.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def advice(self) -> dict[str, list[str]]:
        """Each advice, with the names of the quantizations that it is for."""
        found: dict[str, list[str]] = {}
        for f in self.findings:
            for advice in f.advice:
                found.setdefault(advice, []).append(f.name)
        return found

    def document(self) -> Document:
        """Returns the diagnosis as data: a row for each quantization, then the advice."""
        advice = [f"{advice}: {listed(names, 6)}" for advice, names in self.advice.items()]
        if self.findings and not advice:
            advice = ["all gradients that were watched are healthy"]
        return Document(
            title="watched",
            lead=f"{len(self.findings)} quantized gradients, {self.steps} steps",
            tables=[Table(_columns(), self.findings, _kind)],
            notes=[*advice, *self.notes],
            curves=[(f"{f.name} {f.path}", f.norms) for f in self.findings],
        )

    def to_json(self) -> str:
        """The diagnosis as JSON text; numbers that are not finite are null."""
        findings = [f.to_dict() for f in self.findings]
        return as_json({"findings": findings, "notes": self.notes})

    @property
    def steps(self) -> int:
        """The number of steps that were watched."""
        return max((len(f.norms) for f in self.findings), default=0)


def diagnosed(records: Iterable[Record], notes: Sequence[str] = ()) -> Diagnosis:
    """The diagnosis of a run, or of a part of it."""
    by_name: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        by_name[record.name].append(record)
    return Diagnosis(tuple(_finding(found) for found in by_name.values()), tuple(notes))


def _finding(records: Sequence[Record]) -> Finding:
    last = records[-1]
    figures = {f.name: f.over_steps([r.figures[f.name] for r in records]) for f in FIGURES}
    ratio = figures["norm"] / figures["noise"] if figures["noise"] else math.inf
    advice: dict[str, str] = {}
    if not all(math.isfinite(r.norm) and math.isfinite(r.amax) for r in records) or _grows(records):
        advice["exploding"] = (
            "exploding: rounding is not the reason, and stochastic rounding will not help; look at "
            "the learning rate, the loss scale and the data"
        )
    elif ratio < PAYS:
        advice["noisy"] = (
            "the noise of rounding is as large as the gradient (norm over noise below sqrt(3), "
            "where stochastic rounding stops paying): a higher precision here"
        )
    known = FORMATS.get(last.format)
    by_design = known and not known.scales.takes_amax and figures["saturated"] < CLIPPING
    if figures["saturated"] > SATURATED and last.rounding == "stochastic" and by_design:
        advice["clipping"] = (
            f"by design: {last.format} rounds scales so that the largest elements of some blocks "
            "clip, which is a small bias; recipes called unbiased round scales up and have none"
        )
    elif figures["saturated"] > SATURATED and last.rounding == "stochastic":
        advice["saturated"] = (
            "values beyond the largest of the format clip to it, which is a bias: scales rounded "
            "up (scale_rounding='up', or a recipe that is called unbiased) have none"
        )
    if figures["zeros"] > VANISHING and last.rounding == "nearest":
        advice["vanishing"] = (
            "vanishing: rounding to nearest sends a part of these gradients to zero; stochastic "
            "rounding should help, recipe.with_rounding(gradients='stochastic')"
        )
    return Finding(
        name=last.name,
        path=last.path,
        format=last.format,
        rounding=last.rounding,
        verdict=next(iter(advice), "healthy"),
        advice=tuple(advice.values()),
        norms=tuple(r.norm for r in records),
        figures=figures,
        ratio=ratio,
    )


def _grows(records: Sequence[Record]) -> bool:
    """True if the norm has grown from the first tenth of the steps to the last one."""
    tenth = max(1, len(records) // 10)
    first, last = (sum(r.norm for r in part) for part in (records[:tenth], records[-tenth:]))
    return len(records) > 1 and 0 < GROWING * first < last


def _column(figure: Figure) -> Column[Finding]:
    return Column(figure.column, lambda f: figure.shown(f.figures[figure.name]), align="right")


def _columns() -> list[Column[Finding]]:
    def ratio(f: Finding) -> str:
        return "-" if math.isinf(f.ratio) else f"{f.ratio:.3g}"

    return [
        Column("quantization", lambda f: f.name),
        Column("path", lambda f: f.path, narrows="middle"),
        Column("format", lambda f: f.format + "~" * (f.rounding == "stochastic")),
        Column("norm by step", lambda f: sparkline(f.norms)),
        Column("norm/noise", ratio, align="right"),
        *(_column(figure) for figure in FIGURES if figure.column),
        Column("verdict", lambda f: f.verdict),
    ]


def _kind(finding: Finding) -> str:
    return "native" if finding.verdict == "healthy" else ""
