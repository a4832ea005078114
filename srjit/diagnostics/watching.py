"""Statistics of a running program's quantizations, streamed while it runs.

Each is of a sample of the operand: groups of whole rows along the contraction, at equal distances,
quantized again as they were in the program, with the scale of the whole tensor. What is rounded is
not what the program rounds on, so that no result changes.
"""

from __future__ import annotations

import collections
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
from jax import lax

from srjit.diagnostics.capture import Quantizer
from srjit.diagnostics.sinks import JsonLines
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization, emulated, encode
from srjit.numerics.random_bits import Key, mix
from srjit.numerics.rounding import working_dtype

SAMPLE = 2**14  # elements of an operand, about
_WATCHING = 0x77617463  # apart from the noise of the program

Sink = Callable[["Record"], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One execution of a quantization.

    Attributes:
      step: how many executions of it there were before.
      site: number of the site that reads it first; ``path``, ``role``: the site's.
      operand: ``lhs`` or ``rhs``; ``kind``: ``activation``, ``weight`` or ``gradient``.
      where: iterations of the loops around it, and shards.
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


# ----------------------------------------------------------------------------- what is measured


def measured(
    quantizer: Quantizer, x: jax.Array, key: Key | None, before: jax.Array | None
) -> dict[str, jax.Array]:
    """Float32 scalars: the measured fields of ``Record``.

    Args:
      quantizer: what quantizes.
      x: the operand.
      key: its noise's key; None if it draws none.
      before: the largest amax of earlier steps, for a delayed scale.
    """
    x = lax.stop_gradient(x)
    spec, fmt = quantizer.spec, get_format(quantizer.spec.format)
    amax = jnp.max(jnp.abs(x), initial=0).astype(jnp.float32)
    part = _sample(x, spec).astype(working_dtype(x.dtype))
    rms = functools.partial(_root_mean_square, size=part.size)
    found = {"amax": amax, "norm": rms(part)}
    if quantizer.flips_signs or spec.rounding == "none":
        zero = jnp.float32(0)
        return found | {"noise": zero, "zeros": zero, "saturated": zero}
    known = before
    if spec.scaling == "dynamic" and spec.shared == "tensor" and not spec.hadamard:
        known = amax  # of the tensor, not of the sample
    again = None if key is None else mix(key, _WATCHING)
    run = functools.partial(encode, part, before=known, subnormal=False)
    rounded = run(spec, again)
    steps = dataclasses.replace(rounded, codes=jnp.ones_like(rounded.codes))
    scale = steps.dequantize(part.dtype)
    values = emulated(part, dataclasses.replace(spec, rounding="none"), None).values
    off = rounded.dequantize(part.dtype) - values
    size = jnp.abs(values)
    lost = (size > 0) & (size <= scale * (fmt.element.smallest / 2))
    count = jnp.maximum(jnp.sum(size > 0), 1)
    return found | {
        "noise": rms(off),
        "zeros": (jnp.sum(lost) / count).astype(jnp.float32),
        "saturated": jnp.mean(size > scale * fmt.element.max, dtype=jnp.float32),
    }


def _root_mean_square(x: jax.Array, size: int) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x)) / max(size, 1)).astype(jnp.float32)


def _sample(x: jax.Array, spec: Quantization) -> jax.Array:
    """About ``SAMPLE`` elements: whole blocks of rows along the contraction, at equal distances."""
    square = spec.shared == "square"
    free = [0] if square and x.ndim else [d for d in range(x.ndim) if d not in spec.axes(x.ndim)]
    if not free or x.size <= SAMPLE:
        return x
    dim = max(free, key=lambda d: x.shape[d])
    group = spec.block_size if square else 1
    groups = x.shape[dim] // group
    wanted = max(1, SAMPLE * x.shape[dim] // (x.size * group))
    if wanted >= groups:
        return x
    stride = groups // wanted
    whole = lax.slice_in_dim(x, 0, wanted * stride * group, axis=dim)
    split = whole.reshape(*x.shape[:dim], wanted, stride * group, *x.shape[dim + 1 :])
    part = lax.slice_in_dim(split, 0, group, axis=dim + 1)
    return part.reshape(*x.shape[:dim], wanted * group, *x.shape[dim + 1 :])


# -------------------------------------------------------------------------------- watching it

_MEASURED = ("norm", "noise", "zeros", "saturated", "amax")


class Watch:
    """An observer of a program that streams a ``Record`` of each quantization to a sink.

    Nothing waits for the sink: the program's callbacks run beside it.

    Attributes:
      sink: called with records, one at a time.
      kinds: of operands that are watched.
    """

    def __init__(self, sink: Sink, kinds: Sequence[str] = ("gradient",)) -> None:
        self.sink, self.kinds = sink, tuple(kinds)
        self._steps: collections.Counter[Any] = collections.Counter()
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

    def observe(
        self,
        quantizer: Quantizer,
        where: Sequence[Any],
        x: jax.Array,
        key: Key | None,
        before: jax.Array | None,
    ) -> None:
        """An ``Observer``."""
        if quantizer.kind not in self.kinds or not x.size:
            return
        found = measured(quantizer, x, key, before)
        values = jnp.stack([found[name] for name in _MEASURED])
        places = [jnp.asarray(w, jnp.uint32) for w in where]
        take = functools.partial(self._take, quantizer)
        jax.debug.callback(take, values, jnp.stack(places) if places else jnp.zeros(0, "uint32"))

    def _take(self, quantizer: Quantizer, values: Any, where: Any) -> None:
        place = tuple(int(w) for w in np.asarray(where))
        site = quantizer.plan.site
        with self._lock:
            step = self._steps[quantizer, place]
            self._steps[quantizer, place] += 1
            self.sink(
                Record(
                    step=step,
                    site=quantizer.site,
                    path=site.path,
                    role=site.role,
                    operand=("lhs", "rhs")[quantizer.side],
                    kind=quantizer.kind,
                    where=place,
                    format=quantizer.spec.format,
                    rounding=quantizer.spec.rounding,
                    **dict(zip(_MEASURED, map(float, np.asarray(values)), strict=True)),
                )
            )
