"""Amaxes that delayed scales saw, brought back out of loops and branches, as in the jaxpr door."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from srjit._mlir import ir
from srjit.passes.emit import lowering
from srjit.passes.emit.needs import Slot
from srjit.passes.emit.values import Values
from srjit.passes.mlir import editing
from srjit.program.control_flow import ControlFlow, flow_of
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.meshes import Meshes
from srjit.program.stablehlo.program import Equation, Program, read_program
from srjit.program.stablehlo.regions import branches
from srjit.program.values import Path


class Seen:
    """The amaxes that the delayed scales of one group saw.

    Attributes:
      at: by slot, what its quantization saw, where its item stands.
      done: operations to erase in the end.
    """

    def __init__(self, values: Values) -> None:
        self.values, self.group = values, values.group
        self.at: dict[Slot, Any] = {}
        self.done: list[Any] = []

    def returned(self) -> list[Any]:
        """The amaxes that the group saw, slot by slot, at the end of its block."""
        found = self._out(self.group.frame.program, (), 0)
        return [found[slot] for slot in self.values.slots]

    def type_of(self, slot: Slot, depth: int) -> ir.Type:
        """The type of what a slot saw inside of the outermost loops."""
        return lowering.type_of(_shape(slot, self.group.outside, depth), "float32")

    def _out(self, program: Program, path: Path, depth: int) -> dict[Slot, Any]:
        """The amaxes of slots inside a program, at its end; ``depth`` loops are around it."""
        found: dict[Slot, Any] = {}
        for index, eqn in enumerate(program.eqns):
            here = (*path, index)
            slots = [s for s in self.values.slots if s.item.path[: len(here)] == here]
            if not slots:
                continue
            flow = flow_of(eqn)
            if flow is None or slots[0].item.path == here:
                found |= {slot: self.at[slot] for slot in slots}
            elif flow.trips is None:
                found |= self._out_of_branches(eqn, flow, here, slots, depth)
            else:
                found |= self._out_of_loop(eqn, flow, here, slots, depth)
        return found

    def _out_of_loop(
        self, eqn: Equation, flow: ControlFlow, path: Path, slots: list[Slot], depth: int
    ) -> dict[Slot, Any]:
        """The amaxes that a loop carries and returns: for every slot, one a trip over layers.

        Any other loop has the largest of all its trips, and none of its condition.
        """
        inner = self._out(read_program(flow.body.program), (*path, *flow.body.step), depth + 1)
        counts = slots[0].layers[self.group.outside + depth] is not None
        index = self.values.index(slots[0].item.loops[: depth + 1]) if counts else None

        def update(before: list[Any]) -> list[Any]:
            if not counts:
                return [
                    editing.binary("maximum", b, inner[s]) if s in inner else b
                    for b, s in zip(before, slots, strict=True)
                ]
            call = self.values.library.call
            return [
                call("srjit.history_update", _update, b, inner[s], index)
                for b, s in zip(before, slots, strict=True)
            ]

        old = self.group.op_of(eqn)
        with ir.InsertionPoint(old), old.location:
            unseen = [self._unseen(slot, depth) for slot in slots]
        return self._remade(eqn, old, editing.carry_more(old, unseen, update), slots)

    def _out_of_branches(
        self, eqn: Equation, flow: ControlFlow, path: Path, slots: list[Slot], depth: int
    ) -> dict[Slot, Any]:
        """The amaxes of the branch that was taken."""
        old = self.group.op_of(eqn)
        for branch, region in zip(flow.regions, branches(old), strict=True):
            inner = self._out(read_program(branch.program), (*path, *branch.step), depth)
            block = region.blocks[0]
            with ir.InsertionPoint(operations.terminator(block)), old.location:
                values = [inner.get(s) or self._unseen(s, depth) for s in slots]
            editing.return_more(block, values)
        types = [self.type_of(slot, depth) for slot in slots]
        return self._remade(eqn, old, editing.remade(old, old.operands, types), slots)

    def _remade(self, eqn: Equation, old: Any, new: Any, slots: list[Slot]) -> dict[Slot, Any]:
        """Puts an operation in place of an equation's own; its last results are what slots saw."""
        self.group.replaced[eqn] = new
        self.done.append(old)
        return dict(zip(slots, list(new.results)[-len(slots) :], strict=True))

    def _unseen(self, slot: Slot, depth: int) -> Any:
        shape = _shape(slot, self.group.outside, depth)

        def fun() -> Any:
            import jax.numpy as jnp

            from srjit.numerics.scaling import UNSEEN

            return jnp.full(shape, UNSEEN, jnp.float32)

        return self.values.library.call("srjit.unseen", fun, key=shape)


def _shape(slot: Slot, outside: int, depth: int) -> tuple[int, ...]:
    around = slot.layers[outside : outside + depth]
    return (*slot.dims[sum(n is not None for n in around) :], *slot.experts)


def remembered(history: Any, seen: Any) -> Any:
    """A history with what was seen in front."""
    from srjit.jaxprs.rewrite import remembered

    return remembered(history, seen)


def _update(stack: Any, value: Any, index: Any) -> Any:
    from jax import lax

    return lax.dynamic_update_index_in_dim(stack, value, index, 0) if stack.shape[0] else stack


_channels = itertools.count(1 << 20)  # beyond those of anybody else in the module


def fresh_channel() -> ir.Attribute:
    """The channel of a new collective."""
    return ir.Attribute.parse(f"#stablehlo.channel_handle<handle = {next(_channels)}, type = 1>")


def largest_of_shards(value: Any, meshes: Meshes, axes: Sequence[str]) -> Any:
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
            "channel_handle": fresh_channel(),
            "use_global_device_ids": ir.UnitAttr.get(),
        },
        regions=1,
    )
    scalar = ir.RankedTensorType.get([], ir.RankedTensorType(value.type).element_type)
    block = op.regions[0].blocks.append(scalar, scalar, arg_locs=[op.location] * 2)
    with ir.InsertionPoint(block):
        largest = editing.binary("maximum", *block.arguments)
        ir.Operation.create("stablehlo.return", operands=[largest])
    return op.results[0]
