"""The source of every quantization's noise, and the history of every delayed scale."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Hashable

from srjit.program.values import Occurrence

HISTORY = 16  # steps whose amax a delayed scale looks back on


@dataclasses.dataclass(frozen=True)
class Draw:
    """The source of one quantization's noise.

    Attributes:
      number: of the first site that quantizes the value so.
      slot: which of that site's quantizations it is.
      flips: for each loop around this site, whether its trips count the other way round than those
        of the first site, whose value this one recomputes.
    """

    number: int
    slot: int
    flips: tuple[bool, ...]


class Draws:
    """Assigns noise and histories.

    A value that is quantized again, as in a recomputation, takes the noise and the history that it
    had when it was quantized first.
    """

    def __init__(self) -> None:
        self._first: dict[Hashable, tuple[int, int, tuple[tuple[int | None, bool], ...]]] = {}
        self._histories: dict[Hashable, str] = {}

    def draw(self, o: Occurrence, number: int, slot: int, what: Hashable) -> Draw:
        """The noise of one quantization of the site with that number, or that of its signs.

        Args:
          o: the site.
          number: the number that the site's noise comes from.
          slot: which of the site's draws it is.
          what: equal for quantizations that have the same codes.
        """
        loops = o.scope.loops
        number, slot, others = self._first.setdefault(what, (number, slot, loops))
        pairs = itertools.zip_longest(loops, others[: len(loops)], fillvalue=(None, False))
        return Draw(number, slot, tuple(a[1] != b[1] and a[0] == b[0] for a, b in pairs))

    def history(self, what: Hashable, layers: tuple[int, ...], name: str) -> str:
        """The name of the history of a value; ``name`` if it has none yet.

        Values in loops over different numbers of layers have different histories.
        """
        return self._histories.setdefault((what, layers), name)
