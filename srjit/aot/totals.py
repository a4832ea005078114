"""Figures of a whole program, as it was and rewritten, and what to be warned of by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from srjit.aot.compiled_program import SMALL, Collective, CompiledProgram, SiteCost
from srjit.aot.step_time import Peaks
from srjit.planning.profit import counted

UNKNOWN = "no usable estimate"
_MIB = 2**20
_WORSE = 1.01  # times as much as before, at least, is worth a warning
_NONE = Collective()


class Total(NamedTuple):
    """A figure, before and after; rows of one group stand together."""

    group: str
    name: str
    before: str
    after: str
    ratio: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Totals:
    """Two programs side by side.

    Attributes:
      before, after: the program as it was, and rewritten.
      devices: how many they are for.
      peaks: of one of them.
      costs: of the sites of ``after``.
    """

    before: CompiledProgram
    after: CompiledProgram
    devices: int
    peaks: Peaks
    costs: Sequence[SiteCost]

    def speedup(self) -> float | None:
        """Cycles before over cycles after; None if there are kernels, or not all is estimated."""
        both = self.before, self.after
        if any(p.kernels or p.unusable for p in both) or not self.before.cycles:
            return None
        return self.before.cycles / self.after.cycles if self.after.cycles else None

    def rows(self) -> list[Total]:
        """All figures."""
        return [
            *self._cycles(),
            *self._time(),
            *self._kernels(),
            *self._memory(),
            *self._collectives(),
        ]

    def warnings(self) -> list[str]:
        """In what the rewritten program is worse than it was."""
        was, now = map(self.peaks.step_time, (self.before, self.after))
        peaks = self.before.memory.peak, self.after.memory.peak
        sent = (self.before.sent, self.after.sent)
        if self.devices == 1 or not was.apart or not now.apart:
            slower = was.compute, now.compute
        else:
            slower = was.apart, now.apart
        found = [
            ("slower: nothing overlapped, a step takes", slower, _ms, 0.0),
            ("bigger on the wire: a device sends", sent, _mib, SMALL),
            ("bigger in memory: its peak is", peaks, _mib, SMALL),
        ]
        return [
            f"by these estimates the program is {what} {show(b)} instead of {show(a)}"
            for what, (a, b), show, least in found
            if a is not None and b is not None and b > a * _WORSE and b - a > least
        ]

    # --------------------------------------------------------------------------------- its parts

    def _cycles(self) -> Iterator[Total]:
        before, after = self.before, self.after
        if not after.cycles:
            name = "bytes that instructions read and write"
            yield _compared("cycles", name, before.moved, after.moved, _mib)
        if not before.cycles or not after.cycles:
            return
        both = _compared("cycles", "estimated cycles", before.cycles, after.cycles, counted)
        unusable = before.unusable + after.unusable
        if not self.speedup():  # without its kernels a program only looks fast
            left_out = ["kernels"] if before.kernels or after.kernels else []
            left_out += ["what has no usable estimate"] if unusable else []
            both = both._replace(name=f"{both.name}, {' and '.join(left_out)} excluded", ratio="")
        yield both
        dots = sum(cost.cycles or 0 for cost in self.costs)
        around = sum(cost.around for cost in self.costs)
        yield Total("cycles", "  of sites' products", "", counted(dots))
        yield Total("cycles", "  of what is around them", "", counted(around))
        yield Total("cycles", "  of everything else", "", counted(after.cycles - dots - around))
        sums = [before.cycles, after.cycles]
        for name, cycles, model in (
            ("kernels, at least", self.peaks.kernel_cycles, "both models added up"),
            ("relayouts beside, by their bytes", self.peaks.relayout_cycles, "those added, too"),
        ):
            was, now = cycles(before), cycles(after)
            if was is not None and now is not None and was + now:
                yield Total("cycles", name, counted(was), counted(now))
                sums = [sums[0] + was, sums[1] + now]
                added = _compared("cycles", model, *sums, counted)
                yield added._replace(ratio="") if unusable else added

    def _time(self) -> Iterator[Total]:
        wire, clock = self.peaks.interconnect, self.peaks.clock
        if self.devices == 1 or not wire:
            return
        was, now = map(self.peaks.step_time, (self.before, self.after))
        at = f" at {clock / 1e9:.3g} GHz" if clock else ""
        for name, figure in (
            (f"time of compute{at}", lambda t: t.compute),
            (f"time on the wire at {wire / 1e9:.3g} GB/s", lambda t: t.wire),
            ("  of that beside compute, at most", lambda t: t.overlap),
            ("step, nothing overlapped", lambda t: t.apart),
            ("step, that overlapped", lambda t: t.step),
        ):
            yield _compared("time", name, figure(was), figure(now), _ms)
            if was.compute is now.compute is None and figure(was) is not None:
                return  # nothing else is known

    def _kernels(self) -> Iterator[Total]:
        for kernel in self.after.kernels:
            told = [_mib(kernel.moved)]
            if kernel.operations:
                told.append(f"{counted(kernel.operations)} operations")
            if kernel.cycles is not None:
                told.append(f"{counted(kernel.cycles)} (schedule)")
            name = f"kernel {kernel.name}" + (f" x{kernel.times}" if kernel.times > 1 else "")
            where = "" if kernel.site is None else f", site {kernel.site}"
            yield Total("kernels", name + where, "", ", ".join(kernel.rounds_by or told))

    def _memory(self) -> Iterator[Total]:
        before = dataclasses.asdict(self.before.memory)
        for name, now in dataclasses.asdict(self.after.memory).items():
            yield _compared("memory", f"memory: {name}", before[name], now, _mib)

    def _collectives(self) -> Iterator[Total]:
        both = [p.collectives for p in (self.before, self.after)]
        for kind in dict.fromkeys((*both[0], *both[1])):
            was, now = (_told(c.get(kind, _NONE)) for c in both)
            yield Total("collectives", kind, was, now)
        if not self.before.sent and not self.after.sent:
            return
        added = _types(self.before.added_as), _types(self.after.added_as)
        yield Total("collectives", "added by devices as", added[0], added[1])
        sent = self.before.sent, self.after.sent
        yield _compared("collectives", "bytes that a device sends", *sent, _mib)
        for kind in dict.fromkeys((*both[0], *both[1])):
            was, now = (c.get(kind, _NONE).sent for c in both)
            yield _compared("collectives", f"  by {kind}", was, now, _mib)


def _told(found: Collective) -> str:
    if not found.count:
        return "none"
    small = f", {found.small} of them small" if found.small else ""
    return f"{found.count} of {_mib(found.size)}{small}"


def _types(added: Mapping[str, int]) -> str:
    return ", ".join(f"{_mib(size)} {dtype}" for dtype, size in sorted(added.items())) or "-"


def _compared(group: str, name: str, before: Any, after: Any, show: Callable[[Any], str]) -> Total:
    ratio = f"{before / after:.3f}x" if before and after else ""
    was, now = (UNKNOWN if figure is None else show(figure) for figure in (before, after))
    return Total(group, name, was, now, ratio)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3f} ms"


def _mib(size: float) -> str:
    return f"{size / _MIB:.{1 if size >= 10 * _MIB else 3}f} MiB"
