"""Keys, numbers and histories, brought to where they are needed: into calls and loops.

The jaxpr door's rule: a quantization's key is mix(mix(... mix(key, trip) ..., number), slot), with
the trips of the loops around it, outermost first. Here @main has the key as an argument; a group of
chains gets as arguments the key with the trips of the loops outside of it, and what its numbers
differ by. Every operand with a delayed scale has a history of amaxes, with a dimension for each
loop over layers around it; a group gets it less the dimensions of the loops outside.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from srjit._mlir import ir
from srjit.passes.emit.frames import Group, Item, Local
from srjit.passes.emit.lowering import Library, type_of
from srjit.passes.emit.needs import (
    Flips,
    KeyNeed,
    Need,
    NoiseSource,
    NumberNeed,
    Slot,
    along,
    offsets_of,
    split_flips,
)
from srjit.passes.mlir import editing
from srjit.program.stablehlo.meshes import Meshes, stride_of
from srjit.program.stablehlo.program import Equation

Loops = tuple[Local, ...]


class Values:
    """Emits keys, numbers and histories for the operations of one group.

    Args:
      group: whose operations these are.
      given: for each of its needs, the value at its entry.
      library: for the functions that mix.
      meshes: sizes of the axes of every mesh.
    """

    def __init__(
        self, group: Group, given: Mapping[Need, Any], library: Library, meshes: Meshes
    ) -> None:
        self.group, self.library, self.meshes = group, library, meshes
        self.slots = [need for need in given if isinstance(need, Slot)]
        self._made: dict[Hashable, Any] = {**given}
        self._anchors: dict[Any, Any] = {}

    def passed(self, need: Need, item: Item) -> Any:
        """The value of something that the function which an item calls needs."""
        match need:
            case KeyNeed(flips):
                return self._key(flips, item)
            case NumberNeed(offsets):
                return self._number(along(self.group, item, offsets), item.loops)
            case Slot():
                return self.history(self.slot(item, need))

    def slot(self, item: Item, place: int | Slot) -> Any:
        """The slot at a place of an item, or None."""
        return next((s for s in self.slots if s.item is item and s.place == place), None)

    def key_of(self, noise: NoiseSource, item: Item) -> Any:
        """The key of one quantization: ``tensor<2xui32>``."""
        number = self._number(noise.numbers, item.loops)
        key = self._key(noise.flips, item)

        def make() -> Any:
            mixed = self._mix(self._mix(key, number), editing.constant(noise.slot))
            for axis in noise.axes:
                mixed = self._mix(mixed, self._axis_index(axis))
            return mixed

        return self._once((key, noise.numbers, noise.slot, noise.axes), item.loops, make)

    def history(self, slot: Slot) -> Any:
        """The history of a slot where its item stands: ``tensor<...xf32>``."""

        def inside(loops: Loops) -> Any:
            if not loops:
                return self._made[slot]
            before = inside(loops[:-1])
            if slot.layers[self.group.outside + len(loops) - 1] is None:
                return before
            index = self.index(loops)
            make = functools.partial(self.library.call, "srjit.history_at", _slice, before, index)
            return self._once((slot, len(loops)), loops, make)

        return inside(slot.item.loops)

    def entry(self, slot: Slot) -> Any:
        """The history of a slot at the group's entry."""
        return self._made[slot]

    def index(self, loops: Loops) -> Any:
        """The slice that the innermost loop, of known length, is at: ``tensor<ui32>``."""
        loop = loops[-1][0].loop
        assert loop is not None
        return self._trip(loops, loop.reverse)

    # ---------------------------------------------------------------------------------- pieces

    def _key(self, flips: Flips, item: Item) -> Any:
        """The key with the trips of all loops around an item."""
        outer, inner = split_flips(flips, self.group.outside, len(item.loops))

        def inside(loops: Loops) -> Any:
            if not loops:
                return self._made[KeyNeed(outer)]
            before = inside(loops[:-1])
            is_flipped = inner[len(loops) - 1] and _length(loops) is not None
            name = ("key", outer, loops, inner[: len(loops)])
            return self._once(name, loops, lambda: self._mix(before, self._trip(loops, is_flipped)))

        return inside(item.loops)

    def _number(self, numbers: Sequence[int], loops: Loops) -> Any:
        """A number that may differ along the chains: ``tensor<ui32>``."""

        def make() -> Any:
            first, offsets = editing.constant(numbers[0] % 2**32), offsets_of(numbers)
            if not any(offsets):
                return first
            return editing.binary("add", first, self._made[NumberNeed(offsets)])

        return self._once(("number", tuple(numbers), self._block(loops)), loops, make)

    def _trip(self, loops: Loops, is_backwards: bool) -> Any:
        """The number of the innermost loop's trip, counted from the last if backwards."""
        unsigned, counted = type_of((), "uint32"), self.group.counters[loops[-1][0]]
        trip = self._block(loops).arguments[counted]
        if trip.type != unsigned:
            convert = functools.partial(editing.create, "stablehlo.convert", [unsigned], [trip])
            trip = self._once(("trip", loops[-1]), loops, convert)[0]
        if not is_backwards:
            return trip
        last = (_length(loops) or 0) - 1
        return self._once(
            ("left", loops[-1]),
            loops,
            lambda: editing.binary("subtract", editing.constant(last), trip),
        )

    def _once(self, name: Hashable, loops: Loops, make: Callable[[], Any]) -> Any:
        """Calls ``make``, once a name, where the innermost loop's body begins."""
        if name not in self._made:
            with self._at(self._block(loops)):
                self._made[name] = make()
        return self._made[name]

    def _block(self, loops: Loops) -> ir.Block:
        """The block that the innermost loop repeats, or the frame's own."""
        if not loops:
            return self.group.op.regions[0].blocks[0]
        eqn, part = loops[-1]
        return self.group.op_of(eqn).regions[int(part == "body")].blocks[0]

    def _at(self, block: ir.Block) -> contextlib.AbstractContextManager[Any]:
        if block not in self._anchors:
            self._anchors[block] = block.operations[0].operation
        return ir.InsertionPoint(self._anchors[block])

    def _mix(self, key: Any, number: Any) -> Any:
        def fun(key: Any, number: Any) -> Any:
            import jax.numpy as jnp

            from srjit.numerics.random_bits import mix

            return jnp.stack(mix((key[0], key[1]), number))

        return self.library.call("srjit.mix", fun, key, number)

    def _axis_index(self, axis: str) -> Any:
        """``lax.axis_index`` of a mesh axis, as JAX lowers it."""
        axes = next(axes for axes in self.meshes.values() if axis in axes)
        where = editing.create("stablehlo.partition_id", [type_of((), "uint32")], [])[0]
        where = editing.binary("divide", where, editing.constant(stride_of(axes, axis)))
        return editing.binary("remainder", where, editing.constant(axes[axis]))


def _length(loops: Loops) -> int | None:
    """The number of trips of the innermost loop; None where it is not known."""
    loop = loops[-1][0].loop
    return loop and loop.length


def _slice(history: Any, index: Any) -> Any:
    from jax import lax

    if not history.shape[0]:  # of a loop without iterations: nobody reads it
        return lax.full(history.shape[1:], 0, history.dtype)
    return lax.dynamic_index_in_dim(history, index, keepdims=False)


def count_trips(group: Group) -> None:
    """Gives the loops around multiplications and calls a counter, if they have none."""
    for eqn in dict.fromkeys(eqn for item in group.frame.items for eqn, _ in item.loops):
        assert eqn.loop is not None
        counter = eqn.loop.counter
        group.counters[eqn] = _add_counter(group, eqn) if counter is None else counter


def _add_counter(group: Group, eqn: Equation) -> int:
    old = group.op_of(eqn)
    with ir.InsertionPoint(old), old.location:
        zero = editing.constant(0)
    group.replaced[eqn] = editing.carry_more(
        old, [zero], lambda count: [editing.binary("add", count[0], editing.constant(1))]
    )
    position = len(old.operands)
    old.erase()
    return position
