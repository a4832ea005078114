"""Verification: rounds what a program rounds again and again, and judges what comes out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srjit.diagnostics.verify.averages import Averages, Error, checkpoints
from srjit.diagnostics.verify.capture import Capture, Captured, Place
from srjit.diagnostics.verify.certificate import Certificate, OperandCertificate
from srjit.diagnostics.verify.residuals import SATURATED, Grid, Residuals, draw_residuals
from srjit.diagnostics.verify.statistics import FALSE_ALARM, Signed, Test, probability_of_no_change
from srjit.jaxprs.observation import Rounding
from srjit.numerics.formats import get_storage
from srjit.numerics.random_bits import as_key
from srjit.numerics.rounding import NOISE_BITS
from srjit.recipes import Recipe
from srjit.report.label import Label
from srjit.report.report import Report
from srjit.targets import Target

# ------------------------------------------------------------------------------------ a program


def certify(
    program: Callable[[Recipe], Callable[[int], Any]],
    recipe: Recipe,
    target: Target,
    seen: Capture,
    report: Report,
    draws: int,
) -> Certificate:
    """Runs a program and judges its stochastic rounding.

    Args:
      program: of a recipe and a step's number, the program's outputs; ``seen`` observes it.
      recipe: the program's own.
      target: what the program is for.
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
    products = recipe.without_write_backs()
    outputs = _average_outputs(program(products), program(products.without_noise()), seen, draws)
    if any(w.status == "stochastic" for w in report.write_backs):
        # Runs of their own: their noise would hide what averages of the outputs converge to.
        for _ in _run(program(recipe), seen, draws):
            pass
    found: list[_Found] = []
    notes = _notes(seen, report, target)
    for (rounding, where), captured in sorted(seen.places.items(), key=_order):
        label = dataclasses.replace(rounding.label, where=where)
        if not captured.operand.size:
            notes.append(f"{label.name}: not verified, what it rounds is empty")
            continue
        residuals, finite = _redrawn(rounding, label, captured)
        if 0 < finite < 1:
            lost = f"{100 * (1 - finite):.2g} % of the elements are not finite"
            notes.append(f"{label.name}: {lost}: they are left out")
        found.append(_Found(label, residuals, captured.keys, rounding.bits, finite > 0))
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


def _notes(seen: Capture, report: Report, target: Target) -> list[str]:
    notes: list[str] = []
    if seen.left_out:
        notes.append(f"{seen.left_out} more executions, in loops or shards: not looked at")
    specs = [
        q for p in report.with_gradients for q in (p.lhs, p.rhs) if q and q.rounding == "stochastic"
    ]
    if specs and not any(rounding.label.operand for rounding, _ in seen.places):
        notes.append(
            "stochastic operands that only differentiating the function adds are not in its "
            "program: verify the function that differentiates it"
        )
    if any(q.scale_rounding == "eden" for q in specs):
        notes.append(
            "MS-EDEN rounds elements to nearest after a random rotation: no element by itself is "
            "unbiased, and only the outputs' averages tell of it here"
        )
    if not target.is_attached:
        remarks = [said for said in dict.fromkeys(map(target.remark, specs)) if said]
        notes += [f"{said}; here it was rounded by the formula" for said in remarks]
    return notes


def _run(run: Callable[[int], Any], seen: Capture, draws: int) -> Iterator[tuple[int, Any]]:
    """Every step's number and outputs, while ``seen`` observes it."""
    for step in range(draws):
        seen.step = step
        outputs = run(step)
        jax.effects_barrier()
        yield step, outputs


def _average_outputs(
    run: Callable[[int], Any], reference: Callable[[int], Any], seen: Capture, draws: int
) -> dict[str, Averages]:
    """How averages converge of every floating-point output, by its path."""
    exact = {name: np.asarray(x, np.float64) for name, x in _floats(reference(0))}
    sums = {name: np.zeros_like(x) for name, x in exact.items()}
    errors: dict[str, dict[int, Error]] = {name: {} for name in exact}
    points = set(checkpoints(draws))
    for step, outputs in _run(run, seen, draws):
        for name, x in _floats(outputs):
            sums[name] += np.asarray(x, np.float64)
        if step + 1 in points:
            for name, x in exact.items():
                errors[name][step + 1] = Error.of(sums[name] / (step + 1), x)
    return {name: Averages(found) for name, found in errors.items()}


def _floats(outputs: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    named = [(jax.tree_util.keystr(path) or "output", jnp.asarray(x)) for path, x in leaves]
    return [(name, x) for name, x in named if jnp.issubdtype(x.dtype, jnp.floating)]


def _order(item: tuple[Place, Captured]) -> tuple[Any, ...]:
    """Operands by their sites, then what is written."""
    (rounding, where), _ = item
    label = rounding.label
    return not label.operand, label.site, label.operand, where


def _redrawn(rounding: Rounding, label: Label, captured: Captured) -> tuple[Residuals, float]:
    """The residuals of what was captured, under the keys of all steps; and how much is finite."""
    x = jnp.asarray(captured.operand)
    before = None if captured.before is None else jnp.asarray(captured.before)
    expected, scale = jax.jit(rounding.unrounded)(x, before)
    grid = Grid.of(expected, scale, get_storage(label.format).element)
    words = np.array([captured.keys[step] for step in sorted(captured.keys)], np.uint32)
    told = jnp.isfinite(expected) & jnp.isfinite(scale)
    finite = float(jnp.mean(told, dtype=jnp.float32))
    return draw_residuals(rounding.rounded, jnp.asarray(words), grid, (x, before)), finite


# ----------------------------------------------------------------------------------- judgement


@dataclasses.dataclass(frozen=True)
class _Found:
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


def _judge(found: Sequence[_Found]) -> tuple[list[OperandCertificate], int]:
    """The certificate of each operand, and how many tests they are: each gets an equal share."""
    own: list[list[Signed]] = [[*_alone(f.residuals, f.bits)] for f in found]
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


_IGNORED = (
    "the noise is ignored: every draw rounds alike, as rounding to nearest would",
    "nothing is rounded: every draw is what it should be on average",
)
_ONE_KEY = "one key serves several steps"


def _shared_keys(f: _Found, others: Sequence[_Found]) -> list[str]:
    """Where the same key is used again: of 2^64 keys, no two are equal by chance."""
    wrong: list[str] = []
    if len(set(f.keys.values())) < len(f.keys):
        wrong.append(_ONE_KEY)
    for other in others:
        if any(f.keys[step] == other.keys.get(step) for step in f.keys):
            wrong.append(f"its key is that of {other.label.name}")
    return wrong


def _certificate(
    f: _Found, tests: list[Test], delta: float, shared: list[str]
) -> OperandCertificate:
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
    """Whether independent noise would round some element of ``head`` in two ways."""
    fractions = r.grid.fraction[: r.head.shape[1]]
    return probability_of_no_change(fractions, r.draws) < math.log10(delta)


def _bits(tests: Sequence[Test], most: int) -> int:
    """How many bits of a step a coherent bias may not have: what all elements together show."""
    visible = [t.visible for t in tests if t.what == "bias" and t.where.startswith("all elements")]
    worst = max((v for v in visible if math.isfinite(v) and v > 0), default=1.0)
    return max(0, min(most, math.floor(-math.log2(worst))))


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
    bits: int = NOISE_BITS,
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
      ValueError: neither or both of ``step`` and ``dtype`` are given, fewer than 4 draws, or what
        is expected is empty, not finite, or of another shape than what is drawn.
    """
    if (step is None) == (dtype is None):
        raise ValueError("verify_function takes step=, or dtype= and scale=: what it rounds to")
    if draws < 4:
        raise ValueError(f"draws={draws}: verification takes 4 draws at least")
    if dtype is None:
        grid, name = Grid.of_steps(expected, step), "steps"
    else:
        grid, name = (
            Grid.of(expected, scale, get_storage(dtype).element),
            get_storage(dtype).element.name,
        )
    base = jax.random.wrap_key_data(jnp.stack(as_key(key)), impl="threefry2x32")
    _check(jax.eval_shape(draw, base), expected, scale if step is None else step)
    residuals = draw_residuals(draw, jax.random.split(base, draws), grid)
    signed = [*_alone(residuals, bits)]
    delta = FALSE_ALARM / (len(signed) + 1)
    drawn = getattr(draw, "__name__", "")
    label = Label(site=0, path=drawn, role="", operand="", kind="", format=name)
    found = _Found(label, residuals, {}, bits)
    return _certificate(found, [t.judged(delta) for t in signed], delta, [])


def _check(drawn: Any, expected: Any, step: Any) -> None:
    """Raises unless draws can be compared with what is expected."""
    expected, step = np.asarray(expected, np.float64), np.asarray(step, np.float64)
    if drawn.shape != expected.shape:
        raise ValueError(f"draw returns {drawn.shape}, and expected has the shape {expected.shape}")
    if not expected.size or not np.isfinite(expected).all():
        raise ValueError("expected is empty or not finite: give what can be rounded")
    if not (np.isfinite(step).all() and (step >= 0).all() and step.any()):
        raise ValueError("step, or scale, is a distance: positive and finite")
