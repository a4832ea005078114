"""The plan of a program: its sites by where they stand, and what rewriting them needs."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key, Rng
from srjit.planning.provenance import Provenance
from srjit.planning.site import SiteParams, SitePlan
from srjit.planning.write_backs import NOTHING, WriteBacks
from srjit.products.scaled_values import ScaledValues
from srjit.program.values import Path
from srjit.recipes import Recipe
from srjit.targets import Target
from srjit.targets.operand import quantize_operand, quantize_together

HISTORY = 16  # steps whose amax a delayed scale looks back on

Shared = tuple[int, Quantization]  # (token, quantization): equal ones are the same codes


@dataclasses.dataclass(frozen=True)
class Draw:
    """Where the noise of one quantization comes from.

    Attributes:
      number: of the first site that quantizes the value so.
      slot: which of that site's quantizations it is.
      flips: for each loop around this site, whether its trips count the other way round than those
        of the first site, whose value this one recomputes.
    """

    number: int
    slot: int
    flips: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class PlannedSite:
    """A site to be rewritten.

    Attributes:
      params: the static part of the site primitive.
      number: what the noise of its gradients comes from, should they be taken.
      lhs, rhs: what their codes are: sites of equal ones share them.
      draws: of both operands.
      varies: mesh axes over which the operands differ, and a gradient where types do not tell.
      states: names of the histories that delayed scales of the operands come from.
      in_memory: whether the operands are there before the program starts: no operation makes them
        that could do some of the quantizing.
      signs: where random signs of both operands come from; None if it draws none.
    """

    params: SiteParams
    number: int
    lhs: Shared | None
    rhs: Shared | None
    draws: tuple[Draw, Draw]
    varies: tuple[frozenset[str], frozenset[str], frozenset[str]]
    states: tuple[str | None, str | None] = (None, None)
    in_memory: tuple[bool, bool] = (False, False)
    signs: Draw | None = None

    def operands(self) -> list[Shared]:
        """The operands that are quantized."""
        return [s for s in (self.lhs, self.rhs) if s]


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """Every site of a program.

    Attributes:
      sites: those to be rewritten, by where they stand.
      reported: what a report says of all of them.
      provenance: of the program.
      settings: what a user chose.
      write_backs: what is written back rounded.
      notes: what else a user should know.
    """

    sites: dict[Path, PlannedSite]
    reported: tuple[SitePlan, ...]
    provenance: Provenance
    settings: Settings
    write_backs: WriteBacks = NOTHING
    notes: tuple[str, ...] = ()

    def quantize(
        self,
        x: jax.Array,
        spec: Quantization,
        key: Key | None,
        before: jax.Array | None = None,
        *,
        signs: Key | None = None,
        in_memory: bool = False,
        in_loop: bool = False,
        turned: bool = False,
    ) -> ScaledValues:
        """An operand's codes."""
        target, rng = self.settings.target.name, self.settings.rng
        return quantize_operand(
            x,
            spec,
            key,
            rng=rng,
            target=target,
            before=before,
            signs=signs,
            in_memory=in_memory,
            in_loop=in_loop,
            turned=turned,
        )

    def quantize_together(
        self,
        x: jax.Array,
        shared: Sequence[Shared],
        keys: Sequence[Key | None],
        *,
        in_loop: bool,
    ) -> list[ScaledValues] | None:
        """Several operands' codes that come from one read of x, if that is to be had."""
        return quantize_together(
            x,
            [spec for _, spec in shared],
            keys,
            rng=self.settings.rng,
            target=self.settings.target.name,
            in_loop=in_loop,
            turned=[s in self.turned for s in shared],
        )

    @functools.cached_property
    def together(self) -> dict[tuple[Path, Shared], dict[Shared, tuple[Path, int]]]:
        """By scope, for codes of a value that sites in it want in several ways: all of those.

        Each with the path of the first site that reads them, and as which operand.
        """
        if self.settings.target.quantize_together is None:
            return {}
        first: dict[tuple[Path, Any], dict[Shared, tuple[Path, int]]] = {}
        for path, site in self.sites.items():
            for side, shared in enumerate((site.lhs, site.rhs)):
                if shared is not None and site.signs is None:
                    found = first.setdefault((path[:-1], shared[0]), {})
                    found.setdefault(shared, (path, side))
        return {
            (scope, shared): found
            for (scope, _), found in first.items()
            for shared in found
            if len(found) > 1
        }

    @functools.cached_property
    def histories(self) -> dict[str, tuple[int, ...]]:
        """The shape of every history of delayed scales: lengths of the loops around it, steps."""
        return {
            name: (*self.lengths(path), HISTORY)
            for path, site in self.sites.items()
            for name in site.states
            if name is not None
        }

    def states(self, scope: Path) -> list[str]:
        """Names of the histories that sites inside ``scope`` have."""
        inside = [s for p, s in self.sites.items() if p[: len(scope)] == scope]
        return list(dict.fromkeys(name for site in inside for name in site.states if name))

    def quantization(self, path: Path, side: int) -> tuple[SitePlan, int, Quantization]:
        """The report's entry of a site, which operand, and how it is quantized."""
        shared = (self.sites[path].lhs, self.sites[path].rhs)[side]
        assert shared is not None
        return self.reported[self.numbers[path]], side, shared[1]

    def kind(self, path: Path, side: int) -> str:
        """What an operand of a site is: ``activation``, ``weight``, ``gradient`` or ``unknown``."""
        site = self.reported[self.numbers[path]].site
        return (site.lhs_kind, site.rhs_kind)[side]

    def lengths(self, path: Path) -> tuple[int, ...]:
        """Of the loops around a site, but for those that have none."""
        return tuple(n for n, _ in self._loops[path] if n is not None)

    @functools.cached_property
    def _loops(self) -> dict[Path, tuple[tuple[int | None, bool], ...]]:
        return {o.path: o.scope.loops for o in self.provenance.occurrences}

    @functools.cached_property
    def numbers(self) -> dict[Path, int]:
        """The number of every site, also of those that are kept."""
        return {o.path: number for number, o in enumerate(self.provenance.occurrences)}

    @functools.cached_property
    def scopes(self) -> frozenset[Path]:
        """Paths of the equations that have sites or write-backs inside."""
        paths = (*self.sites, *self.write_backs.writes)
        return frozenset(path[:n] for path in paths for n in range(1, len(path)))

    @functools.cached_property
    def uses(self) -> dict[Path, list[Shared]]:
        """For each scope, what its sites read, in order."""
        uses: dict[Path, dict[Shared, None]] = collections.defaultdict(dict)
        for path, site in self.sites.items():
            for n in range(len(path)):
                uses[path[:n]].update((s, None) for s in site.operands())
        return {scope: list(found) for scope, found in uses.items()}

    @functools.cached_property
    def turned(self) -> frozenset[Shared]:
        """Codes of which a product wants a transposed copy, in the scope where they are made."""
        made: dict[Shared, Path] = {}
        for path, site in self.sites.items():
            for shared in site.operands():
                made.setdefault(shared, path[:-1])
        return frozenset(
            shared
            for path, site in self.sites.items()
            for shared, wanted in zip((site.lhs, site.rhs), site.params.turned, strict=True)
            if shared and wanted and made[shared] == path[:-1]
        )

    @functools.cached_property
    def _readers(self) -> dict[Shared, list[Path]]:
        readers: dict[Shared, list[Path]] = collections.defaultdict(list)
        for path, site in self.sites.items():
            for shared in site.operands():
                readers[shared].append(path)
        return readers

    def read_outside(self, shared: Shared, scope: Path) -> bool:
        """Whether a site outside ``scope`` reads the same codes, and they can get there.

        They can where the value itself enters every scope on the way, so nothing that a user chose
        to recompute is saved instead.
        """

        def reaches(path: Path) -> bool:
            enclosing = [path[:n] for n in range(1, len(path))]
            inputs = self.provenance.inputs
            return all(
                shared[0] in inputs[e] for e in enclosing if e in inputs and e != scope[: len(e)]
            )

        return any(p[: len(scope)] != scope and reaches(p) for p in self._readers[shared])

    @functools.cached_property
    def draws_forward(self) -> bool:
        """Whether the program itself draws noise."""
        if self.write_backs.writes:
            return True
        return any(q.rounding == "stochastic" for s in self.sites.values() for _, q in s.operands())

    @functools.cached_property
    def draws_backward(self) -> bool:
        """Whether differentiating the program draws noise."""
        return any(s.params.needs_key for s in self.sites.values())


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a user chose."""

    recipe: Recipe
    target: Target
    mode: str = "train"
    rng: Rng = "hash"
