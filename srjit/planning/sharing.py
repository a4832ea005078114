"""The codes and amaxes that sites of a program share, and the scopes that they can come from."""

from __future__ import annotations

import collections
import functools
from collections.abc import Collection, Mapping

from srjit.planning.planned_site import Amax, Operand, PlannedSite, Shared
from srjit.program.values import Path


class Sharing:
    """The codes that sites share.

    Args:
      sites: those that are rewritten, by where they stand.
      inputs: by scope, the tokens of the values that enter it.
      loops: paths of all loops.
    """

    def __init__(
        self,
        sites: Mapping[Path, PlannedSite],
        inputs: Mapping[Path, set[int | None]],
        loops: Collection[Path],
    ) -> None:
        self._sites, self._inputs, self._loops = sites, inputs, loops
        self._readers: dict[Shared, list[Path]] = collections.defaultdict(list)
        uses: dict[Path, dict[Shared, None]] = collections.defaultdict(dict)
        for path, site in sites.items():
            for _, shared in site.quantized:
                self._readers[shared].append(path)
                for n in range(len(path)):
                    uses[path[:n]][shared] = None
        # For each scope, the codes that its sites read, in order.
        self.uses = {scope: list(found) for scope, found in uses.items()}

    @functools.cached_property
    def together(self) -> dict[tuple[Path, Shared], dict[Shared, Operand]]:
        """All quantizations of one value wanted in one scope, by the scope and each of them.

        Each with the operand that reads it first; only where there are several.
        """
        first: dict[tuple[Path, int, bool], dict[Shared, Operand]] = {}
        for path, site in self._sites.items():
            for operand, shared in site.quantized:
                if operand.signs is None:
                    found = first.setdefault((path[:-1], shared.token, shared.again), {})
                    found.setdefault(shared, operand)
        return {
            (scope, shared): found
            for (scope, *_), found in first.items()
            for shared in found
            if len(found) > 1
        }

    @functools.cached_property
    def turned(self) -> frozenset[Shared]:
        """Codes of which a product wants a transposed copy, in the scope where they are made."""
        return frozenset(
            shared
            for path, site in self._sites.items()
            for operand, shared in site.quantized
            if site.params is not None and site.params.turned[operand.side]
            if self._readers[shared][0][:-1] == path[:-1]
        )

    def read_outside(self, shared: Shared, scope: Path) -> bool:
        """True if a site outside ``scope`` reads the same codes, and they can get there.

        They can where the value itself enters every scope on the way, so nothing that a user chose
        to recompute is saved instead.
        """
        return any(
            p[: len(scope)] != scope and self._reaches(shared, p, scope)
            for p in self._readers[shared]
        )

    def arrives(self, shared: Shared, path: Path) -> bool:
        """True if the site at ``path`` gets codes that another has made."""
        first = self._readers[shared][0]
        return first != path and self._reaches(shared, path, first)

    def _reaches(self, shared: Shared, path: Path, scope: Path) -> bool:
        """True if the value itself enters every scope on the way to a site from ``scope``."""
        enclosing = [path[:n] for n in range(1, len(path))]
        return all(
            shared.token in self._inputs[e]
            for e in enclosing
            if e in self._inputs and e != scope[: len(e)]
        )

    # A value that a user chose to compute again is quantized again, and one that the backward pass
    # has anyway. Its amax is a scalar, and kept: so nobody reads the value for that, or asks other
    # devices, once more.

    @functools.cached_property
    def _again(self) -> dict[Shared, tuple[Path, list[Path]]]:
        """The site that reads a value first, and those that its codes do not get to."""
        found: dict[Shared, tuple[Path, list[Path]]] = {}
        for shared, (first, *others) in self._readers.items():
            again = [path for path in others if not self._reaches(shared, path, first)]
            again += [] if shared.again else self._readers.get(shared._replace(again=True), [])
            if again and shared.spec.keeps_amax:
                found[shared] = first, again
        return found

    def keeps(self, shared: Shared) -> bool:
        """True if the amax is of use where the value is computed again."""
        return shared in self._again

    def wanted_after(self, amax: Amax, scope: Path) -> bool:
        """True if an amax found inside ``scope`` is of use outside."""
        first, again = self._again[amax.of]
        is_inside = first[: len(scope)] == scope
        return is_inside and any(path[: len(scope)] != scope for path in again)

    def amaxes_for(self, scope: Path) -> list[Amax]:
        """The amaxes, found outside, that are of use inside ``scope``."""
        return [
            Amax(shared)
            for shared, (first, again) in self._again.items()
            if first[: len(scope)] != scope and any(p[: len(scope)] == scope for p in again)
        ]

    def has_one_a_trip(self, amax: Amax, loop: Path) -> bool:
        """True if all sites inside a loop that an amax is for stand in no loop inside of it."""
        inside = [path for path in self._again[amax.of][1] if path[: len(loop)] == loop]
        return not any(p[:n] in self._loops for p in inside for n in range(len(loop) + 1, len(p)))
