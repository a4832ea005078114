"""Products of operands of two dtypes, as products of one, with the casts that JAX lowers first.

JAX casts both operands of such a product to the dtype of its result when it lowers it for CPUs and
GPUs, and those of a product with an algorithm (``lax.DotAlgorithmPreset``) to what that takes. What
a module is quantized from is therefore what was cast, and it is here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

from srjit import _compat
from srjit.products.kinds import KINDS
from srjit.program.exchange import conversion, exchanged, variable_like


def cast_first(closed: Any) -> Any:
    """A closed jaxpr whose products take operands of the dtypes that they are multiplied in."""
    return exchanged(closed, _exchange)


def _exchange(eqn: Any) -> Sequence[Any]:
    if eqn.primitive.name not in KINDS:
        return (eqn,)
    *operands, result = _dtypes(eqn)
    pairs = zip(eqn.invars[:2], operands, strict=True)
    if result == eqn.outvars[0].aval.dtype and all(v.aval.dtype == to for v, to in pairs):
        return (eqn,)
    made: list[Any] = []
    invars = list(eqn.invars)
    for side, dtype in enumerate(operands):
        if invars[side].aval.dtype != dtype:
            made.append(conversion(eqn, invars[side], dtype))
            invars[side] = made[-1].outvars[0]
    out, params = eqn.outvars[0], eqn.params
    if result == out.aval.dtype:
        return (*made, eqn.replace(invars=invars))
    wide = variable_like(out, result)
    product = eqn.replace(
        invars=invars, outvars=[wide], params={**params, "preferred_element_type": result}
    )
    return (*made, product, conversion(eqn, wide, out.aval.dtype, out))


def _dtypes(eqn: Any) -> tuple[Any, Any, Any]:
    """The dtypes that a product is computed in: of both operands, and of its own result."""
    lhs, rhs = (v.aval.dtype for v in eqn.invars[:2])
    out = eqn.outvars[0].aval.dtype
    precision = eqn.params.get("precision")
    if isinstance(precision, (lax.DotAlgorithm, lax.DotAlgorithmPreset)):
        kinds = _compat.types_of_algorithm(precision, lhs, rhs, out)
        a, b, c = (np.dtype(k or own) for k, own in zip(kinds, (lhs, rhs, out), strict=True))
        return a, b, c
    if lhs == rhs or all(np.dtype(d).itemsize == 1 and _compat.is_float(d) for d in (lhs, rhs)):
        return lhs, rhs, out  # products of two FP8 formats are not cast
    return out, out, out
