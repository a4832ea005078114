"""Keys and numbers of noise, brought to where they are needed: through calls and into loops.

The jaxpr door's rule: a quantization's key is mix(mix(... mix(key, trip) ..., number), slot), with
the trips of the loops around it, outermost first. Here @main has the key as an argument; a group of
chains gets as arguments the key with the trips of the loops outside of it, and what its numbers
differ by.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from srjit._mlir import ir
from srjit.passes.emit.frames import Group, Item, Local
from srjit.passes.emit.lowering import Library, type_of
from srjit.passes.mlir import editing
from srjit.program.stablehlo import operations

if TYPE_CHECKING:
    from srjit.planning.noise import Draw
    from srjit.planning.planned_site import PlannedSite
    from srjit.program.stablehlo.program import Equation

    Value = ir.Value[Any]

Flips = tuple[bool, ...]
_UINT32 = np.dtype(np.uint32)


@dataclasses.dataclass(frozen=True)
class Noise:
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


Noises = tuple[Noise | None, Noise | None, Noise | None]


def noises_of(sites: Sequence[PlannedSite]) -> Noises:
    """The sources of the noise of a multiplication's operands, and of their signs.

    Args:
      sites: the multiplication along every chain of a group.
    """
    found: list[Noise | None] = []
    for side, operand in enumerate(sites[0].operands):
        draws, axes = [s.operands[side].draw for s in sites], tuple(sorted(operand.varies))
        found.append(_noise(draws, axes) if operand.draws else None)
    signs = [s.signs for s in sites if s.signs is not None]
    return found[0], found[1], _noise(signs, ()) if signs else None


def _noise(draws: Sequence[Draw], axes: tuple[str, ...]) -> Noise:
    return Noise(tuple(d.number for d in draws), draws[0].slot, draws[0].flips, axes)


def split_flips(flips: Flips, outside: int, inside: int) -> tuple[Flips, Flips]:
    """Flips of the loops outside of a frame (empty if there are none), and inside of it."""
    padded = (*flips, *(False,) * (outside + inside - len(flips)))
    outer = padded[:outside]
    return (outer if any(outer) else ()), padded[outside : outside + inside]


def offsets_of(numbers: Sequence[int]) -> tuple[int, ...]:
    """The differences of numbers along the chains from the first."""
    return tuple(n - numbers[0] for n in numbers)


class Threads:
    """Emits keys and numbers for the operations of one group.

    Args:
      group: whose operations these are.
      keys: by outer flips, the key at the group's entry.
      offsets: by offsets, the value that holds them.
      library: for the functions that mix.
      meshes: sizes of the axes of every mesh.
    """

    def __init__(
        self,
        group: Group,
        keys: dict[Flips, Value],
        offsets: dict[tuple[int, ...], Value],
        library: Library,
        meshes: dict[str, dict[str, int]],
    ) -> None:
        self.group, self.library, self.meshes = group, library, meshes
        self._offset_values = offsets
        self._keys: dict[Hashable, Value] = {("entry", outer): key for outer, key in keys.items()}
        self._anchors: dict[ir.Block, ir.Operation] = {}
        self._trips: dict[Local, Value] = {}

    # -------------------------------------------------------------------------------- requests

    def key_of(self, noise: Noise, item: Item, outside: int) -> Value:
        """The key of one quantization: ``tensor<2xui32>``."""
        outer, inner = split_flips(noise.flips, outside, len(item.loops))
        number = self.number(noise.numbers, item.loops)
        key, where = self.key(outer, item.loops, inner), self._block(item.loops)
        name = (key, noise.numbers, noise.slot, noise.axes)
        if name not in self._keys:
            with self._at(where):
                mixed = self._mix(key, number)
                mixed = self._mix(mixed, editing.constant(noise.slot))
                for axis in noise.axes:
                    mixed = self._mix(mixed, self._axis_index(axis))
            self._keys[name] = mixed
        return self._keys[name]

    def key(self, outer: Flips, loops: tuple[Local, ...], inner: Flips) -> Value:
        """The key with the trips of all loops around."""
        name = ("loop", outer, loops, inner) if loops else ("entry", outer)
        if name not in self._keys:
            before = self.key(outer, loops[:-1], inner[:-1])
            trip = self._trip(loops[-1])
            with self._at(self._block(loops)):
                if inner[-1]:
                    loop = loops[-1][0].loop
                    assert loop is not None
                    if loop.length is not None:
                        last = editing.constant(loop.length - 1)
                        trip = editing.binary("subtract", last, trip)
                self._keys[name] = self._mix(before, trip)
        return self._keys[name]

    def number(self, numbers: Sequence[int], loops: tuple[Local, ...]) -> Value:
        """A number that may differ along the chains: ``tensor<ui32>``."""
        offsets = offsets_of(numbers)
        name = ("number", tuple(numbers), self._block(loops))
        if name not in self._keys:
            with self._at(self._block(loops)):
                value = editing.constant(numbers[0] % 2**32)
                if any(offsets):
                    value = editing.binary("add", value, self._offset_values[offsets])
            self._keys[name] = value
        return self._keys[name]

    def index(self, loops: tuple[Local, ...]) -> Value:
        """The slice that the innermost loop, of known length, is at: ``tensor<ui32>``."""
        loop = loops[-1][0].loop
        assert loop is not None and loop.length is not None
        trip = self._trip(loops[-1])
        if not loop.reverse:
            return trip
        name = ("index", loops)
        if name not in self._keys:
            with self.at(loops):
                last = editing.constant(loop.length - 1)
                self._keys[name] = editing.binary("subtract", last, trip)
        return self._keys[name]

    def at(self, loops: tuple[Local, ...]) -> ir.InsertionPoint:
        """An insertion point at the beginning of what the innermost loop repeats."""
        return self._at(self._block(loops))

    # ---------------------------------------------------------------------------------- pieces

    def _block(self, loops: tuple[Local, ...]) -> ir.Block:
        """The block that the innermost loop repeats, or the frame's own."""
        if not loops:
            return self.group.op.regions[0].blocks[0]
        eqn, part = loops[-1]
        return self.group.op_of(eqn).regions[int(part == "body")].blocks[0]

    def _at(self, block: ir.Block) -> ir.InsertionPoint:
        """An insertion point at the block's beginning, behind what was inserted there before."""
        if block not in self._anchors:
            self._anchors[block] = block.operations[0].operation
        return ir.InsertionPoint(self._anchors[block])

    def _trip(self, loop: Local) -> Value:
        """The number of the iteration, ``tensor<ui32>``."""
        if loop not in self._trips:
            eqn, _ = loop
            block = self._block((loop,))
            counter = block.arguments[self.group.counters[eqn]]
            unsigned = type_of((), "uint32")
            with self._at(block):
                if counter.type != unsigned:
                    counter = editing.create("stablehlo.convert", [unsigned], [counter])[0]
            self._trips[loop] = counter
        return self._trips[loop]

    def _mix(self, key: Value, number: Value) -> Value:
        """``mix(key, number)``."""

        def fun(key: Any, number: Any) -> Any:
            import jax.numpy as jnp

            from srjit.numerics.random_bits import mix

            return jnp.stack(mix((key[0], key[1]), number))

        signature = (((2,), _UINT32), ((), _UINT32))
        symbol, types = self.library.lowered("srjit.mix", None, fun, signature)
        return editing.call(symbol, types, [key, number])[0]

    def _axis_index(self, axis: str) -> Value:
        """``lax.axis_index`` of a mesh axis, as JAX lowers it."""
        for axes in self.meshes.values():
            if axis in axes:
                names = list(axes)
                behind = names[names.index(axis) + 1 :]
                stride = 1
                for name in behind:
                    stride *= axes[name]
                where = editing.create("stablehlo.partition_id", [type_of((), "uint32")], [])[0]
                where = editing.binary("divide", where, editing.constant(stride))
                return editing.binary("remainder", where, editing.constant(axes[axis]))
        raise AssertionError(f"no mesh has an axis {axis}")


def count_trips(group: Group) -> None:
    """Gives the loops around multiplications and calls a counter, if they have none."""
    loops = dict.fromkeys(eqn for item in group.frame.items for eqn, _ in item.loops)
    for eqn in loops:
        assert eqn.loop is not None
        if eqn.loop.counter is not None:
            group.counters[eqn] = eqn.loop.counter
        else:
            group.counters[eqn] = _add_counter(group, eqn)


def _add_counter(group: Group, eqn: Equation) -> int:
    old = group.op_of(eqn)
    unsigned = type_of((), "uint32")
    with ir.InsertionPoint(old), old.location:
        zero = editing.constant(0)
    new = editing.rebuilt(old, [*old.operands, zero], [unsigned])
    for region in new.regions:
        region.blocks[0].add_argument(unsigned, new.location)
    body = new.regions[1].blocks[0]
    position = len(body.arguments) - 1
    with ir.InsertionPoint(operations.terminator(body)), new.location:
        after = editing.binary("add", body.arguments[position], editing.constant(1))
    editing.return_more(body, [after])
    group.replaced[eqn] = new
    return position
