"""Verification: rounds what a program rounds again and again, and judges what comes out."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srjit.diagnostics import capture
from srjit.diagnostics.averages import Averages, Error, checkpoints
from srjit.diagnostics.capture import Capture, Captured, Place
from srjit.diagnostics.certificate import Certificate, OperandCertificate
from srjit.diagnostics.residuals import (
    SATURATED,
    Grid,
    Residuals,
    draw_residuals,
)
from srjit.diagnostics.statistics import FALSE_ALARM, Signed, Test, probability_of_no_change
from srjit.numerics.formats import get_element, get_format
from srjit.numerics.random_bits import as_key
from srjit.plan import Report

BITS = 24  # of the noise, where quantizers are emulated


# ------------------------------------------------------------------------------------ a program


def certify(
    run: Callable[[int], Any],
    reference: Callable[[], Any],
    seen: Capture,
    report: Report,
    draws: int,
) -> Certificate:
    """Runs a program and judges its stochastic quantizers.

    Args:
      run: of a step's number, the program's outputs; ``seen`` observes it.
      reference: the outputs of the same program without its stochastic quantizers.
      seen: what observes the program.
      report: of its sites.
      draws: how many steps to run.

    Raises:
      ValueError: fewer than 4 draws.
    """
    if draws < 4:
        raise ValueError(
            f"draws={draws}: verification compares steps, and takes 4 of them at least"
        )
    outputs = _average_outputs(run, reference, seen, draws)
    found: list[_Found] = []
    notes = _notes(seen, report)
    for place, captured in sorted(seen.places.items(), key=lambda item: _order(item[0])):
        label = _Label.of(place, report)
        residuals = _redrawn(place, captured)
        if residuals is None:
            notes.append(f"{label.name}: not verified, its operand is empty or not finite")
            continue
        found.append(_Found(label, residuals, captured.keys))
    operands, tests = _judge(found)
    return Certificate(
        operands=tuple(operands),
        outputs=outputs,
        recipe=report.recipe,
        target=report.target,
        draws=draws,
        tests=tests,
        notes=tuple(notes),
    )


def _notes(seen: Capture, report: Report) -> list[str]:
    notes: list[str] = []
    if seen.left_out:
        notes.append(
            f"{seen.left_out} more executions of quantizers, in loops or shards: not looked at"
        )
    planned = [q for p in report.sites for q in (p.lhs, p.rhs) if q]
    if not seen.places and any(q.rounding == "stochastic" for q in planned):
        notes.append(
            "stochastic operands that only differentiating the function adds are not in its "
            "program: verify the function that differentiates it"
        )
    written = sum(w.status == "stochastic" for w in report.write_backs)
    if written:
        notes.append(
            f"{written} write-backs that round stochastically: not looked at, and left out of the "
            "steps; verify_function tests the rounding that they do"
        )
    specs = [q for s in report.sites for q in (s.lhs, s.rhs) if q]
    if any(q.scale_rounding == "eden" and q.rounding == "stochastic" for q in specs):
        notes.append(
            "MS-EDEN rounds elements to nearest after a random rotation: no element by itself is "
            "unbiased, and only the outputs' averages tell of it here"
        )
    return notes


def _average_outputs(
    run: Callable[[int], Any], reference: Callable[[], Any], seen: Capture, draws: int
) -> dict[str, Averages]:
    """How averages converge of every floating-point output, by its path; steps through ``seen``."""
    exact = {name: np.asarray(x, np.float64) for name, x in _floats(reference())}
    sums = {name: np.zeros_like(x) for name, x in exact.items()}
    errors: dict[str, dict[int, Error]] = {name: {} for name in exact}
    points = set(checkpoints(draws))
    for step in range(draws):
        seen.step = step
        for name, x in _floats(run(step)):
            sums[name] += np.asarray(x, np.float64)
        jax.effects_barrier()
        if step + 1 in points:
            for name, x in exact.items():
                errors[name][step + 1] = Error.of(sums[name] / (step + 1), x)
    return {name: Averages(found) for name, found in errors.items()}


def _floats(outputs: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    named = [(jax.tree_util.keystr(path) or "output", jnp.asarray(x)) for path, x in leaves]
    return [(name, x) for name, x in named if jnp.issubdtype(x.dtype, jnp.floating)]


def _order(place: Place) -> tuple[Any, ...]:
    quantizer, where = place
    return quantizer.site, quantizer.side, where


@dataclasses.dataclass(frozen=True)
class _Label:
    """What an operand is called."""

    site: int
    path: str
    role: str
    side: str
    kind: str
    where: tuple[int, ...]
    format: str

    @classmethod
    def of(cls, place: Place, report: Report) -> _Label:
        quantizer, where = place
        number, side = quantizer.site, ("lhs", "rhs")[quantizer.side]
        plan = next((p for p in report.sites if p.site.number == number), None)
        if plan is None:
            return cls(number, "", "unknown", side, "unknown", where, quantizer.spec.format)
        kind = (plan.site.lhs_kind, plan.site.rhs_kind)[quantizer.side]
        path = plan.site.path or plan.site.location
        return cls(number, path, plan.site.role, side, kind, where, quantizer.spec.format)

    @property
    def name(self) -> str:
        trip = f" trip {','.join(map(str, self.where))}" if self.where else ""
        return f"site {self.site} {self.role} {self.side}{trip}"


def _redrawn(place: Place, captured: Captured) -> Residuals | None:
    """The residuals of a captured operand under the keys of all steps."""
    quantizer = place[0]
    x = jnp.asarray(captured.operand)
    before = None if captured.before is None else jnp.asarray(captured.before)
    expected, scale = jax.jit(functools.partial(capture.unrounded, quantizer))(x, before)
    if not x.size or not bool(jnp.all(jnp.isfinite(expected))):
        return None
    grid = Grid.of(expected, scale, get_format(quantizer.spec.format).element)
    words = np.array([captured.keys[step] for step in sorted(captured.keys)], np.uint32)
    draw = functools.partial(capture.rounded, quantizer)
    return draw_residuals(draw, jnp.asarray(words), grid, (x, before))


# ----------------------------------------------------------------------------------- judgement


@dataclasses.dataclass(frozen=True)
class _Found:
    """The residuals of one operand, and the keys that made them."""

    label: _Label
    residuals: Residuals
    keys: dict[int, tuple[int, int]]


def _judge(found: Sequence[_Found]) -> tuple[list[OperandCertificate], int]:
    """The certificate of each operand, and how many tests they are: each gets an equal share."""
    own: list[list[Signed]] = [[*_alone(f.residuals, BITS)] for f in found]
    for i, f in enumerate(found):
        for other in found[:i]:
            if f.keys.keys() == other.keys.keys():
                own[i] += f.residuals.with_another(other.residuals, other.label.name)
    tests = sum(map(len, own)) + len(found)  # the last: that nothing ever changes
    delta = FALSE_ALARM / max(tests, 1)
    operands = [
        _certificate(f, [t.judged(delta) for t in signed], delta, _shared_keys(f, found[:i]))
        for i, (f, signed) in enumerate(zip(found, own, strict=True))
    ]
    return operands, tests


def _alone(residuals: Residuals, bits: int) -> Iterable[Signed]:
    yield from residuals.biases(bits)
    yield from residuals.neighbours()
    yield residuals.steps()


def _shared_keys(f: _Found, others: Sequence[_Found]) -> list[str]:
    """Where the same key is used again: of 2^64 keys, no two are equal by chance."""
    wrong: list[str] = []
    if len(set(f.keys.values())) < len(f.keys):
        wrong.append("one key serves several steps")
    for other in others:
        if any(f.keys[step] == other.keys.get(step) for step in f.keys):
            wrong.append(f"its key is that of {other.label.name}")
    return wrong


def _certificate(
    f: _Found, tests: list[Test], delta: float, shared: list[str]
) -> OperandCertificate:
    r, label = f.residuals, f.label
    if r.never_change() and _must_change(r, delta):
        wrong = shared or [
            "the noise is ignored: every draw rounds alike, as rounding to nearest would"
        ]
    else:
        wrong = [*_bias_in_words(tests, r, label.format), *shared, *_correlation_in_words(tests)]
    return OperandCertificate(
        site=label.site,
        path=label.path,
        role=label.role,
        operand=label.side,
        kind=label.kind,
        where=label.where,
        format=label.format,
        shape=r.grid.shape,
        sampled=len(r.chosen),
        draws=r.draws,
        bits=_bits(tests),
        averages=r.averages,
        saturation=r.grid.saturation(),
        underflow=r.grid.underflow(),
        tests=tuple(tests),
        wrong=tuple(wrong),
    )


def _must_change(r: Residuals, delta: float) -> bool:
    """Whether independent noise would round some element of ``head`` in two ways."""
    fractions = r.grid.fraction[: r.head.shape[1]]
    return probability_of_no_change(fractions, r.draws) < math.log10(delta)


def _bits(tests: Sequence[Test]) -> int:
    """How many bits of a step a coherent bias may not have: what all elements together show."""
    visible = [t.visible for t in tests if t.what == "bias" and t.where.startswith("all elements")]
    worst = max((v for v in visible if math.isfinite(v) and v > 0), default=1.0)
    return max(0, min(BITS, math.floor(-math.log2(worst))))


def _bias_in_words(tests: Sequence[Test], r: Residuals, fmt: str) -> list[str]:
    failed = [t for t in tests if t.what == "bias" and not t.passed]
    clipped = [t for t in failed if t.where.startswith(SATURATED)]
    others = [t for t in failed if t not in clipped]
    wrong = [
        f"biased: {100 * r.grid.saturation():.2g} % of the elements are beyond the largest value "
        f"of {fmt} and clip to it, {abs(t.found):.2g} steps on average; scales rounded up do not"
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


# ---------------------------------------------------------------------------- any other function


def verify_function(
    draw: Callable[[jax.Array], jax.Array],
    expected: Any,
    *,
    step: Any = None,
    dtype: Any = None,
    scale: Any = 1.0,
    draws: int = 256,
    key: Any = 0,
    bits: int = BITS,
) -> OperandCertificate:
    """The tests of ``SrjitFunction.verify`` for any function that rounds at random.

    Args:
      draw: of a typed PRNG key, an array; it is traced.
      expected: what it should be on average, of the same shape.
      step: distance of the values that it rounds to: a number, or an array that broadcasts against
        ``expected``, whose multiples they are.
      dtype: in place of ``step``, what it rounds to: a dtype such as ``jnp.float8_e4m3fn``, or the
        name of a format.
      scale: with ``dtype``: what its values are multiplied by.
      draws: how often to draw.
      key: a typed PRNG key or an integer seed.
      bits: of the noise: how far probabilities may be off, as 2^-bits.

    Returns:
      What was found, with ``.passed`` and ``.verdict``.

    Raises:
      ValueError: neither or both of ``step`` and ``dtype`` are given, or fewer than 4 draws.
    """
    if (step is None) == (dtype is None):
        raise ValueError("verify_function takes step=, or dtype= and scale=: what it rounds to")
    if draws < 4:
        raise ValueError(f"draws={draws}: verification takes 4 draws at least")
    if dtype is None:
        grid, name = Grid.of_steps(expected, step), "steps"
    else:
        grid, name = Grid.of(expected, scale, get_element(dtype)), get_element(dtype).name
    base = jax.random.wrap_key_data(jnp.stack(as_key(key)), impl="threefry2x32")
    residuals = draw_residuals(draw, jax.random.split(base, draws), grid)
    signed = [*_alone(residuals, bits)]
    delta = FALSE_ALARM / (len(signed) + 1)
    label = _Label(0, getattr(draw, "__name__", ""), "", "", "", (), name)
    return _certificate(_Found(label, residuals, {}), [t.judged(delta) for t in signed], delta, [])
