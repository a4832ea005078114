"""The plan of a rewriting: every site, what its operands become, and why; and the report of it."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Sequence
from typing import Any, Literal

from srjit.numerics.quantization import Quantization

Status = Literal["native", "emulated", "kept"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """One matrix multiplication of a program.

    Attributes:
      number: ordinal in execution order, calls expanded, a loop's body counted once.
      path: name-scope path.
      role: ``fprop``, ``dgrad``, ``wgrad`` or ``unknown``.
      phase: ``forward``, ``recompute`` or ``backward``.
      op: the JAX primitive.
      lhs_kind, rhs_kind: ``activation``, ``weight``, ``gradient`` or ``unknown``.
      lhs_shape, rhs_shape, out_shape: shapes.
      dtype: of the result.
      flops: multiplications and additions of one execution.
      trips: product of the lengths of the enclosing loops; an unknown length counts once.
      location: file:line.
      why: how the role was found.
    """

    number: int
    path: str
    role: str
    phase: str
    op: str
    lhs_kind: str
    rhs_kind: str
    lhs_shape: tuple[int, ...]
    rhs_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: str
    flops: int
    trips: int = 1
    location: str = ""
    why: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SitePlan:
    """What becomes of one site.

    Attributes:
      site: the site.
      lhs, rhs: what its operands become; None: high precision.
      status: ``native``, ``emulated`` or ``kept``.
      reason: why it is kept; empty otherwise.
      asked: whether the recipe asked for it to be quantized.
      backward: the plans of its dgrad and wgrad, should the function be differentiated.
    """

    site: Site
    lhs: Quantization | None
    rhs: Quantization | None
    status: Status
    reason: str = ""
    asked: bool = False
    backward: tuple[SitePlan, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.site, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Every site of a program, as ``explain`` returns it.

    Attributes:
      sites: in execution order; where a function is to be differentiated from outside, each forward
        site is followed by its dgrad and wgrad.
      recipe, target, mode: names.
      notes: what else a user should know: rules that matched nothing, kernels left alone, ...
    """

    sites: tuple[SitePlan, ...]
    recipe: str
    target: str
    mode: str
    notes: tuple[str, ...] = ()

    def coverage(self) -> float:
        """The fraction of matrix-multiplication FLOPs that are quantized; 1 if there are none."""
        total = sum(s.site.flops * s.site.trips for s in self.sites)
        done = sum(s.site.flops * s.site.trips for s in self.sites if s.status != "kept")
        return done / total if total else 1.0

    def __str__(self) -> str:
        header = ["#", "path", "role", "op", "lhs", "rhs", "status", "why"]
        rows = [_row(s) for s in self.sites]
        title = (
            f"srjit: recipe {self.recipe}, target {self.target}, mode {self.mode}: "
            f"{len(self.sites)} sites, {100 * self.coverage():.1f} % of FLOPs quantized"
        )
        notes = [f"note: {n}" for n in self.notes]
        return "\n".join([title, *_table([header, *rows]), *notes])

    def to_json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(
            {
                "recipe": self.recipe,
                "target": self.target,
                "mode": self.mode,
                "coverage": self.coverage(),
                "notes": self.notes,
                "sites": [
                    {
                        **dataclasses.asdict(s.site),
                        "lhs": s.lhs and dataclasses.asdict(s.lhs),
                        "rhs": s.rhs and dataclasses.asdict(s.rhs),
                        "status": s.status,
                        "reason": s.reason,
                    }
                    for s in self.sites
                ],
            },
            indent=1,
        )

    def to_html(self) -> str:
        """The report as one HTML page."""
        header = "".join(f"<th>{h}</th>" for h in _HEADER)
        rows = "\n".join(
            f'<tr class="{s.status}">'
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in _row(s))
            + "</tr>"
            for s in self.sites
        )
        notes = "".join(f"<li>{html.escape(n)}</li>" for n in self.notes)
        return _PAGE.format(
            recipe=html.escape(self.recipe),
            target=html.escape(self.target),
            mode=self.mode,
            coverage=100 * self.coverage(),
            count=len(self.sites),
            header=header,
            rows=rows,
            notes=notes,
        )

    def _repr_html_(self) -> str:
        return self.to_html()


_HEADER = ["#", "path", "role", "op", "lhs", "rhs", "status", "why"]
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>srjit: {recipe}</title><style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; }}
td, th {{ border-bottom: 1px solid #ddd; padding: 3px 10px; text-align: left; }}
tr.kept td {{ color: #888; }} tr.native td {{ background: #eefaee; }}
</style></head><body>
<h1>srjit: recipe {recipe}</h1>
<p>Target {target}, mode {mode}: {count} sites, {coverage:.1f} % of matrix-multiplication FLOPs
quantized.</p>
<table><thead><tr>{header}</tr></thead><tbody>
{rows}
</tbody></table>
<ul>{notes}</ul>
</body></html>
"""


def describe(spec: Quantization | None, kind: str) -> str:
    """One operand in a few words: ``gradient nvfp4 stochastic H``."""
    if spec is None:
        return f"{kind} high precision"
    extra = [] if spec.shared == "tensor" else [spec.shared]
    if spec.scaling != "dynamic":
        extra.append(spec.scaling)
    if spec.hadamard:
        extra.append("hadamard")
    return " ".join([kind, spec.format, spec.rounding, *extra])


def _row(plan: SitePlan) -> list[str]:
    site = plan.site
    shape = lambda s: "x".join(map(str, s)) or "()"  # noqa: E731
    role = site.role if site.phase != "recompute" else f"{site.role} (recomputed)"
    return [
        str(site.number),
        site.path or "-",
        role,
        site.op + (f" (x{site.trips})" if site.trips > 1 else ""),
        f"{shape(site.lhs_shape)} {describe(plan.lhs, site.lhs_kind)}",
        f"{shape(site.rhs_shape)} {describe(plan.rhs, site.rhs_kind)}",
        plan.status,
        plan.reason or site.why,
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return [lines[0], "-" * max(len(line) for line in lines), *lines[1:]]
