"""Loops over weights, such as a stack of layers: there delayed scales have a history a trip.

In any other loop the trips are data, such as micro-batches, in whatever order and number: a history
has the largest of all trips.
"""

from __future__ import annotations

from collections.abc import Sequence

from srjit.planning.provenance import Provenance
from srjit.planning.roles import Classified
from srjit.program.values import Occurrence, Path


def loops_over_weights(provenance: Provenance, classified: Sequence[Classified]) -> frozenset[Path]:
    """Paths of the loops that slice weights, and of those that go through the same trips.

    A loop that computes nothing but the gradients of weights reads none.
    """
    over = {path for path, slices_weights in provenance.loops.items() if slices_weights}
    for c in classified:
        if c.partner is None:
            continue
        mine, theirs = (_loops_around(provenance, o) for o in (c.occurrence, c.partner))
        over |= {
            path
            for (path, length), (other, other_length) in zip(mine, theirs, strict=False)
            if other in over and length == other_length
        }
    return frozenset(over)


def _loops_around(provenance: Provenance, o: Occurrence) -> list[tuple[Path, int | None]]:
    """The paths and lengths of the loops around a product, outermost first."""
    path = o.path
    paths = [path[:n] for n in range(1, len(path)) if path[:n] in provenance.loops]
    return [(p, length) for p, (length, _) in zip(paths, o.scope.loops, strict=True)]


def trips_of_layers(
    provenance: Provenance, over: frozenset[Path], o: Occurrence
) -> tuple[int | None, ...]:
    """For each loop around a product, outermost first, its length if it goes over weights."""
    return tuple(n if path in over else None for path, n in _loops_around(provenance, o))
