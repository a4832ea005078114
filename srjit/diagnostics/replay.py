"""The noise of a run, drawn again: it is a function of a key and of places in the program."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp

from srjit.jaxprs.evaluator import Evaluator, Trip
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key, mix, random_bits
from srjit.planning.plan import ProgramPlan

_WRITTEN = "noise of write-backs and casts is not replayed"


@dataclasses.dataclass(frozen=True)
class Replayed:
    """The noise of one execution of a quantization.

    Attributes:
      site, path, role: of the site that reads the codes.
      operand: ``lhs`` or ``rhs``.
      where: iterations of the loops around it, then its place along the mesh axes of ``shard_map``.
      format: what it is quantized to.
      key: the two words that its noise comes from.
      noise: uint32 bits, one word an element, of the operand's shape; a transformed dimension is
        padded.
    """

    site: int
    path: str
    role: str
    operand: str
    where: tuple[int, ...]
    format: str
    key: tuple[int, int]
    noise: jax.Array = dataclasses.field(repr=False)


def replayed(
    plan: ProgramPlan,
    root: Key | None,
    site: int | str,
    operand: str | None,
    trips: Sequence[int] | None,
    shards: Mapping[str, int],
) -> list[Replayed]:
    """See ``SrjitFunction.replay``.

    Args:
      plan: of the program.
      root: the key words of the step; None: it draws no noise.
      site, operand, trips, shards: as there.
    """
    if operand not in (None, "lhs", "rhs"):
        raise ValueError(f"operand={operand!r}: it is 'lhs' or 'rhs', or None for both")
    written = bool(plan.write_backs.writes)
    site_draws = any(o.draws for s in plan.sites.values() for o in s.operands)
    if written and root is not None and not site_draws:
        raise ValueError(f"no site of this program draws noise, and {_WRITTEN}")
    chosen = [
        s
        for s in plan.sites.values()
        if s.row.site.number == site
        or (isinstance(site, str) and fnmatch.fnmatchcase(s.row.site.path, site))
    ]
    if not chosen:
        rows = list(plan.rows[:12])
        names = [f"{row.site.number}: {row.site.path} {row.site.role}" for row in rows]
        there = "; ".join([*(names or ["none"]), *[_WRITTEN] * written])
        raise ValueError(f"no site is {site!r}; there are {there}")
    found: list[Replayed] = []
    for planned in chosen:
        for o in planned.operands:
            if root is None or o.shared is None or not o.draws or operand not in (None, o.name):
                continue
            spec = o.shared.spec
            if spec.scale_rounding == "eden":
                raise ValueError("MS-EDEN rounds elements to nearest: they have no noise to replay")
            for where in _places(planned.loops, trips):
                numbers = zip(where, planned.loops, strict=True)
                around = tuple(Trip(jnp.uint32(n), length) for n, (length, _) in numbers)
                key = Evaluator(plan, root, planned.path, around, {}).drawn(o.draw)
                places = tuple(shards.get(axis, 0) for axis in sorted(o.varies))
                for place in places:
                    key = mix(key, jnp.uint32(place))
                like = jnp.zeros(_counted_shape(o.shape, spec))
                found.append(
                    Replayed(
                        site=planned.row.site.number,
                        path=planned.row.site.path,
                        role=planned.row.site.role,
                        operand=o.name,
                        where=(*where, *places),
                        format=spec.format,
                        key=(int(key[0]), int(key[1])),
                        noise=random_bits(key, like, plan.settings.rng),
                    )
                )
    return found


def _places(
    loops: Sequence[tuple[int | None, bool]], trips: Sequence[int] | None
) -> Iterator[tuple[int, ...]]:
    """Every iteration of the loops around a site, or the one that is asked for."""
    if trips is not None:
        if len(trips) != len(loops):
            raise ValueError(f"trips={tuple(trips)}: there are {len(loops)} loops around the site")
        return iter([tuple(trips)])
    if any(length is None for length, _ in loops):
        raise ValueError("a loop around the site has no fixed length: say which trip, trips=(...)")
    return itertools.product(*(range(length or 0) for length, _ in loops))


def _counted_shape(shape: Sequence[int], spec: Quantization) -> tuple[int, ...]:
    """The operand's shape as the noise counts it."""
    if not spec.hadamard:
        return tuple(shape)
    dim = spec.axes(len(shape))[-1]
    return tuple(n + -n % spec.rotation if d == dim else n for d, n in enumerate(shape))
