"""The estimated time of a step on each of several devices, and its parts."""

from __future__ import annotations

import dataclasses

from srjit.aot.compiled_program import CompiledProgram
from srjit.targets import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of one step on one device, estimated; None: no usable estimate.

    Attributes:
      compute: of all instructions and kernels, one after the other.
      relayouts: of copies to other layouts that the compiler does not estimate and another unit
        makes beside the rest, at the memory's peak; not in ``compute``.
      wire: of the bytes that a device sends.
      beside: of those that the compiler has travel while something else runs.
    """

    compute: float | None
    relayouts: float | None = 0.0
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peaks:
    """The peak rates of a device; None where they are not known.

    Attributes:
      clock: cycles a second.
      operations: of a bfloat16 product, a cycle.
      cycles_per_byte: in which its memory moves a byte.
      interconnect: bytes a second that it sends to others.
    """

    clock: float | None = None
    operations: float | None = None
    cycles_per_byte: float | None = None
    interconnect: float | None = None

    @classmethod
    def of(cls, target: Target) -> Peaks:
        """Those of a target, as its table has them."""
        estimates = target.estimates
        if estimates is None:
            return cls(interconnect=target.interconnect)
        return cls(
            clock=estimates.clock,
            operations=estimates.plain,
            cycles_per_byte=estimates.cycles_per_byte,
            interconnect=target.interconnect,
        )

    def kernel_cycles(self, program: CompiledProgram) -> int | None:
        """Cycles of a program's kernels, at least: of each the largest of three models.

        They are the estimate of its schedule, where there is one, its bytes at the memory's peak,
        and its matrix products, where they are known, at the peak of bfloat16's. None if nothing is
        known of the memory.
        """
        if self.cycles_per_byte is None:
            return None
        unit = self.operations or float("inf")
        return sum(
            max(
                kernel.cycles or 0,
                round(kernel.moved * self.cycles_per_byte),
                round((kernel.operations or 0) / unit),
            )
            for kernel in program.kernels
        )

    def relayout_cycles(self, program: CompiledProgram) -> int | None:
        """Cycles of copies that have no estimate, by their bytes; None as of ``kernel_cycles``."""
        each = self.cycles_per_byte
        return None if each is None else round(program.relayouts * each)

    def step_time(self, program: CompiledProgram) -> StepTime:
        """Estimates the seconds of one step: compute, wire, and what runs beside compute."""
        cycles = None if program.unusable else program.cycles
        if cycles is not None:
            cycles += self.kernel_cycles(program) or 0
        copies, rate = self.relayout_cycles(program), self.interconnect
        return StepTime(
            compute=None if cycles is None or not self.clock else cycles / self.clock,
            relayouts=None if copies is None or not self.clock else copies / self.clock,
            wire=program.sent / rate if rate else None,
            beside=sum(c.beside for c in program.collectives.values()) / rate if rate else 0.0,
        )
