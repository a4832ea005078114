"""How long a step takes on each of several devices, estimated, and of what that is made."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step on one device, estimated; None: no usable estimate.

    Attributes:
      compute: of all instructions and kernels, one after the other.
      wire: of the bytes that a device sends.
      beside: of those that the compiler has travel while something else runs.
    """

    compute: float | None
    wire: float | None
    beside: float

    @property
    def overlap(self) -> float | None:
        """Most of the wire that compute can hide."""
        return None if self.compute is None else min(self.compute, self.beside)

    @property
    def apart(self) -> float | None:
        """The step, if nothing overlaps."""
        return None if self.compute is None or self.wire is None else self.compute + self.wire

    @property
    def step(self) -> float | None:
        """The step, if all overlaps that can."""
        return None if self.apart is None else self.apart - (self.overlap or 0)
