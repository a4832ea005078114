"""Delayed scales: histories brought to where they are read, and what was seen brought back.

Every operand with a delayed scale has a history of amaxes, with a dimension for each loop of known
length around it. A group takes as arguments those of all operands in it, less the dimensions of the
loops outside of it, and returns what it saw: the jaxpr door's rules, in ``jaxprs/rewrite.py``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from srjit._mlir import ir
from srjit.passes.emit.frames import Item, Local
from srjit.passes.emit.lowering import signature_of, type_of
from srjit.passes.emit.noise import Threads
from srjit.passes.mlir import editing
from srjit.program.control_flow import ControlFlow, flow_of
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.program import Equation, Program, read_program
from srjit.program.values import Path

_FLOAT32 = np.dtype(np.float32)


@dataclasses.dataclass(eq=False)
class Slot:
    """An operand with a delayed scale, as a group sees it.

    Attributes:
      item: the multiplication, or the call inside which it is.
      place: which operand of the multiplication, or which slot of what is called.
      names: of its history, along every chain.
      dims: lengths of the loops inside the group around it.
    """

    item: Item
    place: int
    names: tuple[str, ...]
    dims: tuple[int, ...]


def lengths(loops: Sequence[Local]) -> tuple[int, ...]:
    """The lengths of the loops that have a known one."""
    return tuple(e.loop.length for e, _ in loops if e.loop and e.loop.length is not None)


class Histories:
    """Histories and what was seen, in one group.

    Args:
      threads: of the group, which knows trips.
      arguments: by slot, the history at the group's entry.
    """

    def __init__(self, threads: Threads, arguments: dict[Slot, Any]) -> None:
        self.group, self.threads, self.library = threads.group, threads, threads.library
        self._at: dict[tuple[Slot, int], Any] = {(s, 0): v for s, v in arguments.items()}
        self._seen: dict[Slot, Any] = {}
        self.slots = list(arguments)
        self.done: list[Any] = []  # operations to erase in the end

    def history(self, slot: Slot) -> Any:
        """The history of a slot where its item stands: ``tensor<...xf32>``."""
        loops = slot.item.loops
        for depth, loop in enumerate(loops, 1):
            if (slot, depth) in self._at:
                continue
            before = self._at[slot, depth - 1]
            assert loop[0].loop is not None
            if loop[0].loop.length is None:
                self._at[slot, depth] = before
                continue
            index = self.threads.index(loops[:depth])
            with self.threads.at(loops[:depth]):
                at = self._call("srjit.history_at", None, _index, [before, index])
                self._at[slot, depth] = at
        return self._at[slot, len(loops)]

    def entry(self, slot: Slot) -> Any:
        """The history of a slot at the group's entry."""
        return self._at[slot, 0]

    def see(self, slot: Slot, amax: Any) -> None:
        """What a slot's quantization saw, where its item stands."""
        self._seen[slot] = amax

    def returned(self) -> list[Any]:
        """What the group saw, slot by slot, at the end of its block."""
        found = self._out(self.group.frame.program, (), 0)
        return [found[slot] for slot in self.slots]

    # ------------------------------------------------------------------- out of what encloses

    def _out(self, program: Program, path: Path, depth: int) -> dict[Slot, Any]:
        """What slots inside a program saw, at its end; ``depth``: how many loops are around it."""
        found: dict[Slot, Any] = {}
        for index, eqn in enumerate(program.eqns):
            here = (*path, index)
            slots = [s for s in self.slots if s.item.path[: len(here)] == here]
            if not slots:
                continue
            flow = flow_of(eqn)
            if flow is None or slots[0].item.path == here:
                found |= {slot: self._seen[slot] for slot in slots}
            elif flow.trips is None:
                found |= self._out_of_branches(eqn, flow, here, slots, depth)
            else:
                found |= self._out_of_loop(eqn, flow, here, slots, depth)
        return found

    def _out_of_loop(
        self, eqn: Equation, flow: ControlFlow, path: Path, slots: list[Slot], depth: int
    ) -> dict[Slot, Any]:
        """What a loop carries and returns more, for every slot: one value a trip if it counts them.

        A loop of unknown length has one value for all its trips, and none of its condition.
        """
        inner = self._out(read_program(flow.body.program), (*path, *flow.body.step), depth + 1)
        counts = flow.trips is not None and flow.trips.length is not None
        index = self.threads.index(slots[0].item.loops[: depth + 1]) if counts else None

        def update(before: Any, slot: Slot) -> Any:
            if counts:
                operands = [before, inner[slot], index]
                return self._call("srjit.history_update", None, _update, operands)
            return editing.binary("maximum", before, inner[slot]) if slot in inner else before

        old = self.group.op_of(eqn)
        with ir.InsertionPoint(old), old.location:
            unseen = [self._unseen(slot, depth) for slot in slots]
        types = [v.type for v in unseen]
        new = self._remade(eqn, old, [*old.operands, *unseen], types)
        for region in new.regions:
            for kind in types:
                region.blocks[0].add_argument(kind, new.location)
        body = new.regions[1].blocks[0]
        arguments = list(body.arguments)[-len(slots) :]
        with ir.InsertionPoint(operations.terminator(body)), new.location:
            updated = [update(a, s) for a, s in zip(arguments, slots, strict=True)]
        editing.return_more(body, updated)
        return dict(zip(slots, list(new.results)[-len(slots) :], strict=True))

    def _out_of_branches(
        self, eqn: Equation, flow: ControlFlow, path: Path, slots: list[Slot], depth: int
    ) -> dict[Slot, Any]:
        """What the branch that was taken saw."""
        old = self.group.op_of(eqn)
        regions = list(old.regions)
        if old.name == "stablehlo.if":
            regions.reverse()
        types: list[Any] = []
        for branch, region in zip(flow.regions, regions, strict=True):
            inner = self._out(read_program(branch.program), (*path, *branch.step), depth)
            block = region.blocks[0]
            with ir.InsertionPoint(operations.terminator(block)), old.location:
                values = [inner.get(s) or self._unseen(s, depth) for s in slots]
            editing.return_more(block, values)
            types = [v.type for v in values]
        new = self._remade(eqn, old, list(old.operands), types)
        return dict(zip(slots, list(new.results)[-len(slots) :], strict=True))

    def _remade(self, eqn: Equation, old: Any, operands: list[Any], types: list[Any]) -> Any:
        new = self.group.replaced[eqn] = editing.remade(old, operands, types)
        self.done.append(old)
        return new

    # ---------------------------------------------------------------------------------- pieces

    def _unseen(self, slot: Slot, depth: int) -> Any:
        shape = slot.dims[len(lengths(slot.item.loops[:depth])) :]

        def fun() -> Any:
            import jax.numpy as jnp

            from srjit.jaxprs.evaluator import UNSEEN

            return jnp.full(shape, UNSEEN, jnp.float32)

        return self._call("srjit.unseen", shape, fun, [])

    def remembered(self, history: Any, seen: Any) -> Any:
        """A history with what was seen in front."""

        def fun(history: Any, seen: Any) -> Any:
            from srjit.jaxprs.rewrite import remembered

            return remembered(history, seen)

        return self._call("srjit.remembered", None, fun, [history, seen])

    def _call(self, name: str, key: Any, fun: Any, operands: list[Any]) -> Any:
        symbol, types = self.library.lowered(name, key, fun, signature_of(operands))
        return editing.call(symbol, types, operands)[0]


def _index(history: Any, index: Any) -> Any:
    from jax import lax

    if not history.shape[0]:  # of a loop without iterations: nobody reads it
        return lax.full(history.shape[1:], 0, history.dtype)
    return lax.dynamic_index_in_dim(history, index, keepdims=False)


def _update(stack: Any, value: Any, index: Any) -> Any:
    from jax import lax

    return lax.dynamic_update_index_in_dim(stack, value, index, 0) if stack.shape[0] else stack


def history_type(dims: tuple[int, ...], steps: int) -> Any:
    """The type of a history with these loops' dimensions."""
    return type_of((*dims, steps), _FLOAT32)


_channels = itertools.count(1 << 20)  # beyond those of anybody else in the module


def largest_of_shards(value: Any, meshes: dict[str, dict[str, int]], axes: Sequence[str]) -> Any:
    """The largest of a value's shards along mesh axes: an ``all_reduce`` inside a manual region."""
    names, sizes = next((list(m), list(m.values())) for m in meshes.values() if set(axes) <= set(m))
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    along = [names.index(a) for a in axes]
    others = [d for d in range(len(sizes)) if d not in along]
    groups = devices.transpose([*others, *along]).reshape(-1, math.prod(sizes[d] for d in along))
    kind = ir.IntegerType.get_signless(64)
    array: Any = np.ascontiguousarray(groups, np.int64)
    attribute = ir.DenseElementsAttr.get(array, type=kind)
    op = ir.Operation.create(
        "stablehlo.all_reduce",
        results=[value.type],
        operands=[value],
        attributes={
            "replica_groups": attribute,
            "channel_handle": ir.Attribute.parse(
                f"#stablehlo.channel_handle<handle = {next(_channels)}, type = 1>"
            ),
            "use_global_device_ids": ir.UnitAttr.get(),
        },
        regions=1,
    )
    scalar = type_of((), _FLOAT32)
    block = op.regions[0].blocks.append(scalar, scalar, arg_locs=[op.location] * 2)
    with ir.InsertionPoint(block):
        largest = editing.binary("maximum", *block.arguments)
        ir.Operation.create("stablehlo.return", operands=[largest])
    return op.results[0]
