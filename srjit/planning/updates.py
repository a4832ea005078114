"""Parameters to which a step adds what gradients became: they are parameters still.

A bias, or a position, that is added to data which gradients moved is none.
"""

from __future__ import annotations

from collections.abc import Sequence

from srjit.planning.value_graph import ValueGraph
from srjit.program.protocols import Equation
from srjit.program.values import BACKWARD, DATA, PARAMETER, Value

_PARAMETER = frozenset({PARAMETER})


class Updates:
    """Tells updated parameters among the sums of a program, which come in order."""

    def __init__(self, graph: ValueGraph) -> None:
        self._graph = graph
        self._weights: set[int] = set()  # origins of parameters that products read
        self._moved: set[int] = set()  # tokens of sums of data and of what gradients became

    def read(self, operands: Sequence[Value]) -> None:
        """Notes the operands of a product."""
        self._weights.update(v.origin for v in operands if v.labels == _PARAMETER)

    def add(self, token: int, values: Sequence[Value]) -> None:
        """Notes a sum of some values."""
        if any(BACKWARD in v.labels for v in values) and any(
            DATA in v.labels and BACKWARD not in v.labels for v in values
        ):
            self._moved.add(token)

    def is_one(self, eqn: Equation, values: Sequence[Value]) -> bool:
        """True if a sum is an updated parameter."""
        shape = eqn.outvars[0].aval.shape
        for v, value in zip(eqn.invars, values, strict=True):
            others = [o for o in values if o is not value and BACKWARD in o.labels]
            if value.labels != _PARAMETER or not others:
                continue
            if value.origin in self._weights and v.aval.ndim == len(shape):
                # Each task may have a step of its own.
                return all(n in (1, m) for n, m in zip(v.aval.shape, shape, strict=True))
            if v.aval.shape == shape and not self._graph.is_spread(value.token):
                return all(self._graph.viewed(o.token) not in self._moved for o in others)
        return False
