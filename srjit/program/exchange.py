"""Jaxprs with other equations in place of some of their own, however deep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend import core as jex_core
from jax.extend.core import primitives as jex_primitives

from srjit import _compat
from srjit.program.control_flow import FLOWS, HIGH_LEVEL

Exchange = Callable[[Any], Sequence[Any]]  # the equations in place of one; itself if none


def exchanged(closed: Any, exchange: Exchange) -> Any:
    """A jaxpr with equations exchanged, those inside of calls, loops and branches before these.

    Args:
      closed: a jaxpr, closed or not; it is returned itself if nothing is exchanged in it.
      exchange: says what stands in place of an equation.
    """
    return _Exchanger(exchange).of(closed)


class _Exchanger:
    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.done: dict[int, tuple[Any, Any]] = {}  # jaxprs stand in several equations

    def of(self, closed: Any) -> Any:
        jaxpr, consts = _compat.open_jaxpr(closed)
        if id(jaxpr) not in self.done:
            eqns = [new for eqn in jaxpr.eqns for new in self.exchange(self._inside(eqn))]
            same = len(eqns) == len(jaxpr.eqns) and all(map(_is, eqns, jaxpr.eqns))
            self.done[id(jaxpr)] = jaxpr, jaxpr if same else with_equations(jaxpr, eqns)
        changed = self.done[id(jaxpr)][1]
        if changed is jaxpr:
            return closed
        return changed if closed is jaxpr else jex_core.ClosedJaxpr(changed, consts)

    def _inside(self, eqn: Any) -> Any:
        if eqn.primitive.name not in FLOWS or eqn.primitive.name == HIGH_LEVEL:
            return eqn  # a high-level primitive's program is its own
        params: dict[str, Any] = {}
        for name, value in eqn.params.items():
            inside = value if isinstance(value, (tuple, list)) else (value,)
            new = [self.of(v) if _is_jaxpr(v) else v for v in inside]
            if not all(map(_is, new, inside)):
                params[name] = type(value)(new) if isinstance(value, (tuple, list)) else new[0]
        return eqn.replace(params={**eqn.params, **params}) if params else eqn


def _is(a: Any, b: Any) -> bool:
    return a is b


def _is_jaxpr(value: Any) -> bool:
    return hasattr(_compat.open_jaxpr(value)[0], "eqns")


# ---------------------------------------------------------------------------------- new equations


def with_equations(jaxpr: Any, eqns: Sequence[Any]) -> Any:
    """A jaxpr with other equations; JAX notes on it whether some are of high-level primitives."""
    avals = ([v.aval for v in eqn.invars] for eqn in eqns)
    pairs = zip(eqns, avals, strict=True)
    is_high = any(eqn.primitive.is_high(*given, **eqn.params) for eqn, given in pairs)
    return jaxpr.replace(eqns=list(eqns), is_high=is_high)


def variable_like(v: Any, dtype: Any) -> Any:
    """A new variable of the type of another, but for its dtype."""
    return jex_core.Var(v.aval.update(dtype=np.dtype(dtype), weak_type=False))


def conversion(eqn: Any, v: Any, dtype: Any, made: Any = None) -> Any:
    """An equation that converts a variable, in place of ``eqn``; to ``made`` if that is given."""
    made = made or variable_like(v, dtype)
    params = {"new_dtype": np.dtype(dtype), "weak_type": False, "sharding": None}
    convert = jex_primitives.convert_element_type_p
    return eqn.replace(
        invars=[v], outvars=[made], primitive=convert, params=params, effects=frozenset()
    )


def equation(primitive: Any, params: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """An equation of a primitive, of values of these avals."""
    invars, outvars = [jex_core.Var(a) for a in inputs], [jex_core.Var(a) for a in outputs]
    return jex_core.new_jaxpr_eqn(invars, outvars, primitive, params, set())
