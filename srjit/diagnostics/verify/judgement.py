"""Judges what many draws of a program's roundings are like: certificates of operands."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from srjit.diagnostics.verify.certificate import CLIPS, OperandCertificate
from srjit.diagnostics.verify.residuals import SATURATED, Residuals
from srjit.diagnostics.verify.statistics import FALSE_ALARM, Signed, Test, probability_of_no_change
from srjit.report.label import Label


@dataclasses.dataclass(frozen=True)
class Found:
    """The residuals of one rounding, and the keys that made them.

    Attributes:
      bits: of its noise.
      is_finite: whether any element is.
    """

    label: Label
    residuals: Residuals
    keys: dict[int, tuple[int, int]]
    bits: int
    is_finite: bool = True


def judge(found: Sequence[Found]) -> tuple[list[OperandCertificate], int]:
    """The certificate of each operand, and how many tests they are: each gets an equal share."""
    own: list[list[Signed]] = [[*alone(f.residuals, f.bits)] for f in found]
    for i, f in enumerate(found):
        for other in found[:i]:
            if f.keys.keys() == other.keys.keys():
                own[i] += f.residuals.with_another(other.residuals, other.label.name)
    tests = sum(map(len, own)) + len(found)  # the last: that nothing ever changes
    delta = FALSE_ALARM / max(tests, 1)
    operands = [
        certificate(f, [t.judged(delta) for t in signed], delta, _shared_keys(f, found[:i]))
        for i, (f, signed) in enumerate(zip(found, own, strict=True))
    ]
    return operands, tests


def alone(residuals: Residuals, bits: int) -> Iterable[Signed]:
    """The sums that tell what is wrong with one rounding, whatever the others do."""
    yield from residuals.biases(bits)
    yield from residuals.pairs()
    yield from residuals.sums(bits)
    yield residuals.steps()


_IGNORED = (
    "the noise is ignored: every draw rounds alike, as rounding to nearest would",
    "nothing is rounded: every draw is what it should be on average",
)
_ONE_KEY = "one key serves several steps"


def _shared_keys(f: Found, others: Sequence[Found]) -> list[str]:
    """Complaints about keys that are used again: of 2^64, no two are equal by chance."""
    wrong: list[str] = []
    if len(set(f.keys.values())) < len(f.keys):
        wrong.append(_ONE_KEY)
    for other in others:
        if any(f.keys[step] == other.keys.get(step) for step in f.keys):
            wrong.append(f"its key is that of {other.label.name}")
    return wrong


def certificate(f: Found, tests: list[Test], delta: float, shared: list[str]) -> OperandCertificate:
    """The certificate of one rounding.

    Args:
      f: what was found.
      tests: of it, judged.
      delta: the probability of a false alarm that each of them has.
      shared: what is wrong with its keys.
    """
    r, label = f.residuals, f.label
    if not f.is_finite:
        wrong = ["no element is finite: nothing could be tested"]
    elif r.never_change() and _must_change(r, delta):
        wrong = shared if _ONE_KEY in shared else [*shared, _IGNORED[r.never_rounds()]]
    else:
        wrong = [*_bias_in_words(tests, r, label.format), *shared, *_correlation_in_words(tests)]
    return OperandCertificate(
        **vars(label),
        shape=r.grid.shape,
        sampled=len(r.chosen),
        draws=r.draws,
        bits=_bits(tests, f.bits),
        averages=r.averages,
        between=r.grid.between(),
        saturation=r.grid.saturation(),
        underflow=r.grid.underflow(),
        tests=tuple(tests),
        wrong=tuple(wrong),
    )


def _must_change(r: Residuals, delta: float) -> bool:
    """True if independent noise would round some element of ``head`` in two ways."""
    fractions = r.grid.fraction[: r.head.shape[1]]
    return probability_of_no_change(fractions, r.draws) < math.log10(delta)


def _bits(tests: Sequence[Test], most: int) -> int:
    """The bits of a step at which all elements together would show a coherent bias."""
    visible = [t.visible for t in tests if t.what == "bias" and t.where.startswith("all elements")]
    worst = max((v for v in visible if math.isfinite(v) and v > 0), default=1.0)
    return max(0, min(most, math.floor(-math.log2(worst))))


def _bias_in_words(tests: Sequence[Test], r: Residuals, fmt: str) -> list[str]:
    failed = [t for t in tests if t.what == "bias" and not t.passed]
    clipped = [t for t in failed if t.where.startswith(SATURATED)]
    others = [t for t in failed if t not in clipped]
    wrong = [
        f"biased: {100 * r.grid.saturation():.2g} % of the elements are beyond the largest value "
        f"of {fmt} and {CLIPS}, {abs(t.found):.2g} steps on average; scales rounded up do not"
        for t in clipped
    ]
    if others:
        worst = max(others, key=lambda t: t.excess)
        wrong.append(
            f"biased by {worst.found:+.2g} steps, {worst.excess:.2g} times what chance does: "
            f"{worst.where} ({len(others)} of {sum(t.what == 'bias' for t in tests)} sums)"
        )
    return wrong


_CORRELATED = {
    "neighbours": "neighbouring elements share noise",
    "distances": "elements at a distance share noise",
    "sums": "sums of elements vary more, or less, than noise that none share",
    "twins": "some elements tell what others are",
    "steps": "one step's noise comes again in the next",
    "sites": "two quantizations share noise",
}


def _correlation_in_words(tests: Sequence[Test]) -> list[str]:
    wrong: list[str] = []
    for what, words in _CORRELATED.items():
        failed = [t for t in tests if t.what == what and not t.passed]
        if failed:
            worst = max(failed, key=lambda t: t.excess)
            wrong.append(f"{words}: correlation {worst.found:+.2g}, {worst.where}")
    return wrong
