"""The report of a program: every site, what its operands become, and why."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Callable, Sequence
from typing import Any

from srjit.numerics.quantization import Quantization
from srjit.planning.plan import ProgramPlan
from srjit.planning.site import Residual, Site, SitePlan, WriteBack, listed, shape_in_words
from srjit.products.kinds import label_of
from srjit.recipes import ROLES, Recipe, Rule
from srjit.report.document import Column, Document, Documented, Table, as_json
from srjit.report.repeated import Repeated, repeated


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(Documented):
    """Every site of a program, as ``explain`` returns it.

    Attributes:
      sites: in execution order; where a function is to be differentiated from outside, each forward
        site has the gradients of its operands in ``backward``.
      recipe, target, mode: names.
      notes: what else a user should know: rules that matched nothing, kernels left alone, ...
      write_backs: what becomes of narrow parameters, if the recipe asks for their write-back.
      residuals: what becomes of what the backward pass multiplies cotangents by, if the recipe asks
        for its codes.
      chosen: the recipe itself; None where only its name is known.
    """

    sites: tuple[SitePlan, ...]
    recipe: str
    target: str
    mode: str
    notes: tuple[str, ...] = ()
    write_backs: tuple[WriteBack, ...] = ()
    residuals: tuple[Residual, ...] = ()
    chosen: Recipe | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def of(cls, plan: ProgramPlan) -> Report:
        """The report of a planned program."""
        settings = plan.settings
        return cls(
            sites=plan.rows,
            recipe=settings.recipe.name,
            target=settings.target.name,
            mode=settings.mode,
            notes=plan.notes,
            write_backs=plan.write_backs.reported,
            residuals=plan.coefficients.reported,
            chosen=settings.recipe,
        )

    def forward_only(self) -> Report:
        """The report without the gradients that forward sites would have."""
        sites = tuple(dataclasses.replace(site, backward=()) for site in self.sites)
        return dataclasses.replace(self, sites=sites)

    def pinned(self) -> Recipe:
        """The recipe that chooses as was chosen here: for runs that must not change with the chip.

        What does not pay by the estimates that ``recipe="auto"`` asks for is kept by a rule for its
        path and role, or for its number where others of that path and role are quantized; nothing
        is weighed any more. Of the same program it makes the same codes with the same noise on any
        target and mesh whose arithmetic is the same.

        Raises:
          ValueError: the report is of a module whose recipe it does not tell, or a site's two
            gradients of one role are chosen differently, which no rule says.
        """
        if self.chosen is None:
            raise ValueError("this report tells its recipe's name only: pin that of fn.explain")
        rows = self.with_gradients
        rules: dict[tuple[str, str], Rule] = {}
        for row in (s for s in rows if not s.pays):
            alike = [s for s in rows if s.path == row.path and s.role == row.role]
            path = glob.escape(row.path).replace("#", "[#]")
            if any(s.status != "kept" for s in alike):
                path = f"#{row.number}"
                if any(s.status != "kept" for s in alike if s.number == row.number):
                    raise ValueError(
                        f"{row.described()}: of two such products one is quantized and one does "
                        "not pay, and no rule can tell them apart: keep both, by "
                        "srjit.keep_high_precision() or a rule"
                    )
            rules[path, row.role] = Rule(path=path, role=row.role, keep=row.reason)
        every = (*rules.values(), *self.chosen.rules)
        return dataclasses.replace(self.chosen, pays_on="", rules=every)

    @property
    def with_gradients(self) -> list[SitePlan]:
        """All sites, each followed by its gradients should the function be differentiated."""
        return [part for s in self.sites for part in s.with_gradients]

    def coverage(self, role: str | None = None) -> float:
        """The fraction of matrix-multiplication FLOPs that are quantized; 1 if there are none.

        Those of the gradients count too, should the function be differentiated; and those of what
        is left alone, as far as they are known.

        Args:
          role: of sites of that role only; None: of all.
        """
        sites = [s for s in self.with_gradients if role in (None, s.site.role)]
        work = [(s.site.flops * s.site.trips, s.status != "kept") for s in sites]
        total, done = sum(n for n, _ in work), sum(n for n, quantized in work if quantized)
        return done / total if total else float(not work or any(quantized for _, quantized in work))

    def document(self) -> Document:
        """Returns the report as data: a row for each site, and one for each write-back."""
        rows = self.with_gradients
        return self._document(Table(_COLUMNS, rows, kind=lambda s: s.status, legend=_legend(rows)))

    def short(self) -> Document:
        """Returns the report with one row for all layers that are alike, if it is long."""
        rows = self.with_gradients
        if len(rows) <= _LONG:
            return self.document()
        layers = repeated(rows, lambda s: s.site.path or _place(s.site), _apart)
        legend = " ".join(filter(None, [f"{_legend(rows)};" * bool(_legend(rows)), _OF_LAYERS]))
        return self._document(
            Table(_OF_REPEATED, layers, kind=lambda r: r.first.status, legend=legend)
        )

    def _document(self, sites: Table[Any]) -> Document:
        rows = self.with_gradients
        covered = f"{100 * self.coverage():.1f} % of FLOPs quantized"
        unknown = sum(s.site.role == "unknown" and not s.site.flops for s in rows)
        if 0 < self.coverage() < 1:
            found = [role for role in ROLES if any(s.site.role == role for s in rows)]
            shares = [f"{role} {100 * self.coverage(role):.1f} %" for role in found]
            covered += f" ({', '.join(shares)})"
        covered += f", FLOPs of {unknown} unknown" if unknown else ""
        count = f"{len(self.sites)} sites, {covered}" if self.sites else "no matrix multiplication"
        return Document(
            title=f"recipe {self.recipe}, target {self.target}, mode {self.mode}",
            lead=count,
            tables=[
                sites,
                Table(_WRITTEN, self.write_backs, kind=lambda w: w.status),
                Table(_RESIDUALS, self.residuals, kind=lambda r: r.status, legend=self._kept()),
            ],
            notes=[*reasons(rows), *(f"note: {n}" for n in self.notes)],
        )

    def _kept(self) -> str:
        """The bytes kept for the backward pass, before and after, if the recipe asks for codes."""
        before, after = (sum(getattr(r, n) for r in self.residuals) for n in ("before", "after"))
        return f"kept for the backward pass: {_in_bytes(before)}, now {_in_bytes(after)}"

    def to_json(self) -> str:
        """The report as a JSON object.

        Its keys are ``recipe``, ``target``, ``mode``, ``coverage`` (between 0 and 1), ``notes`` (a
        list of strings), ``write_backs`` (a list of objects with the attributes of ``WriteBack``),
        ``residuals`` (with those of ``Residual``) and ``sites``: a list of objects with the
        attributes of ``Site`` and those of ``SitePlan`` but for ``site``.
        In ``lhs`` and ``rhs`` are the attributes of a ``Quantization``, or null;
        in ``backward`` are objects like these, of the gradients of the site's operands, should the
        function be differentiated from outside.
        """
        return as_json(
            {
                "recipe": self.recipe,
                "target": self.target,
                "mode": self.mode,
                "coverage": self.coverage(),
                "notes": self.notes,
                "write_backs": [dataclasses.asdict(w) for w in self.write_backs],
                "residuals": [dataclasses.asdict(r) for r in self.residuals],
                "sites": [_as_dict(s) for s in self.sites],
            }
        )


def _as_dict(plan: SitePlan) -> dict[str, Any]:
    """A site as JSON has it: the attributes of a Site beside those of its plan."""
    fields = dataclasses.asdict(plan)
    return fields.pop("site") | fields | {"backward": [_as_dict(b) for b in plan.backward]}


_LEGEND = "~: stochastic rounding, otherwise to nearest; H: after a Hadamard transform"
_OF_EXPERTS = "; E: scales of every expert's (group's) own"
_LONG = 20  # rows; a longer report has one row for all layers that are alike
_OF_LAYERS = (
    "a row is for all layers that are alike, with the number of the first; text(full=True) has a "
    "row for each site"
)
_KINDS = {"activation": "act", "gradient": "grad"}


def operand(spec: Quantization | None, shape: Sequence[int], kind: str = "") -> str:
    """Returns an operand's kind, shape and format: ``grad 8x64 nvfp4~ H``."""
    marks = ""
    if spec is not None:
        marks = "~" * (spec.rounding == "stochastic") + " H" * spec.hadamard
        marks += " E" * (spec.group_dim is not None)
    words = _KINDS.get(kind, kind), shape_in_words(shape), f"{spec.format}{marks}" if spec else ""
    return " ".join(filter(None, words))


def _in_full(spec: Quantization | None, shape: Sequence[int], kind: str) -> str:
    """Returns an operand in words: ``8x64 gradient nvfp4 stochastic block hadamard``."""
    if spec is None:
        return f"{shape_in_words(shape)} {kind} high precision"
    extra = (
        spec.shared if spec.shared != "tensor" else "",
        "per expert" if spec.group_dim is not None else "",
        spec.scaling if spec.scaling != "dynamic" else "",
        "hadamard" * spec.hadamard,
        "eden" * (spec.scale_rounding == "eden"),
    )
    words = (shape_in_words(shape), kind, spec.format, spec.rounding, *extra)
    return " ".join(filter(None, words))


def _operands(said: Callable[..., str]) -> list[tuple[str, Callable[[SitePlan], str]]]:
    """Names of both operands, and what tells of them by spec, shape and kind."""
    return [
        ("lhs", lambda s: said(s.lhs, s.site.lhs_shape, s.site.lhs_kind)),
        ("rhs", lambda s: said(s.rhs, s.site.rhs_shape, s.site.rhs_kind)),
    ]


def _place(site: Site) -> str:
    return site.path or "/".join(site.location.rsplit("/", 2)[-2:]) or "-"


def _op(site: Site) -> str:
    return label_of(site.op) + (f" x{site.trips}" if site.trips > 1 else "")


# The columns that tell which site a row is about.
SITE: tuple[Column[SitePlan], ...] = (
    Column("#", lambda s: str(s.site.number)),
    Column("path", lambda s: _place(s.site), narrows="middle"),
    Column("role", lambda s: s.site.role + " again" * (s.site.phase == "recompute")),
    Column("op", lambda s: _op(s.site)),
)
_COLUMNS: tuple[Column[SitePlan], ...] = (
    *SITE,
    *(Column(n, f, narrows="middle", only="terminal") for n, f in _operands(operand)),
    *(Column(n, f, only="page") for n, f in _operands(_in_full)),
    Column("status", lambda s: s.status),
    Column("why", lambda s: s.reason or s.site.why, only="page"),
)


def _legend(rows: Sequence[SitePlan]) -> str:
    specs = [q for s in rows for q in (s.lhs, s.rhs) if q]
    legend = _LEGEND if specs else ""
    return legend + (_OF_EXPERTS if any(q.group_dim is not None for q in specs) else "")


def _apart(plan: SitePlan) -> tuple[str, ...]:
    """The cells of a row in which layers that are alike are equal."""
    named = ("#", "path")
    return (plan.reason, *(c.cell(plan) for c in _TERMINAL if c.name not in named))


_TERMINAL = [column for column in _COLUMNS if column.only != "page"]
_Layers = Repeated[SitePlan]


def _of_repeated(own: Column[SitePlan]) -> list[Column[_Layers]]:
    """The columns of layers that are alike in place of one of sites."""
    if own.name == "path":
        return [Column("path", lambda r: r.path, narrows="middle")]
    count: Column[_Layers] = Column("sites", lambda r: f"x{len(r.rows)}", align="right")
    first: Callable[[_Layers], SitePlan] = lambda r: r.first  # noqa: E731
    return [own.of(first), *([count] if own.name == "op" else [])]


_OF_REPEATED = [column for own in _TERMINAL for column in _of_repeated(own)]


def _written(write: WriteBack) -> str:
    if write.status == "kept":
        return f"kept: {write.reason}"
    return f"{write.op} in float32, rounded stochastically to {write.dtype}"


_WRITTEN: tuple[Column[WriteBack], ...] = (
    Column("path", lambda w: w.path, narrows="middle"),
    Column("kind", lambda w: w.kind),
    Column("value", lambda w: f"{w.dtype} {shape_in_words(w.shape)}"),
    Column("written back", _written, narrows="lines"),
)


def _in_bytes(n: int) -> str:
    unit = min(3, max(0, (n.bit_length() - 1) // 10))
    return f"{n / 1024**unit:.4g} {('B', 'KiB', 'MiB', 'GiB')[unit]}"


def _residual(r: Residual) -> str:
    return f"{r.format}~, a scale a row" if r.format else f"kept as float: {r.reason}"


_RESIDUALS: tuple[Column[Residual], ...] = (
    Column("path", lambda r: r.path or "-", narrows="middle"),
    Column("factor of the gradient", lambda r: f"{r.dtype} {shape_in_words(r.shape)}"),
    Column("before", lambda r: _in_bytes(r.before), align="right"),
    Column("after", lambda r: _in_bytes(r.after), align="right"),
    Column("kept as", _residual, narrows="lines"),
)


def reasons(sites: Sequence[SitePlan]) -> list[str]:
    """Why sites are kept, one line a reason; and what is not as the recipe says."""
    numbers: dict[str, list[str]] = {}
    for s in sites:
        if s.reason:
            role = f" {s.site.role}" if s.site.phase == "backward" else ""
            numbers.setdefault(s.reason, []).append(f"{s.site.number}{role}")
    return [f"kept: {reason}: {listed(n, 8)}" for reason, n in numbers.items()]
