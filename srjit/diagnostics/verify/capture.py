"""Captures the values that a running program rounds, and the keys, step by step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srjit.jaxprs.observation import Rounding
from srjit.numerics.random_bits import Key

EXECUTIONS = 4  # executions of one rounding (trips of its loops, shards) that are looked at


Execution = tuple[Rounding, tuple[int, ...]]


@dataclasses.dataclass
class Captured:
    """One execution of a rounding.

    Attributes:
      operand: what it rounded in the first step that came there.
      given: what else it was given there.
      keys: the key words of every step, by the step's number.
    """

    operand: Any
    given: Any
    keys: dict[int, tuple[int, int]]


class Capture:
    """Takes operands and keys out of a running program.

    Attributes:
      step: number of the step that is running; set it before each.
      executions: what was seen of each.
      left_out: how many more executions of a rounding there were than ``EXECUTIONS``.
    """

    def __init__(self) -> None:
        self.step = 0
        self.executions: dict[Execution, Captured] = {}
        self._left_out: dict[Rounding, set[tuple[int, ...]]] = {}

    @property
    def left_out(self) -> int:
        """The number of executions that were not looked at."""
        return sum(map(len, self._left_out.values()))

    def observe(
        self,
        rounding: Rounding,
        where: Sequence[Any],
        x: jax.Array,
        key: Key,
        given: tuple[Any, ...],
    ) -> None:
        """An ``Observer``."""
        take = functools.partial(self._take, rounding)
        jax.debug.callback(take, [jnp.asarray(w) for w in where], x, key, given)

    def _take(self, rounding: Rounding, where: Any, x: Any, key: Any, given: Any) -> None:
        execution = rounding, tuple(int(w) for w in where)
        if execution not in self.executions:
            if sum(r == rounding for r, _ in self.executions) >= EXECUTIONS:
                self._left_out.setdefault(rounding, set()).add(execution[1])
                return
            self.executions[execution] = Captured(np.array(x), given, {})
        self.executions[execution].keys[self.step] = int(key[0]), int(key[1])
