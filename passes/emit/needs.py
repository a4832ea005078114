"""Needs of functions: the keys, numbers and histories that they take from their callers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from srjit._mlir import ir
from srjit.passes.emit.frames import Group, Item
from srjit.passes.emit.lowering import type_of
from srjit.passes.mlir import annotation, attributes, editing

if TYPE_CHECKING:
    from srjit.planning.noise import Draw
    from srjit.planning.plan import ProgramPlan
    from srjit.planning.planned_site import PlannedSite

T = TypeVar("T")
Flips = tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class KeyNeed:
    """The key with the trips of the loops outside of a group.

    Attributes:
      flips: for each of these loops, whether its trips count the other way round; empty if none do.
    """

    flips: Flips


@dataclasses.dataclass(frozen=True)
class NumberNeed:
    """A number that differs along the chains of a group.

    Attributes:
      offsets: what it is along every chain, less what it is along the first.
    """

    offsets: tuple[int, ...]


@dataclasses.dataclass(eq=False)
class Slot:
    """The history of an operand with a delayed scale.

    Attributes:
      item: the multiplication, or the call inside which it is.
      place: which operand of the multiplication, or which slot of what is called.
      names: of its history, along every chain.
      dims: lengths of the loops over layers inside the group around it.
      layers: for every loop around it, outside of the group too, its length if it is over layers.
      experts: how many groups of rows have an amax of their own, if there are any.
    """

    item: Item
    place: int | Slot
    names: tuple[str, ...]
    dims: tuple[int, ...]
    layers: tuple[int | None, ...]
    experts: tuple[int, ...]


Need: TypeAlias = KeyNeed | NumberNeed | Slot
_ORDER = (KeyNeed, NumberNeed, Slot)  # of the arguments that functions get


@dataclasses.dataclass(frozen=True)
class NoiseSource:
    """The source of one quantization's noise, along every chain of a group.

    Attributes:
      numbers: of the first site that quantizes the value so, along each chain.
      slot: which of that site's quantizations it is.
      flips: for each loop around it, whether its trips count the other way round.
      axes: mesh axes whose shards have noise of their own.
    """

    numbers: tuple[int, ...]
    slot: int
    flips: Flips
    axes: tuple[str, ...]


def noises_of(sites: Sequence[PlannedSite]) -> list[NoiseSource | None]:
    """The sources of the noise of a multiplication's operands, their signs, and what is sent.

    Args:
      sites: the multiplication along every chain of a group.
    """

    def noise(draws: Sequence[Draw], axes: tuple[str, ...] = ()) -> NoiseSource:
        return NoiseSource(tuple(d.number for d in draws), draws[0].slot, draws[0].flips, axes)

    signs = [s.signs for s in sites if s.signs is not None]
    return [
        *(
            noise([s.operands[side].draw for s in sites], tuple(sorted(operand.varies)))
            if operand.draws
            else None
            for side, operand in enumerate(sites[0].operands)
        ),
        noise(signs) if signs else None,
        noise([s.parts for s in sites], tuple(sorted(sites[0].varies))) if sites[0].sends else None,
    ]


def split_flips(flips: Flips, outside: int, inside: int) -> tuple[Flips, Flips]:
    """Flips of the loops outside of a frame (empty if there are none), and inside of it."""
    padded = (*flips, *(False,) * (outside + inside - len(flips)))
    outer = padded[:outside]
    return (outer if any(outer) else ()), padded[outside : outside + inside]


def offsets_of(numbers: Sequence[int]) -> tuple[int, ...]:
    """The differences of numbers along the chains from the first."""
    return tuple(n - numbers[0] for n in numbers)


def needs_of(groups: Sequence[Group], plan: ProgramPlan) -> dict[Group, list[Need]]:
    """The needs of all groups; callers come first in ``groups``."""
    needs: dict[Group, list[Need]] = {}
    for group in reversed(groups):
        found = dict.fromkeys(
            need
            for item in group.frame.items
            for need in (
                _passed_on(group, item, needs[group.calls[item]])
                if item in group.calls
                else _needs_of_sites(group, item, sites_of(plan, group, item))
            )
            if not isinstance(need, NumberNeed) or any(need.offsets)
        )
        needs[group] = sorted(found, key=lambda need: _ORDER.index(type(need)))
    return needs


def sites_of(plan: ProgramPlan, group: Group, item: Item) -> list[PlannedSite]:
    """A multiplication along every chain of a group; empty if it stays as it is."""
    paths = [(*chain, *item.path) for chain in group.chains]
    return [plan.rewritten[path] for path in paths if path in plan.rewritten]


def along(group: Group, item: Item, values: Sequence[T]) -> tuple[T, ...]:
    """Values of the chains that reach a callee, for the chains that reach its call."""
    at = dict(zip(group.calls[item].chains, values, strict=True))
    return tuple(at[*chain, *item.path] for chain in group.chains)


def _passed_on(group: Group, item: Item, inner: Sequence[Need]) -> Iterator[Need]:
    """The needs that a group has for a call of a function which needs ``inner``."""
    for need in inner:
        match need:
            case KeyNeed(flips):
                yield KeyNeed(split_flips(flips, group.outside, len(item.loops))[0])
            case NumberNeed(offsets):
                yield NumberNeed(offsets_of(along(group, item, offsets)))
            case Slot():
                names = along(group, item, need.names)
                dims = _dims(need.layers, group, item) + need.dims
                yield Slot(item, need, names, dims, need.layers, need.experts)


def _needs_of_sites(group: Group, item: Item, sites: Sequence[PlannedSite]) -> Iterator[Need]:
    for noise in noises_of(sites) if sites else ():
        if noise is not None:
            yield KeyNeed(split_flips(noise.flips, group.outside, len(item.loops))[0])
            yield NumberNeed(offsets_of(noise.numbers))
    for side in (0, 1):
        names = tuple(site.operands[side].history or "" for site in sites)
        if any(names):
            layers, experts = sites[0].layers, sites[0].operands[side].experts
            yield Slot(item, side, names, _dims(layers, group, item), layers, experts)


def _dims(layers: tuple[int | None, ...], group: Group, item: Item) -> tuple[int, ...]:
    """Lengths of the loops over layers around an item, inside of a group."""
    inside = layers[group.outside : group.outside + len(item.loops)]
    return tuple(n for n in inside if n is not None)


def add_arguments(group: Group, needs: Sequence[Need]) -> dict[Need, ir.Value[Any]]:
    """Gives a group's function arguments for what it needs."""
    types = [_type_of(need) for need in needs]
    if group.op.name != "func.func":
        block = group.op.regions[0].blocks[0]
        added = [block.add_argument(t, group.op.location) for t in types]
    elif not group.is_main:
        added = editing.add_arguments(group.op, types)
    else:
        # A value that is quantized in two places has one history.
        marks: list[tuple[str, str | bool]] = [
            (annotation.STATE, need.names[0]) if isinstance(need, Slot) else (annotation.KEY, True)
            for need in needs
        ]
        unique = dict(zip(marks, types, strict=True))
        encoded = [attributes.encode(dict([mark])) for mark in unique]
        new = editing.add_arguments(group.op, list(unique.values()), encoded)
        by_mark = dict(zip(unique, new, strict=True))
        added = [by_mark[mark] for mark in marks]
    return dict(zip(needs, added, strict=True))


def _type_of(need: Need) -> ir.Type:
    from srjit.planning.noise import HISTORY

    match need:
        case KeyNeed():
            return type_of((2,), "uint32")
        case NumberNeed():
            return type_of((), "uint32")
        case Slot():
            return type_of((*need.dims, *need.experts, HISTORY), "float32")
