"""Jaxprs without high-level (hijax) primitives, which JAX lowers before all else.

A checkpoint of ``JAX_REMAT3`` becomes a call. Another primitive becomes one of its name that holds
the program which it computes: it is left alone, and a module says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend import core as jex_core
from jax.extend.core import primitives as jex_primitives
from jax.interpreters import mlir

from srjit import _compat
from srjit.program.control_flow import HIGH_LEVEL, flow_of
from srjit.program.exchange import exchanged
from srjit.program.hijax import high_level_program

expanded_p = jex_core.Primitive(HIGH_LEVEL)
expanded_p.multiple_results = True
expanded_p.def_abstract_eval(lambda *_, jaxpr: jaxpr.out_avals)
mlir.register_lowering(
    expanded_p, mlir.lower_fun(lambda *args, jaxpr: jex_core.jaxpr_as_fun(jaxpr)(*args))
)


def without_high_level(closed: Any) -> Any:
    """A closed jaxpr with what its high-level primitives compute in their place."""
    return exchanged(closed, _exchange)


def _exchange(eqn: Any) -> Sequence[Any]:
    program = high_level_program(eqn)
    if program is None:
        return (eqn,)
    program = jex_core.ClosedJaxpr(*_compat.open_jaxpr(without_high_level(program)))
    if flow_of(eqn) is None:
        return (eqn.replace(primitive=expanded_p, params={"jaxpr": program}),)
    call = jex_primitives.closed_call_p
    return (eqn.replace(primitive=call, params={"call_jaxpr": program}),)
