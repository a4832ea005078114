"""The plan of a program: all of its sites, and the choices of a user."""

from __future__ import annotations

import dataclasses
import functools

from srjit.choices import Rng
from srjit.planning.coefficients import NONE, Coefficients
from srjit.planning.gathers import Gathers, gathers_of
from srjit.planning.noise import HISTORY
from srjit.planning.planned_site import PlannedSite
from srjit.planning.provenance import Provenance
from srjit.planning.sharing import Sharing
from srjit.planning.site import SitePlan
from srjit.planning.write_backs import NOTHING, WriteBacks
from srjit.program.values import Path
from srjit.recipes import Recipe
from srjit.targets import Target


@dataclasses.dataclass(frozen=True)
class Settings:
    """The choices of a user that a plan depends on."""

    recipe: Recipe
    target: Target
    mode: str = "train"
    rng: Rng = "hash"


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """A program's sites and write-backs, with everything that is planned of them.

    Attributes:
      sites: all of its sites, by where they stand, in execution order.
      provenance: of the program.
      settings: the choices of a user.
      write_backs: what is written back rounded.
      coefficients: of derivatives, that are kept as codes.
      notes: what a user should know beside the sites.
      shortfall: that too little of it is quantized, and the cure; empty if it is enough.
      left_alone: entries of what may multiply where srjit does not look.
    """

    sites: dict[Path, PlannedSite]
    provenance: Provenance
    settings: Settings
    write_backs: WriteBacks = NOTHING
    coefficients: Coefficients = NONE
    notes: tuple[str, ...] = ()
    shortfall: str = ""
    left_alone: tuple[SitePlan, ...] = ()

    @property
    def rows(self) -> tuple[SitePlan, ...]:
        """The report's entries: the sites, then what is left alone."""
        return (*(site.row for site in self.sites.values()), *self.left_alone)

    @functools.cached_property
    def rewritten(self) -> dict[Path, PlannedSite]:
        """The sites that do not stay as they are."""
        return {path: site for path, site in self.sites.items() if site.params is not None}

    def without_sites(self) -> ProgramPlan:
        """The plan that leaves all sites as they are."""
        kept = {p: dataclasses.replace(s, params=None) for p, s in self.sites.items()}
        return dataclasses.replace(self, sites=kept)

    @functools.cached_property
    def sharing(self) -> Sharing:
        """The codes that sites share."""
        return Sharing(self.rewritten, self.provenance.inputs, self.provenance.loops)

    @property
    def coded(self) -> set[tuple[Path, int]]:
        """The operands, by site and side, whose codes another site has made."""
        return {
            (path, operand.side)
            for path, site in self.rewritten.items()
            for operand, shared in site.quantized
            if self.sharing.arrives(shared, path)
        }

    @functools.cached_property
    def gathers(self) -> Gathers:
        """The collective that gathers each operand which only products read, by site and side."""
        return gathers_of(self.provenance.program, self.rewritten)

    @functools.cached_property
    def histories(self) -> dict[str, tuple[int, ...]]:
        """The shape of every history of delayed scales.

        Loops over layers around it, then groups of rows with scales of their own, then steps.
        """
        return {
            operand.history: (*(n for n in site.layers if n is not None), *operand.experts, HISTORY)
            for site in self.rewritten.values()
            for operand in site.operands
            if operand.history is not None
        }

    def goes_over_layers(self, scope: Path) -> bool:
        """True if the loop at ``scope`` is one over layers, for the histories inside."""
        around = sum(scope[:n] in self.provenance.loops for n in range(1, len(scope)))
        inside = (s for p, s in self.rewritten.items() if p[: len(scope)] == scope)
        return any(site.layers[around] is not None for site in inside)

    def states(self, scope: Path) -> list[str]:
        """Names of the histories that sites inside ``scope`` have."""
        inside = [s for p, s in self.rewritten.items() if p[: len(scope)] == scope]
        names = [o.history for site in inside for o in site.operands if o.history is not None]
        return list(dict.fromkeys(names))

    @functools.cached_property
    def scopes(self) -> frozenset[Path]:
        """Paths of the equations that have sites, write-backs or coefficients inside."""
        paths = (*self.rewritten, *self.write_backs.writes, *self.coefficients.paths)
        return frozenset(path[:n] for path in paths for n in range(1, len(path)))

    @functools.cached_property
    def is_differentiable(self) -> bool:
        """True if gradients are planned, should it be differentiated from outside."""
        return any(s.params.backward for s in self.rewritten.values() if s.params)

    @property
    def rounds_more(self) -> bool:
        """True if it rounds stochastically beside products."""
        return bool(self.write_backs.writes) or bool(self.coefficients.read)

    @functools.cached_property
    def draws_forward(self) -> bool:
        """True if the program itself draws noise."""
        sites = self.rewritten.values()
        sends = any(s.params.wire for s in sites if s.params)
        draws = sends or any(o.draws for s in sites for o in s.operands)
        return draws or self.rounds_more

    @functools.cached_property
    def draws_backward(self) -> bool:
        """True if differentiating the program draws noise."""
        return any(s.params.needs_key for s in self.rewritten.values() if s.params)
