"""Needs of functions: the keys, numbers and histories that they take from their callers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from srjit._mlir import ir
from srjit.passes.emit.frames import Group, Item
from srjit.passes.emit.lowering import type_of
from srjit.passes.emit.noise import Flips, noises_of, offsets_of, split_flips
from srjit.passes.emit.states import Slot, history_type, lengths
from srjit.passes.mlir import annotation, editing

if TYPE_CHECKING:
    from srjit.passes.emit.noise import Value
    from srjit.planning.plan import ProgramPlan
    from srjit.planning.planned_site import PlannedSite

T = TypeVar("T")


@dataclasses.dataclass
class Needs:
    """Everything that a group takes from its callers.

    Attributes:
      keys: for each key, which of the outer loops' trips count the other way round.
      offsets: for each number, what it is along every chain, less what it is along the first.
      slots: its operands with delayed scales, whose histories it takes.
    """

    keys: list[Flips] = dataclasses.field(default_factory=list[Flips])
    offsets: list[tuple[int, ...]] = dataclasses.field(default_factory=list[tuple[int, ...]])
    slots: list[Slot] = dataclasses.field(default_factory=list[Slot])

    def add_key(self, outer: Flips) -> None:
        """A key is needed."""
        if outer not in self.keys:
            self.keys.append(outer)

    def add_numbers(self, numbers: Sequence[int]) -> None:
        """A number is needed that is this along the chains."""
        offsets = offsets_of(numbers)
        if any(offsets) and offsets not in self.offsets:
            self.offsets.append(offsets)


def needs_of(groups: Sequence[Group], plan: ProgramPlan) -> dict[Group, Needs]:
    """The needs of all groups; callers come first in ``groups``."""
    needs: dict[Group, Needs] = {}
    for group in reversed(groups):
        found = needs[group] = Needs()
        outside = group.frame.chains[group.chains[0]]
        for item in group.frame.items:
            if item in group.calls:
                _add_call(found, group, item, needs[group.calls[item]], outside)
            elif sites := sites_of(plan, group, item):
                _add_sites(found, sites, item, outside)
    return needs


def sites_of(plan: ProgramPlan, group: Group, item: Item) -> list[PlannedSite]:
    """A multiplication along every chain of a group; empty if it stays as it is."""
    paths = [(*chain, *item.path) for chain in group.chains]
    return [plan.rewritten[path] for path in paths if path in plan.rewritten]


def along(group: Group, item: Item, values: Sequence[T]) -> list[T]:
    """Values of the chains that reach a callee, for the chains that reach its call."""
    at = dict(zip(group.calls[item].chains, values, strict=True))
    return [at[*chain, *item.path] for chain in group.chains]


def _add_call(needs: Needs, group: Group, item: Item, inner: Needs, outside: int) -> None:
    for flips in inner.keys:
        needs.add_key(split_flips(flips, outside, len(item.loops))[0])
    for offsets in inner.offsets:
        needs.add_numbers(along(group, item, offsets))
    for place, slot in enumerate(inner.slots):
        names = tuple(along(group, item, slot.names))
        needs.slots.append(Slot(item, place, names, lengths(item.loops) + slot.dims))


def _add_sites(needs: Needs, sites: Sequence[PlannedSite], item: Item, outside: int) -> None:
    for noise in noises_of(sites):
        if noise is not None:
            needs.add_key(split_flips(noise.flips, outside, len(item.loops))[0])
            needs.add_numbers(noise.numbers)
    for side in (0, 1):
        names = tuple(site.operands[side].history or "" for site in sites)
        if any(names):
            needs.slots.append(Slot(item, side, names, lengths(item.loops)))


def add_arguments(group: Group, needs: Needs) -> list[Value]:
    """Gives a group's function arguments for what it needs: keys, then numbers, then histories."""
    from srjit.planning.noise import HISTORY

    key, number = type_of((2,), "uint32"), type_of((), "uint32")
    histories = [history_type(slot.dims, HISTORY) for slot in needs.slots]
    types = [*[key] * len(needs.keys), *[number] * len(needs.offsets), *histories]
    if group.frame.op.name != "func.func":
        block = group.op.regions[0].blocks[0]
        return [block.add_argument(t, group.op.location) for t in types]
    if not group.is_main:
        return editing.add_arguments(group.op, types)
    # A value that is quantized in two places has one history.
    names = {slot.names[0]: kind for slot, kind in zip(needs.slots, histories, strict=True)}
    marks = [ir.DictAttr.get({annotation.KEY: ir.BoolAttr.get(True)}) for _ in needs.keys]
    marks += [ir.DictAttr.get({annotation.STATE: ir.StringAttr.get(n)}) for n in names]
    types = [*[key] * len(needs.keys), *names.values()]
    added = editing.add_arguments(group.op, types, marks)
    by_name = dict(zip(names, added[len(needs.keys) :], strict=True))
    return [*added[: len(needs.keys)], *(by_name[slot.names[0]] for slot in needs.slots)]
