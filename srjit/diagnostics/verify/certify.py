"""Verifies a program: rounds what it rounds again and again, and judges what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srjit.diagnostics.verify.averages import Averages, Error, checkpoints
from srjit.diagnostics.verify.capture import Capture, Captured, Execution
from srjit.diagnostics.verify.certificate import Certificate
from srjit.diagnostics.verify.judgement import Found, judge
from srjit.diagnostics.verify.residuals import Grid, Residuals, draw_residuals
from srjit.jaxprs.observation import Rounding
from srjit.numerics.formats import get_format, get_storage
from srjit.numerics.quantization import Quantization
from srjit.recipes import Recipe
from srjit.report.label import Label
from srjit.report.progress import progress
from srjit.report.report import Report
from srjit.targets import Target


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
    found: list[Found] = []
    notes = _notes(seen, report, target)
    executions = sorted(seen.executions.items(), key=_order)
    for (rounding, where), captured in progress(executions, "verify, roundings"):
        label = dataclasses.replace(rounding.label, where=where)
        if not captured.operand.size:
            notes.append(f"{label.name}: not verified, what it rounds is empty")
            continue
        residuals, finite = _redrawn(rounding, label, captured)
        if 0 < finite < 1:
            lost = f"{100 * (1 - finite):.2g} % of the elements are not finite"
            notes.append(f"{label.name}: {lost}: they are left out")
        found.append(Found(label, residuals, captured.keys, rounding.bits, finite > 0))
    operands, tests = judge(found)
    specs = {
        (p.site.number, p.site.role, side): q
        for p in report.with_gradients
        for side, q in (("lhs", p.lhs), ("rhs", p.rhs))
    }
    return Certificate(
        operands=tuple(
            dataclasses.replace(o, allowed=_allowed(specs.get((o.site, o.role, o.operand))))
            for o in operands
        ),
        outputs=outputs,
        recipe=report.recipe,
        target=report.target,
        draws=draws,
        tests=tests,
        notes=tuple(notes),
    )


def _allowed(q: Quantization | None) -> str:
    """Why elements may clip in a quantization, by what it says of scales; empty: they may not."""
    if q is None:
        return ""
    if q.scaling != "dynamic":
        return f"as scales that are {'given' if q.scaling == 'static' else 'of earlier steps'} do"
    if q.scale_rounding == "standard" and not get_format(q.format).scales.takes_amax:
        return f"as {q.format} specifies; with scales rounded up none would"
    return ""


def _notes(seen: Capture, report: Report, target: Target) -> list[str]:
    notes: list[str] = []
    if seen.left_out:
        notes.append(f"{seen.left_out} more executions, in loops or shards: not looked at")
    specs = [
        q for p in report.with_gradients for q in (p.lhs, p.rhs) if q and q.rounding == "stochastic"
    ]
    if specs and not any(rounding.label.operand for rounding, _ in seen.executions):
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
    for step in progress(range(draws), "verify, runs"):
        seen.step = step
        outputs = run(step)
        jax.effects_barrier()
        yield step, outputs


def _average_outputs(
    run: Callable[[int], Any], reference: Callable[[int], Any], seen: Capture, draws: int
) -> dict[str, Averages]:
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


def _order(item: tuple[Execution, Captured]) -> tuple[Any, ...]:
    (rounding, where), _ = item
    label = rounding.label
    return not label.operand, label.site, label.operand, where


def _redrawn(rounding: Rounding, label: Label, captured: Captured) -> tuple[Residuals, float]:
    """The residuals of what was captured, under the keys of all steps; and how much is finite."""
    x = jnp.asarray(captured.operand)
    given = jax.tree.map(jnp.asarray, captured.given)
    expected, scale = jax.jit(rounding.unrounded)(x, *given)
    grid = Grid.of(expected, scale, get_storage(label.format).element)
    words = np.array([captured.keys[step] for step in sorted(captured.keys)], np.uint32)
    told = jnp.isfinite(expected) & jnp.isfinite(scale)
    finite = float(jnp.mean(told, dtype=jnp.float32))
    return draw_residuals(rounding.rounded, jnp.asarray(words), grid, (x, *given)), finite
