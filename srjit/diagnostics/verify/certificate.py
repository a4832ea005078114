"""The certificate that ``verify`` returns: what was tested, how sharply, and what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from srjit.diagnostics.verify.averages import Averages
from srjit.diagnostics.verify.statistics import FALSE_ALARM, Test
from srjit.planning.site import listed, shape_in_words
from srjit.report.document import Column, Document, Documented, Table, as_json
from srjit.report.label import Label

CLIPS = "clip to it"  # in what is said of elements beyond the largest value
_NOTHING_TO_ROUND = "nothing to round: every element is on the grid already, and nothing was tested"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperandCertificate(Label):
    """One operand, or write-back, with stochastic rounding.

    Attributes:
      site, path, role, operand, kind, where, format: see ``Label``.
      shape: of what is rounded.
      sampled: how many of its elements were summed, by cells; a seeded choice of a large tensor.
      draws: how often it was rounded.
      bits: a coherent bias of 2^-bits steps would have been seen.
      averages: of its draws, against what was rounded.
      between: the fraction of elements between two values of the format: what noise decides.
      saturation: the fraction of elements beyond the largest value.
      underflow: the fraction below the smallest value that is not zero.
      tests: every test.
      wrong: what is wrong, in words.
      allowed: why the recipe lets elements clip here, in words; empty: nothing should clip.
    """

    shape: tuple[int, ...]
    sampled: int
    draws: int
    bits: int
    averages: Averages
    between: float
    saturation: float
    underflow: float
    tests: tuple[Test, ...]
    wrong: tuple[str, ...]
    allowed: str = ""

    @property
    def by_design(self) -> bool:
        """True if all that is wrong is that elements clip, which the recipe allows."""
        return bool(self.allowed and self.wrong) and all(CLIPS in said for said in self.wrong)

    @property
    def passed(self) -> bool:
        """True if nothing is wrong."""
        return not self.wrong

    @property
    def verdict(self) -> str:
        """``unbiased to k bits``, what is wrong, or that there was nothing to round."""
        good = f"unbiased to {self.bits} bits" if self.between else _NOTHING_TO_ROUND
        return "; ".join(self.wrong) or good

    def worst(self, what: str) -> Test | None:
        """The test of a kind that came closest to its limit, or is furthest beyond; None: none."""
        return max((t for t in self.tests if t.what == what), key=lambda t: t.excess, default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate(Documented):
    """The findings of ``verify``.

    Attributes:
      operands: everything with stochastic rounding: operands, then write-backs and casts.
      outputs: averages of the program's outputs, against the same program with only the stochastic
        quantizers removed, by the outputs' paths; both without stochastic write-backs. Where the
        program is not linear in what it rounds (a product of two rounded gradients, a norm),
        averages of its outputs end at a plateau, however unbiased the rounding.
      recipe, target: names.
      draws: how many steps were run.
      tests: how many tests share the probability ``FALSE_ALARM`` of a false alarm.
      notes: what was not looked at.
    """

    operands: tuple[OperandCertificate, ...]
    outputs: dict[str, Averages]
    recipe: str
    target: str
    draws: int
    tests: int
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """True if nothing is wrong with any operand."""
        return all(o.passed for o in self.operands)

    @property
    def verdict(self) -> str:
        """``unbiased to k bits``, or what is wrong and where: defects, then what is by design."""
        if not self.operands:
            return "nothing is rounded stochastically"
        wrong: dict[str, list[str]] = {}
        for o in (o for o in self.operands if not o.passed and not o.by_design):
            wrong.setdefault(o.verdict, []).append(o.name)
        said = [f"{listed(names, 6)}: {verdict}" for verdict, names in wrong.items()]
        clipped: dict[str, list[OperandCertificate]] = {}
        for o in (o for o in self.operands if o.by_design):
            clipped.setdefault(o.allowed, []).append(o)
        said += [_clipped_by_design(reason, found) for reason, found in clipped.items()]
        bits = [o.bits for o in self.operands if o.between]
        return "; ".join(said) or (f"unbiased to {min(bits)} bits" if bits else _NOTHING_TO_ROUND)

    @property
    def by_design(self) -> bool:
        """True if all that is wrong is what the recipe allows."""
        return not self.passed and all(o.passed or o.by_design for o in self.operands)

    def document(self) -> Document:
        """Returns the certificate as data: what was tested, what it found, and the verdict."""
        return Document(
            title="verified" if self.passed else "biased" if self.by_design else "NOT verified",
            lead=f"{self.verdict}. Recipe {self.recipe}, target {self.target}, {self.draws} draws: "
            f"{self.tests} tests, a false alarm in any of them with probability below "
            f"{FALSE_ALARM:.0e}",
            tables=[
                Table(_TESTED, self.operands, _kind, legend=_LEGEND),
                Table(_FOUND, self.operands, _kind),
                Table(_OUTPUTS, list(self.outputs.items())),
            ],
            notes=[f"note: {n}" for n in self.notes],
        )

    def to_json(self) -> str:
        """The certificate as a JSON object.

        Its keys are the attributes of ``Certificate`` with ``passed``, ``verdict`` and
        ``false_alarm``; operands have the attributes of ``OperandCertificate`` with ``passed`` and
        ``verdict``, averages ``bits``, ``slope`` and ``plateau``, tests those of
        ``Test`` with ``passed`` and ``visible``. Infinite and undefined numbers are null.
        """
        operands = [
            {
                **dataclasses.asdict(o),
                "passed": o.passed,
                "verdict": o.verdict,
                "averages": o.averages.to_dict(),
                "tests": [
                    {**dataclasses.asdict(t), "passed": t.passed, "visible": t.visible}
                    for t in o.tests
                ],
            }
            for o in self.operands
        ]
        return as_json(
            {
                **vars(self),
                "passed": self.passed,
                "verdict": self.verdict,
                "false_alarm": FALSE_ALARM,
                "outputs": {name: found.to_dict() for name, found in self.outputs.items()},
                "operands": operands,
            }
        )


def _clipped_by_design(reason: str, found: Sequence[OperandCertificate]) -> str:
    shares = [100 * o.saturation for o in found]
    low, high = f"{min(shares):.2g}", f"{max(shares):.2g}"
    most = f"{low} to {high} %" if low != high else f"{high} %"
    who = f"{len(found)} quantizers clip" if len(found) > 1 else "1 quantizer clips"
    return (
        f"by design: {who} {most} of the elements, {reason}: {listed([o.name for o in found], 6)}"
    )


def _kind(o: OperandCertificate) -> str:
    return "native" if o.passed else "kept"


def _operand(o: OperandCertificate) -> str:
    return " ".join(filter(None, [o.role, o.kind, o.operand, *(f"trip {w}" for w in o.where)]))


def _worst(name: str, *kinds: str) -> Column[OperandCertificate]:
    def cell(o: OperandCertificate) -> str:
        found = [test for what in kinds if (test := o.worst(what))]
        test = max(found, key=lambda t: t.excess, default=None)
        if test is None:
            return "-"
        return f"{abs(test.found):.1g} / {test.limit:.1g}" + " x" * (not test.passed)

    return Column(name, cell)


_LEGEND = (
    "observed value / limit, of the test that is closest to its limit: mean bias in steps, others "
    "as correlation; x: limit exceeded; twice a limit is not missed"
)
_TESTED: tuple[Column[OperandCertificate], ...] = (
    Column("#", lambda o: str(o.site)),
    Column("path", lambda o: o.path, narrows="middle"),
    Column("operand", _operand),
    Column("format", lambda o: o.format),
    Column("shape", lambda o: shape_in_words(o.shape)),
    _worst("mean bias", "bias"),
    _worst("neighbours", "neighbours"),
    _worst("far apart", "distances", "sums", "twins"),
    *(_worst(what, what) for what in ("steps", "sites")),
)
_FOUND: tuple[Column[OperandCertificate], ...] = (
    Column("rounded", lambda o: o.name),
    Column("beyond the largest", lambda o: f"{100 * o.saturation:.2g} %", align="right"),
    Column("below the smallest", lambda o: f"{100 * o.underflow:.2g} %", align="right"),
    Column("averages", lambda o: str(o.averages), narrows="lines"),
    Column("verdict", lambda o: "clips by design" if o.by_design else o.verdict, narrows="lines"),
)
_OUTPUTS: tuple[Column[tuple[str, Averages]], ...] = (
    Column("output", lambda o: o[0]),
    Column("averages", lambda o: str(o[1]), narrows="lines"),
)
