"""The report of a program: every site, what its operands become, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from srjit.numerics.quantization import Quantization
from srjit.planning.plan import ProgramPlan
from srjit.planning.site import SitePlan, WriteBack, shape_in_words
from srjit.products.kinds import label_of
from srjit.report.document import Column, Document, Documented, Row, Table, as_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Documented):
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

    def document(self) -> Document:
        """Returns the report as data: a row for each site, and one for each write-back."""
        legend = _LEGEND if any(s.lhs or s.rhs for s in self.sites) else ""
        covered = f"{100 * self.coverage():.1f} % of FLOPs quantized"
        count = f"{len(self.sites)} sites, {covered}" if self.sites else "no matrix multiplication"
        return Document(
            title=f"recipe {self.recipe}, target {self.target}, mode {self.mode}",
            lead=count,
            tables=[
                Table(_COLUMNS, [_row(s) for s in self.sites], legend),
                Table(_WRITTEN, [_written_row(w) for w in self.write_backs]),
            ],
            notes=[*reasons(self.sites), *(f"note: {n}" for n in self.notes)],
        )

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
        return as_json(
            {
                "recipe": self.recipe,
                "target": self.target,
                "mode": self.mode,
                "coverage": self.coverage(),
                "notes": self.notes,
                "write_backs": [dataclasses.asdict(w) for w in self.write_backs],
                "sites": sites,
            }
        )


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


_PATH = Column(name="path", narrows="middle")
_COLUMNS = [
    *("#", _PATH, "role", "op"),
    *(Column(name=side, narrows="middle", shown="terminal") for side in ("lhs", "rhs")),
    *(Column(name=side, shown="page") for side in ("lhs", "rhs")),
    "status",
    Column(name="why", shown="page"),
]
_WRITTEN = [_PATH, "kind", "value", Column(name="written back", narrows="lines")]
_LEGEND = "~: stochastic rounding, otherwise to nearest; H: after a Hadamard transform"
_KINDS = {"activation": "act", "gradient": "grad"}


def _row(plan: SitePlan) -> Row:
    site = plan.site
    pages = (
        f"{shape_in_words(site.lhs_shape)} {describe(plan.lhs, site.lhs_kind)}",
        f"{shape_in_words(site.rhs_shape)} {describe(plan.rhs, site.rhs_kind)}",
    )
    return Row([*cells(plan), *pages, plan.status, plan.reason or site.why], plan.status)


def cells(plan: SitePlan) -> list[str]:
    """A site in a table: number, path, role, operation, and what is planned for its operands."""
    site = plan.site
    where = site.path or "/".join(site.location.rsplit("/", 2)[-2:]) or "-"
    return [
        str(site.number),
        where,
        site.role + " again" * (site.phase == "recompute"),
        label_of(site.op) + (f" x{site.trips}" if site.trips > 1 else ""),
        _operand(plan.lhs, site.lhs_kind, site.lhs_shape),
        _operand(plan.rhs, site.rhs_kind, site.rhs_shape),
    ]


def _written_row(write: WriteBack) -> Row:
    how = f"{write.op} in float32, rounded stochastically to {write.dtype}"
    if write.status == "kept":
        how = f"kept: {write.reason}"
    cells = [write.path, write.kind, f"{write.dtype} {shape_in_words(write.shape)}", how]
    return Row(cells, write.status)


def _operand(spec: Quantization | None, kind: str, shape: Sequence[int]) -> str:
    words = [_KINDS.get(kind, kind), shape_in_words(shape)]
    if spec is not None:
        marks = "~" * (spec.rounding == "stochastic") + " H" * spec.hadamard
        words.append(spec.format + marks)
    return " ".join(words)


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
