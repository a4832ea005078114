"""Multiplications that are written as products, but are none of matrices."""

from __future__ import annotations

from srjit.program.values import CAPTURED, CONSTANT, Occurrence

_CAPTURED = frozenset({CAPTURED, CONSTANT})


def weighs(o: Occurrence) -> bool:
    """True if it is no product of matrices: a multiple, or matrices that a captured vector weighs.

    A solver of differential equations multiplies so by the length of a step, and adds up stages.
    """
    ranks = [len(v.aval.shape) for v in o.eqn.invars[:2]]
    is_captured = [is_captured_vector(o, side) for side in (0, 1)]
    return 0 in ranks or (any(is_captured) and max(ranks) > 2)


def is_captured_vector(o: Occurrence, side: int) -> bool:
    """True if an operand is a captured array of one dimension, or a constant one."""
    return o.operands[side].sources <= _CAPTURED and len(o.eqn.invars[side].aval.shape) < 2


def multiplies(o: Occurrence) -> bool:
    """True if a vector multiplies as many numbers or rows: vmap makes that of a multiple."""
    *ranks, made = (len(v.aval.shape) for v in (*o.eqn.invars[:2], *o.eqn.outvars))
    return 1 in ranks and made == max(ranks)
