"""``verify_function``: the tests of ``verify`` for any function that rounds at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srjit.diagnostics.verify.certificate import OperandCertificate
from srjit.diagnostics.verify.judgement import Found, alone, certificate
from srjit.diagnostics.verify.residuals import Grid, draw_residuals
from srjit.diagnostics.verify.statistics import FALSE_ALARM
from srjit.numerics.formats import get_storage
from srjit.numerics.random_bits import as_key
from srjit.numerics.rounding import NOISE_BITS
from srjit.report.label import Label


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
        element = get_storage(dtype).element
        grid, name = Grid.of(expected, scale, element), element.name
    base = jax.random.wrap_key_data(jnp.stack(as_key(key)), impl="threefry2x32")
    _check(jax.eval_shape(draw, base), expected, scale if step is None else step)
    residuals = draw_residuals(draw, jax.random.split(base, draws), grid)
    signed = [*alone(residuals, bits)]
    delta = FALSE_ALARM / (len(signed) + 1)
    drawn = getattr(draw, "__name__", "")
    label = Label(site=0, path=drawn, role="", operand="", kind="", format=name)
    found = Found(label, residuals, {}, bits)
    return certificate(found, [t.judged(delta) for t in signed], delta, [])


def _check(drawn: Any, expected: Any, step: Any) -> None:
    expected, step = np.asarray(expected, np.float64), np.asarray(step, np.float64)
    if drawn.shape != expected.shape:
        raise ValueError(f"draw returns {drawn.shape}, and expected has the shape {expected.shape}")
    if not expected.size or not np.isfinite(expected).all():
        raise ValueError("expected is empty or not finite: give what can be rounded")
    if not (np.isfinite(step).all() and (step >= 0).all() and step.any()):
        raise ValueError("step, or scale, is a distance: positive and finite")
