"""Statistics of a running program's quantizations, streamed while it runs."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from srjit.diagnostics.watch.sinks import JsonLines
from srjit.jaxprs.figures import FIGURES
from srjit.planning.planned_site import Operand
from srjit.report.label import Label

Sink = Callable[["Record"], None]
_TYPES: dict[str, type] = {
    **dict.fromkeys(("path", "role", "operand", "kind", "format", "rounding"), str),
    **dict.fromkeys(("site", "step"), int),
    "where": tuple,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record(Label):
    """The figures of an operand's quantization in one step; each is an attribute too.

    Attributes:
      site, path, role, operand, kind, where, format: see ``Label``; of loops without a fixed
        length, and of shards, the largest figures are told.
      step: the call's ``sr_key`` if that is an integer, or its number; of calls with a typed key,
        how many there were before, and steps in the file.
      rounding: ``nearest`` or ``stochastic``.
      figures: by the names of ``FIGURES``, which says what they are.
    """

    step: int
    rounding: str
    figures: Mapping[str, float]

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Record:
        """The record with these attributes, figures among them.

        Raises:
          TypeError: attributes are missing, of another type, or there are no such.
          KeyError: a figure is missing.
        """
        for name, value in fields.items():
            wanted = _TYPES.get(name, (int, float))
            if not isinstance(value, wanted):
                raise TypeError(f"{name} is {value!r:.40}")
        figures = {f.name: fields[f.name] for f in FIGURES}
        return cls(**{k: v for k, v in fields.items() if k not in figures}, figures=figures)

    def to_dict(self) -> dict[str, Any]:
        """All attributes, figures among them."""
        fields = dict(vars(self))
        return fields | dict(fields.pop("figures"))

    def __getattr__(self, name: str) -> float:
        """A figure, by its name."""
        if name == "figures" or name not in self.figures:  # while being copied or unpickled
            raise AttributeError(f"'Record' object has no attribute {name!r}", name=name, obj=self)
        return self.figures[name]

    @property
    def ratio(self) -> float:
        """The operand's norm over the noise's; inf where there is no noise."""
        return self.norm / self.noise if self.noise else math.inf


class Watched(NamedTuple):
    """The outputs of a program, and the figures measured of its quantizations."""

    out: Any
    measured: Any


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The operands whose figures one traced program measures, and the figures' shapes."""

    operands: tuple[Operand, ...]
    shapes: tuple[tuple[int, ...], ...]


class Watch:
    """Streams a ``Record`` of each watched quantization of a program to a sink.

    A program returns all of a step's measurements in one piece; a thread waits for it.

    Attributes:
      sink: called with records, one at a time, never at the same time.
      kinds: of operands that are watched.
    """

    def __init__(self, sink: Sink, kinds: Sequence[str] = ("gradient",)) -> None:
        self.sink, self.kinds = sink, tuple(kinds)
        self._layouts: list[_Layout] = []  # of every program that was traced
        self._step: int | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="srjit-watch")
        self._pending: list[Future[None]] = []

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

    def packed(self, operands: Sequence[Operand], measured: Sequence[jax.Array]) -> jax.Array:
        """One float32 vector of all measurements, while a program is traced.

        Args:
          operands: those that are watched.
          measured: of each, ``FIGURES`` as the last dimension, after the loops around it; negative
            where a step did not quantize it.
        """
        self._layouts.append(_Layout(tuple(operands), tuple(m.shape for m in measured)))
        number = jnp.full(1, len(self._layouts) - 1, jnp.float32)
        return jnp.concatenate([number, *(m.ravel() for m in measured)])

    def deliver(self, measured: Any, step: Any = None) -> None:
        """Gives what a step has measured to the sink, as soon as the step is done.

        Raises:
          Exception: what the sink raised for an earlier step.
        """
        done = [f for f in self._pending if f.done()]
        self._pending = [f for f in self._pending if not f.done()]
        for future in done:
            future.result()
        self._pending.append(self._thread.submit(self.take, measured, step))

    def wait(self) -> None:
        """Returns when the sink has all records of the steps until now.

        Raises:
          Exception: what the sink raised.
        """
        pending, self._pending = self._pending, []
        for future in pending:
            future.result()

    def take(self, measured: Any, step: Any = None) -> None:
        """Makes records of what one step has measured, and gives them to the sink.

        Args:
          measured: by the program.
          step: its number; None if that is to be counted here.
        """
        flat = np.asarray(jax.device_get(measured))
        layout, left = self._layouts[int(flat[0])], flat[1:]
        number = self._counted() if step is None else int(jax.device_get(step))
        self._step = number + 1
        for operand, shape in zip(layout.operands, layout.shapes, strict=True):
            count = math.prod(shape)
            values, left = left[:count].reshape(shape), left[count:]
            for where in np.ndindex(*shape[:-1]):
                if not values[where][0] < 0:
                    self.sink(_record(number, operand, where, values[where].tolist()))

    def _counted(self) -> int:
        """The number of the next step: that after the last one, which may be another run's."""
        if self._step is None:
            return self.sink.next_step() if isinstance(self.sink, JsonLines) else 0
        return self._step


def _record(step: int, operand: Operand, where: tuple[int, ...], values: Sequence[float]) -> Record:
    assert operand.shared is not None
    spec = operand.shared.spec
    # Without a location: records of one run are compared with those of another version.
    label = dataclasses.replace(Label.of(operand, spec, where), path=operand.row.site.path)
    return Record(
        **vars(label),
        step=step,
        rounding=spec.rounding,
        figures={f.name: value for f, value in zip(FIGURES, values, strict=True)},
    )
