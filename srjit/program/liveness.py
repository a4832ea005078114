"""Liveness: which values the results of a program that are read are made of, by control flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from srjit.program.control_flow import ControlFlow, flow_of
from srjit.program.protocols import Equation, Program, is_literal


class Liveness:
    """Liveness in a program and in all that it calls.

    Args:
      is_effectful: whether an equation does more than compute its results.
    """

    def __init__(self, is_effectful: Callable[[Any], bool] = lambda eqn: bool(eqn.effects)) -> None:
        self._is_effectful = is_effectful
        # Of calls: operands that some results need. A program is kept, so that its id stays its.
        self._called: dict[tuple[int, frozenset[int]], tuple[Program, set[int]]] = {}

    def values(self, program: Program, outputs: Sequence[bool]) -> set[Any]:
        """The values that a program's chosen outputs, and its effects, depend on."""
        live = _variables(v for v, chosen in zip(program.outvars, outputs, strict=True) if chosen)
        for eqn in reversed(program.eqns):
            read = [i for i, v in enumerate(eqn.outvars) if v in live]
            if read or self._is_effectful(eqn):
                live |= self._needed(eqn, read)
        return live

    def _needed(self, eqn: Equation, read: Sequence[int]) -> set[Any]:
        flow = flow_of(eqn)
        if flow is None:
            return _variables(eqn.invars)
        _, operands, outside = self.flow(flow, read)
        return _variables(eqn.invars[i] for i in operands) | outside

    def flow(self, flow: ControlFlow, read: Iterable[int]) -> tuple[set[int], set[int], set[Any]]:
        """Finds the values that the results at some positions need.

        Returns:
          Positions of results: those, and what a loop carries for them; positions of operands; and
          values that regions read from outside without an edge.
        """
        key = id(flow.body.program), frozenset(read)
        if flow.kind == "call":
            if key not in self._called:
                # While it is being found, as of a function that calls itself: all of them.
                self._called[key] = flow.body.program, {i.operand for i in flow.body.inputs}
                self._called[key] = flow.body.program, self._fixpoint(flow, read)[1]
            return set(read), self._called[key][1], set()
        return self._fixpoint(flow, read)

    def _fixpoint(
        self, flow: ControlFlow, read: Iterable[int]
    ) -> tuple[set[int], set[int], set[Any]]:
        results, carried = set(read), flow.carried
        while True:
            before = set(results)
            operands = {operand for operand, result in carried.items() if result in results}
            if flow.selector is not None:
                operands.add(flow.selector)
            outside: set[Any] = set()
            for region in flow.regions:
                outputs = [o.way == "condition" or o.result in results for o in region.outputs]
                live = self.values(region.program, outputs)
                inputs = zip(region.inputs, region.program.invars, strict=True)
                operands |= {edge.operand for edge, v in inputs if v in live}
                outside |= live
                results |= {carried[i] for i in operands if i in carried}
            if results == before:
                return results, operands, outside


def needed_inputs(program: Program, output: int) -> set[int]:
    """Positions of the inputs that one output of a program is computed from."""
    live = Liveness(is_effectful=lambda eqn: False).values(
        program, [i == output for i in range(len(program.outvars))]
    )
    return {i for i, v in enumerate(program.invars) if v in live}


def _variables(found: Iterable[Any]) -> set[Any]:
    return {v for v in found if not is_literal(v)}
