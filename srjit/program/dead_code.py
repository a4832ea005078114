"""Jaxprs without dead code: by JAX's own rules, and by the table of control flow beyond them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from jax.extend import core as jex_core
from jax.extend.core import primitives as jex_primitives

from srjit import _compat
from srjit.program.control_flow import FLOWS, flow_of
from srjit.program.exchange import exchanged

_STANDS_FOR = "srjit_stands_for"


def without_dead_code(closed: Any, outputs: Sequence[bool] | None = None) -> Any:
    """A closed jaxpr without what no output needs, for all its outputs or for those chosen.

    JAX has rules for its own primitives. Another one that the table of control flow says to be a
    call stands as a call of JAX's own while they are applied.
    """
    if not _has_foreign_calls(closed, set()):
        return _compat.dce(closed, outputs)
    return exchanged(_compat.dce(exchanged(closed, _as_call), outputs), _as_itself)


def _has_foreign_calls(closed: Any, known: set[int]) -> bool:
    """True if a call that JAX has no rule for stands in a jaxpr; each one inside is seen once."""
    jaxpr, _ = _compat.open_jaxpr(closed)
    if id(jaxpr) in known:
        return False
    known.add(id(jaxpr))
    return any(
        _is_foreign_call(eqn) or any(_has_foreign_calls(j, known) for j in _jaxprs_of(eqn))
        for eqn in jaxpr.eqns
        if eqn.primitive.name in FLOWS
    )


def _is_foreign_call(eqn: Any) -> bool:
    flow = None if _compat.has_dce_rule(eqn.primitive) else flow_of(eqn)
    return flow is not None and flow.kind == "call"


def _as_call(eqn: Any) -> Sequence[Any]:
    flow = flow_of(eqn)
    if flow is None or not _is_foreign_call(eqn):
        return (eqn,)
    body: Any = flow.body.program
    (name,) = (n for n, v in eqn.params.items() if _compat.open_jaxpr(v)[0] is body)
    called = jex_core.ClosedJaxpr(body, flow.body.consts)
    params = {"call_jaxpr": called, _STANDS_FOR: (eqn.primitive, eqn.params, name)}
    return (eqn.replace(primitive=jex_primitives.closed_call_p, params=params),)


def _as_itself(eqn: Any) -> Sequence[Any]:
    if _STANDS_FOR not in eqn.params:
        return (eqn,)
    primitive, params, name = eqn.params[_STANDS_FOR]
    body = eqn.params["call_jaxpr"]
    if params[name] is _compat.open_jaxpr(params[name])[0]:
        body, _ = _compat.open_jaxpr(body)
    return (eqn.replace(primitive=primitive, params={**params, name: body}),)


def _jaxprs_of(eqn: Any) -> Generator[Any]:
    """All jaxprs among the parameters of an equation."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(_compat.open_jaxpr(item)[0], "eqns"):
                yield item
