"""Statistics of a running program's quantizations, streamed while it runs."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from srjit.diagnostics.measuring import MEASURED
from srjit.diagnostics.sinks import JsonLines
from srjit.numerics.quantization import Quantization
from srjit.plan import SitePlan

Sink = Callable[["Record"], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What one step's quantization of an operand was like.

    Attributes:
      step: how many steps of the program there were before.
      site: number of the site that reads it first; ``path``, ``role``: the site's.
      operand: ``lhs`` or ``rhs``; ``kind``: ``activation``, ``weight`` or ``gradient``.
      where: where in the loops around it, outermost first; of loops without a fixed length, and of
        shards, the largest figures are told.
      format, rounding: how it is quantized.
      norm: root mean square of the operand.
      noise: root mean square of what rounding takes away or adds; 0 where signs are flipped.
      zeros: fraction of its nonzero elements that rounding to nearest would send to zero.
      saturated: fraction of its elements beyond the largest value of the format.
      amax: the largest magnitude.
    """

    step: int
    site: int
    path: str
    role: str
    operand: str
    kind: str
    where: tuple[int, ...]
    format: str
    rounding: str
    norm: float
    noise: float
    zeros: float
    saturated: float
    amax: float

    @property
    def name(self) -> str:
        """What the quantization is called."""
        trip = f" trip {','.join(map(str, self.where))}" if self.where else ""
        return f"site {self.site} {self.role} {self.operand}{trip}"

    @property
    def ratio(self) -> float:
        """Of the operand's norm to the noise's; inf where there is no noise."""
        return self.norm / self.noise if self.noise else math.inf


class Watch:
    """Streams a ``Record`` of each watched quantization of a program to a sink.

    A program hands all of a step's out in one piece, and does not wait for the sink.

    Attributes:
      sink: called with records, one at a time.
      kinds: of operands that are watched.
    """

    def __init__(self, sink: Sink, kinds: Sequence[str] = ("gradient",)) -> None:
        self.sink, self.kinds = sink, tuple(kinds)
        self._step = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, given: Any) -> Watch:
        """From what ``srjit(watch=...)`` takes.

        Raises:
          TypeError: it is neither a path nor callable.
        """
        if isinstance(given, Watch):
            return given
        if isinstance(given, (str, os.PathLike)):
            return cls(JsonLines(given))
        if callable(given):
            return cls(cast(Sink, given))
        raise TypeError(
            f"watch={given!r}: it is the path of a JSON-lines file, or a function of a record"
        )

    def stream(self, quantizations: Sequence[Watched], values: Sequence[jax.Array]) -> None:
        """Called while a program is traced: gives what was measured to the sink when it runs.

        Args:
          quantizations: the watched ones.
          values: of each, ``measuring.MEASURED`` as the last dimension, after the loops around it;
            a negative amax where a step did not quantize it.
        """
        shapes = [v.shape for v in values]
        take = functools.partial(self._take, quantizations, shapes)
        jax.debug.callback(take, jnp.concatenate([v.ravel() for v in values]))

    def _take(
        self, quantizations: Sequence[Watched], shapes: Sequence[tuple[int, ...]], flat: Any
    ) -> None:
        left = np.asarray(flat)
        with self._lock:
            step, self._step = self._step, self._step + 1
            for quantization, shape in zip(quantizations, shapes, strict=True):
                count = math.prod(shape)
                values, left = left[:count].reshape(shape), left[count:]
                for where in np.ndindex(*shape[:-1]):
                    if not values[where][-1] < 0:
                        self.sink(_record(step, quantization, where, values[where].tolist()))


# What is watched: a site, which of its operands, and how that is quantized.
Watched = tuple[SitePlan, int, Quantization]


def _record(
    step: int, quantization: Watched, where: tuple[int, ...], values: Sequence[float]
) -> Record:
    plan, side, spec = quantization
    site = plan.site
    return Record(
        step=step,
        site=site.number,
        path=site.path,
        role=site.role,
        operand=("lhs", "rhs")[side],
        kind=(site.lhs_kind, site.rhs_kind)[side],
        where=where,
        format=spec.format,
        rounding=spec.rounding,
        **dict(zip(MEASURED, values, strict=True)),
    )
