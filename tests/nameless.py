"""Roles of a jaxpr with its names and without them, as of a module without locations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from srjit.planning.phases import traced
from srjit.planning.provenance import JaxprSourceInfo
from srjit.planning.roles import Classified, classify
from srjit.program.dead_code import without_dead_code


class _Nameless(JaxprSourceInfo):
    """Reads no names and no lines of code."""

    name_stack = staticmethod(lambda _: ((), ()))
    location = staticmethod(lambda _: "")


Both = tuple[list[Classified], list[Classified]]


def both(fun: Callable[..., Any], *args: Any, parameters: Sequence[int] = (0,)) -> Both:
    """All products of a function with their roles, with names and without, of one trace."""
    closed = without_dead_code(jax.make_jaxpr(fun)(*args))
    labels = [
        "parameter" if i in parameters else "data"
        for i, arg in enumerate(args)
        for _ in jax.tree.leaves(arg)
    ]
    return classify(traced(closed, labels)), classify(traced(closed, labels, _Nameless()))


def told(c: Classified) -> tuple[str, str, str]:
    """The role of a product, and the kinds of its operands."""
    return c.role, c.lhs_kind, c.rhs_kind


def flops(products: Sequence[Classified]) -> int:
    """FLOPs of some products."""
    return sum(c.site.flops * c.site.trips for c in products)
