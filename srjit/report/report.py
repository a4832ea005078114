"""The report of a program: every site, what its operands become, and why."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from srjit.numerics.quantization import Quantization
from srjit.planning.plan import ProgramPlan
from srjit.planning.site import SitePlan, WriteBack, shape_in_words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Every site of a program, as ``explain`` returns it.

    Attributes:
      sites: in execution order; where a function is to be differentiated from outside, each forward
        site is followed by its dgrad and wgrad.
      recipe, target, mode: names.
      notes: what else a user should know: rules that matched nothing, kernels left alone, ...
      write_backs: what becomes of narrow parameters, if the recipe asks for their write-back.
    """

    sites: tuple[SitePlan, ...]
    recipe: str
    target: str
    mode: str
    notes: tuple[str, ...] = ()
    write_backs: tuple[WriteBack, ...] = ()

    @classmethod
    def of(cls, plan: ProgramPlan) -> Report:
        """The report of a planned program."""
        settings = plan.settings
        return cls(
            sites=plan.reported,
            recipe=settings.recipe.name,
            target=settings.target.name,
            mode=settings.mode,
            notes=plan.notes,
            write_backs=plan.write_backs.reported,
        )

    def coverage(self) -> float:
        """The fraction of matrix-multiplication FLOPs that are quantized; 1 if there are none."""
        work = [(s.site.flops * s.site.trips, s.status != "kept") for s in self.sites]
        total, done = sum(n for n, _ in work), sum(n for n, quantized in work if quantized)
        return done / total if total else 1.0

    def __str__(self) -> str:
        title = (
            f"srjit: recipe {self.recipe}, target {self.target}, mode {self.mode}: "
            f"{self._covered('FLOPs')}"
        )
        width = shutil.get_terminal_size((100, 24)).columns
        rows = table([_HEADER, *map(_row, self.sites)], width)
        remarks = [*reasons(self.sites), *(f"note: {n}" for n in self.notes)]
        wrapped = [line for r in remarks for line in wrap(r, width)]
        legend = [_LEGEND] if any(s.lhs or s.rhs for s in self.sites) else []
        written = [_WRITTEN_HEADER, *map(_written_row, self.write_backs)]
        writes = ["", *table(written, width)] if self.write_backs else []
        return "\n".join([*wrap(title, width), *rows, *legend, *wrapped, *writes])

    def to_json(self) -> str:
        """The report as a JSON object.

        Its keys are ``recipe``, ``target``, ``mode``, ``coverage`` (between 0 and 1), ``notes`` (a
        list of strings), ``write_backs`` (a list of objects with the attributes of ``WriteBack``)
        and ``sites``: a list of objects with the attributes of ``Site``, those
        of ``SitePlan`` but for ``site`` and ``backward``, and in ``lhs`` and ``rhs`` the attributes
        of a ``Quantization``, or null.
        """
        sites = [
            {
                **dataclasses.asdict(s.site),
                "lhs": s.lhs and dataclasses.asdict(s.lhs),
                "rhs": s.rhs and dataclasses.asdict(s.rhs),
                "status": s.status,
                "reason": s.reason,
                "asked": s.asked,
                "rule": s.rule,
            }
            for s in self.sites
        ]
        report = {
            "recipe": self.recipe,
            "target": self.target,
            "mode": self.mode,
            "coverage": self.coverage(),
            "notes": self.notes,
            "write_backs": [dataclasses.asdict(w) for w in self.write_backs],
            "sites": sites,
        }
        return json.dumps(report, indent=1, default=str)

    def to_html(self) -> str:
        """The report as one HTML page, which needs nothing from elsewhere."""
        covered = self._covered("matrix-multiplication FLOPs")
        lead = f"Target {self.target}, mode {self.mode}: {covered}."
        rows = [(s.status, _full_row(s)) for s in self.sites]
        tables = [html_table([*_HEADER, "why"], rows)]
        if self.write_backs:
            written = [(w.status, _written_row(w)) for w in self.write_backs]
            tables.append(html_table(_WRITTEN_HEADER, written))
        return html_page(f"recipe {self.recipe}", lead, tables, self.notes)

    def _covered(self, work: str) -> str:
        """How many sites there are, and how much of their work is quantized."""
        if not self.sites:
            return "no matrix multiplication"
        return f"{len(self.sites)} sites, {100 * self.coverage():.1f} % of {work} quantized"

    def _repr_html_(self) -> str:
        return self.to_html()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>srjit: {title}</title><style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; margin-bottom: 2em; }}
td, th {{ border-bottom: 1px solid #ddd; padding: 3px 10px; text-align: left; }}
tr.kept td {{ color: #777; }} tr.native td {{ background: #eefaee; }}
</style></head><body>
<h1>srjit: {title}</h1>
<p>{lead}</p>
{tables}
<ul>
{notes}</ul>
</body></html>
"""


def finite(value: Any) -> Any:
    """A value as JSON has it: no infinite or undefined numbers, keys that are text."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def html_page(title: str, lead: str, tables: Sequence[str], notes: Sequence[str]) -> str:
    """A page that needs nothing from elsewhere: what is said first, tables, notes."""
    return _PAGE.format(
        title=html.escape(title),
        lead=html.escape(lead),
        tables="\n".join(tables),
        notes="".join(f"<li>{html.escape(n)}</li>\n" for n in notes),
    )


def html_table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """A table of rows, each with its class, under a header."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
    body = "\n".join(
        f'<tr class="{kind}">' + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + "</tr>"
        for kind, cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def describe(spec: Quantization | None, kind: str) -> str:
    """One operand in a few words: ``gradient nvfp4 stochastic block hadamard``."""
    if spec is None:
        return f"{kind} high precision"
    extra = [] if spec.shared == "tensor" else [spec.shared]
    if spec.scaling != "dynamic":
        extra.append(spec.scaling)
    if spec.hadamard:
        extra.append("hadamard")
    if spec.scale_rounding == "eden":
        extra.append("eden")
    return " ".join([kind, spec.format, spec.rounding, *extra])


def _full_row(plan: SitePlan) -> list[str]:
    site = plan.site
    return [
        str(site.number),
        site.path or site.location,
        site.role + " (recomputed)" * (site.phase == "recompute"),
        site.op + (f" x{site.trips}" if site.trips > 1 else ""),
        f"{shape_in_words(site.lhs_shape)} {describe(plan.lhs, site.lhs_kind)}",
        f"{shape_in_words(site.rhs_shape)} {describe(plan.rhs, site.rhs_kind)}",
        plan.status,
        plan.reason or site.why,
    ]


# ---------------------------------------------------------------------------- for a terminal

_HEADER = ["#", "path", "role", "op", "lhs", "rhs", "status"]
_WRITTEN_HEADER = ["path", "kind", "value", "written back"]
_LEGEND = "~: stochastic rounding, otherwise to nearest; H: after a Hadamard transform"
_OPS = {
    "dot_general": "dot",
    "conv_general_dilated": "conv",
    "ragged_dot_general": "ragged",
    "ragged_dot": "ragged",
}
_KINDS = {"activation": "act", "gradient": "grad"}
_NARROWEST = 12  # that a column is cut to


def _row(plan: SitePlan) -> list[str]:
    return [*cells(plan), plan.status]


def cells(plan: SitePlan) -> list[str]:
    """A site in a table: number, path, role, operation, and what is planned for its operands."""
    site = plan.site
    where = site.path or "/".join(site.location.rsplit("/", 2)[-2:]) or "-"
    return [
        str(site.number),
        where,
        site.role + " again" * (site.phase == "recompute"),
        _OPS.get(site.op, site.op) + (f" x{site.trips}" if site.trips > 1 else ""),
        _operand(plan.lhs, site.lhs_kind, site.lhs_shape),
        _operand(plan.rhs, site.rhs_kind, site.rhs_shape),
    ]


def _written_row(write: WriteBack) -> list[str]:
    how = f"{write.op} in float32, rounded stochastically to {write.dtype}"
    if write.status == "kept":
        how = f"kept: {write.reason}"
    return [write.path, write.kind, f"{write.dtype} {shape_in_words(write.shape)}", how]


def _operand(spec: Quantization | None, kind: str, shape: Sequence[int]) -> str:
    words = [_KINDS.get(kind, kind), shape_in_words(shape)]
    if spec is not None:
        marks = "~" * (spec.rounding == "stochastic") + " H" * spec.hadamard
        words.append(spec.format + marks)
    return " ".join(words)


def table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Aligned columns under a header; path, lhs and rhs are cut until a line fits ``width``."""
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    flexible = [i for i, name in enumerate(rows[0]) if name in ("path", "lhs", "rhs")]
    while flexible and sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max(flexible, key=lambda i: widths[i])
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    lines = [
        "  ".join(_cut(c, w).ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
        for r in rows
    ]
    return [lines[0], "-" * max(len(line) for line in lines), *lines[1:]]


def _cut(text: str, width: int) -> str:
    """The text with its middle left out; a path or an operand tells most at its end."""
    if len(text) <= width:
        return text
    head = (width - 2) // 3
    return text[:head] + ".." + text[len(text) - (width - 2 - head) :]


def reasons(sites: Sequence[SitePlan]) -> list[str]:
    """Why sites are kept, one line a reason; and what is not as the recipe says."""
    numbers: dict[str, list[str]] = {}
    for s in sites:
        if s.reason:
            label = (
                f"{s.site.number} {s.site.role}" if s.site.phase == "backward" else s.site.number
            )
            numbers.setdefault(s.reason, []).append(str(label))
    return [
        f"kept: {reason}: {', '.join(n[:8])}{f' and {len(n) - 8} more' if len(n) > 8 else ''}"
        for reason, n in numbers.items()
    ]


def wrap(text: str, width: int) -> list[str]:
    """A remark in lines of at most ``width``."""
    return textwrap.wrap(text, max(width, 40), subsequent_indent="  ", break_on_hyphens=False)
