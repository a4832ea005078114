"""The codes that sites of a program share, and the scopes that they can come from."""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping

from srjit.planning.planned_site import Operand, PlannedSite, Shared
from srjit.program.values import Path


class Sharing:
    """The codes that sites share.

    Args:
      sites: those that are rewritten, by where they stand.
      inputs: by scope, the tokens of the values that enter it.
    """

    def __init__(
        self, sites: Mapping[Path, PlannedSite], inputs: Mapping[Path, set[int | None]]
    ) -> None:
        self._sites, self._inputs = sites, inputs
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
        first: dict[tuple[Path, int], dict[Shared, Operand]] = {}
        for path, site in self._sites.items():
            for operand, shared in site.quantized:
                if operand.signs is None:
                    found = first.setdefault((path[:-1], shared.token), {})
                    found.setdefault(shared, operand)
        return {
            (scope, shared): found
            for (scope, _), found in first.items()
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
        """Whether a site outside ``scope`` reads the same codes, and they can get there.

        They can where the value itself enters every scope on the way, so nothing that a user chose
        to recompute is saved instead.
        """

        def reaches(path: Path) -> bool:
            enclosing = [path[:n] for n in range(1, len(path))]
            return all(
                shared.token in self._inputs[e]
                for e in enclosing
                if e in self._inputs and e != scope[: len(e)]
            )

        return any(p[: len(scope)] != scope and reaches(p) for p in self._readers[shared])
