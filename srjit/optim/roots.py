"""Inputs of a program that it takes the root of: the second moments of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend import core

Inputs = frozenset[int]
_NONE: Inputs = frozenset()

# What is, element by element, a sum, a multiple or a choice of operands. A product of two values
# that have an input in common is a square: its root is none of the input's.
_LINEAR = {
    "add", "add_any", "sub", "mul", "div", "max", "min", "clamp", "select_n", "neg", "reshape",
    "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "convert_element_type", "copy",
    "copy_p", "reduce_precision", "sharding_constraint", "reshard", "optimization_barrier",
}  # fmt: skip
_ROOTS = {"sqrt", "rsqrt", "pow", "cbrt"}


def under_roots(closed: Any) -> set[int]:
    """The numbers of a closed jaxpr's inputs that it takes a root of, plus or times anything."""
    found: set[int] = set()
    _walk(closed.jaxpr, [frozenset({i}) for i in range(len(closed.jaxpr.invars))], found)
    return found


def _walk(jaxpr: Any, inputs: Sequence[Inputs], found: set[int]) -> list[Inputs]:
    """The inputs that every output is made of; adds to ``found`` what a root is taken of."""
    made: dict[Any, Inputs] = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(atom: Any) -> Inputs:
        return _NONE if isinstance(atom, core.Literal) else made.get(atom, _NONE)

    for eqn in jaxpr.eqns:
        operands = [of(v) for v in eqn.invars]
        results = [_NONE] * len(eqn.outvars)
        name, bodies = eqn.primitive.name, _bodies(eqn)
        if bodies:
            # Bodies take the last operands: what a branch is chosen by, or rules, are before them.
            ends = [_walk(b, operands[len(operands) - len(b.invars) :], found) for b in bodies]
            results = [_NONE.union(*each) for each in zip(*ends, strict=True)]
        elif name in _ROOTS:
            found |= operands[0]
        elif name in _LINEAR and not (name == "mul" and operands[0] & operands[1]):
            results = [_NONE.union(*(operands[:1] if name == "div" else operands))]
        made |= dict(zip(eqn.outvars, results, strict=False))
    return [of(v) for v in jaxpr.outvars]


def _bodies(eqn: Any) -> list[Any]:
    """The jaxprs that an equation runs on its last operands, once: calls, and branches."""
    given = [x for v in eqn.params.values() for x in (v if isinstance(v, tuple) else (v,))]
    opened = [getattr(x, "jaxpr", x) for x in given]
    bodies = [b for b in opened if hasattr(b, "eqns") and hasattr(b, "invars")]
    fits = all(len(b.invars) <= len(eqn.invars) for b in bodies)
    same = all(len(b.outvars) == len(eqn.outvars) for b in bodies)
    return bodies if fits and same and eqn.primitive.name != "while" else []
