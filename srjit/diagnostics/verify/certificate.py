"""The certificate that ``verify`` returns: what was tested, how sharply, and what is wrong."""

from __future__ import annotations

import dataclasses
import json
import shutil

from srjit.diagnostics.verify.averages import Averages
from srjit.diagnostics.verify.statistics import FALSE_ALARM, Test
from srjit.report.label import Label
from srjit.report.report import finite, html_page, html_table, table, wrap

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

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.wrong

    @property
    def verdict(self) -> str:
        """``unbiased to k bits``, what is wrong, or that there was nothing to round."""
        good = f"unbiased to {self.bits} bits" if self.between else _NOTHING_TO_ROUND
        return "; ".join(self.wrong) or good

    def worst(self, what: str) -> Test | None:
        """The test of a kind that came closest to its limit, or is furthest beyond; None: none."""
        return max((t for t in self.tests if t.what == what), key=lambda t: t.excess, default=None)


_HEADER = ["#", "path", "operand", "format", "shape", "mean bias", "neighbours", "steps", "sites"]
_WIDE = [*_HEADER, "averages", "beyond the largest", "below the smallest", "verdict"]
_LEGEND = (
    "mean bias in steps, others as correlation: the worst found of what chance stays below; "
    "x: beyond it"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """What ``verify`` found.

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
        """Whether nothing is wrong with any operand."""
        return all(o.passed for o in self.operands)

    @property
    def verdict(self) -> str:
        """``unbiased to k bits``, or what is wrong and where."""
        if not self.operands:
            return "nothing is rounded stochastically"
        wrong = [f"{o.name}: {o.verdict}" for o in self.operands if not o.passed]
        bits = [o.bits for o in self.operands if o.between]
        return "; ".join(wrong) or (f"unbiased to {min(bits)} bits" if bits else _NOTHING_TO_ROUND)

    def _lead(self) -> str:
        return (
            f"recipe {self.recipe}, target {self.target}, {self.draws} draws: {self.tests} tests, "
            f"a false alarm in any of them with probability below {FALSE_ALARM:.0e}"
        )

    def __str__(self) -> str:
        width = shutil.get_terminal_size((100, 24)).columns
        rows = table([_HEADER, *(_row(o) for o in self.operands)], width) if self.operands else []
        lines = [
            *(f"{o.name}: {o.verdict}; averages {o.averages}" for o in self.operands),
            *(f"output {name}: averages {found}" for name, found in self.outputs.items()),
            *(f"note: {n}" for n in self.notes),
        ]
        wrapped = [part for line in lines for part in wrap(line, width)]
        summary = "verified" if self.passed else "NOT verified"
        ends = [*wrap(f"srjit: {summary}: {self._lead()}", width), *rows]
        legend = wrap(_LEGEND, width) if rows else []
        return "\n".join([*ends, *legend, *wrapped, *wrap(f"verdict: {self.verdict}", width)])

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
        whole = {
            "passed": self.passed,
            "verdict": self.verdict,
            "recipe": self.recipe,
            "target": self.target,
            "draws": self.draws,
            "tests": self.tests,
            "false_alarm": FALSE_ALARM,
            "notes": self.notes,
            "outputs": {name: found.to_dict() for name, found in self.outputs.items()},
            "operands": operands,
        }
        return json.dumps(finite(whole), indent=1, allow_nan=False)

    def to_html(self) -> str:
        """The certificate as one HTML page, which needs nothing from elsewhere."""
        operands = html_table(_WIDE, [(_kind(o), _wide_row(o)) for o in self.operands])
        outputs = html_table(
            ["output", "averages"], [("", [n, str(a)]) for n, a in self.outputs.items()]
        )
        title = "verified" if self.passed else "not verified"
        lead = f"{self.verdict}. {self._lead()}."
        return html_page(title, lead, [operands, outputs], [_LEGEND, *self.notes])

    def _repr_html_(self) -> str:
        return self.to_html()


def _kind(o: OperandCertificate) -> str:
    return "native" if o.passed else "kept"


def _row(o: OperandCertificate) -> list[str]:
    return [
        str(o.site),
        o.path,
        " ".join(filter(None, [o.role, o.kind, o.operand, *(f"trip {w}" for w in o.where)])),
        o.format,
        "x".join(map(str, o.shape)) or "scalar",
        *(_cell(o.worst(what)) for what in ("bias", "neighbours", "steps", "sites")),
    ]


def _wide_row(o: OperandCertificate) -> list[str]:
    ends = str(o.averages), f"{100 * o.saturation:.2g} %", f"{100 * o.underflow:.2g} %", o.verdict
    return [*_row(o), *ends]


def _cell(test: Test | None) -> str:
    if test is None:
        return "-"
    return f"{abs(test.found):.1g} of {test.limit:.1g}" + " x" * (not test.passed)
