"""Jaxprs with small calls in place: JAX wraps functions such as silu in a jit of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend import core as jex_core

from srjit import _compat
from srjit.products.kinds import KINDS
from srjit.program.control_flow import FLOWS
from srjit.program.exchange import exchanged
from srjit.program.protocols import is_literal


def inlined(closed: Any, wanted: bool = True) -> Any:
    """A closed jaxpr without calls of jitted functions that hold no products, loops and calls.

    Such a call with shardings of its own, or that returns what it is given, stays.

    Args:
      closed: the jaxpr.
      wanted: whether that is of use; otherwise it stays as it is.
    """
    return exchanged(closed, _exchange) if wanted else closed


def _exchange(eqn: Any) -> Sequence[Any]:
    if eqn.primitive.name != "jit" or not _is_small(eqn):
        return (eqn,)
    body, _ = _compat.open_jaxpr(eqn.params["jaxpr"])
    new: dict[Any, Any] = dict(zip(body.invars, eqn.invars, strict=True))
    new.update(zip(body.outvars, eqn.outvars, strict=True))

    def renamed(v: Any) -> Any:
        if is_literal(v):
            return v
        if v not in new:
            new[v] = jex_core.Var(v.aval)
        return new[v]

    made: list[Any] = []
    for inner in body.eqns:
        info = inner.source_info
        stack = eqn.source_info.name_stack + info.name_stack
        made.append(
            inner.replace(
                invars=[renamed(v) for v in inner.invars],
                outvars=[renamed(v) for v in inner.outvars],
                source_info=info.replace(name_stack=stack),
            )
        )
    return made


def _is_small(eqn: Any) -> bool:
    body, consts = _compat.open_jaxpr(eqn.params["jaxpr"])
    names = {inner.primitive.name for inner in body.eqns}
    made = {v for inner in body.eqns for v in inner.outvars}
    outs = [v for v in body.outvars if not is_literal(v) and v in made]
    is_plain = len({*outs}) == len(body.outvars) and not any(map(_is_dropped, eqn.outvars))
    return is_plain and not consts and not names & {*KINDS, *FLOWS} and _compat.is_plain_jit(eqn)


def _is_dropped(v: Any) -> bool:
    return type(v).__name__ == "DropVar"
