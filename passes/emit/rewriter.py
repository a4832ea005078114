"""Rewrites one function of a module: its multiplications are quantized, its calls pass on needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from srjit._mlir import ir
from srjit.passes.driver.registry import PassError
from srjit.passes.emit.composites import Masked, Quantizer, ScaledDot, composite
from srjit.passes.emit.frames import Group, Item
from srjit.passes.emit.lowering import Library, type_of
from srjit.passes.emit.needs import Needs, along, sites_of
from srjit.passes.emit.noise import Threads, count_trips, noises_of, split_flips
from srjit.passes.emit.states import Histories, largest_of_shards, lengths
from srjit.passes.mlir import annotation, editing
from srjit.program.site_names import scope_of
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.meshes import manual_axes_of, with_replicated

if TYPE_CHECKING:
    from srjit.passes.emit.noise import Value
    from srjit.planning.plan import ProgramPlan
    from srjit.planning.planned_site import Operand, SiteParams

_FLOAT32 = np.dtype(np.float32)


class GroupRewriter:
    """Rewrites the multiplications and calls of one function.

    Args:
      group: the function.
      plan: of the program.
      needs: of all groups.
      arguments: what the function has got for its own needs.
      library: the functions that the module calls.
      meshes: sizes of the axes of every mesh.
    """

    def __init__(
        self,
        group: Group,
        plan: ProgramPlan,
        needs: Mapping[Group, Needs],
        arguments: Sequence[Value],
        library: Library,
        meshes: dict[str, dict[str, int]],
    ) -> None:
        self.group, self.plan, self.needs = group, plan, needs
        self.library, self.meshes = library, meshes
        self.outside = group.frame.chains[group.chains[0]]
        own = needs[group]
        if own.keys or own.slots:
            count_trips(group)
        n, m = len(own.keys), len(own.keys) + len(own.offsets)
        self.threads = Threads(
            group,
            dict(zip(own.keys, arguments[:n], strict=True)),
            dict(zip(own.offsets, arguments[n:m], strict=True)),
            library,
            meshes,
        )
        self.histories = Histories(self.threads, dict(zip(own.slots, arguments[m:], strict=True)))
        self.done: list[ir.Operation] = []

    def run(self) -> None:
        """Rewrites."""
        for item in self.group.frame.items:
            if item in self.group.calls:
                self._call(item, self.group.calls[item])
            else:
                self._site(item)
        if self.histories.slots:
            self._return_seen()
        for op in (*self.done, *self.histories.done):
            op.erase()

    def _return_seen(self) -> None:
        """Lets the function return what its delayed scales saw; @main, the new histories."""
        op = self.group.op
        block = op.regions[0].blocks[0]
        seen = self.histories.returned()
        names: list[str] = []
        with ir.InsertionPoint(operations.terminator(block)), op.location:
            if op.name == "sdy.manual_computation":
                axes = manual_axes_of(op)
                seen = [largest_of_shards(v, self.meshes, axes) for v in seen]
            elif self.group.is_main:
                names, seen = self._remembered(seen)
        if op.name != "func.func":
            editing.return_more(block, seen)
            return
        marks = [ir.DictAttr.get({annotation.STATE: ir.StringAttr.get(n)}) for n in names]
        editing.add_results(op, seen, marks)

    def _remembered(self, seen: list[Value]) -> tuple[list[str], list[Value]]:
        """The names of all histories, and what becomes of them."""
        largest: dict[str, Value] = {}
        entry: dict[str, Value] = {}
        for slot, value in zip(self.histories.slots, seen, strict=True):
            name = slot.names[0]
            before = largest.get(name)
            largest[name] = value if before is None else editing.binary("maximum", before, value)
            entry[name] = self.histories.entry(slot)
        new = [self.histories.remembered(entry[name], value) for name, value in largest.items()]
        return list(largest), new

    # ----------------------------------------------------------------------------------- calls

    def _call(self, item: Item, inner: Group) -> None:
        wanted = self.needs[inner]
        old = self.group.op_of(item.eqn)
        values = [self._key(item, flips) for flips in wanted.keys]
        for offsets in wanted.offsets:
            numbers = along(self.group, item, offsets)
            values.append(self.threads.number(numbers, item.loops))
        slots = [s for s in self.histories.slots if s.item is item]
        with old.location:
            values += [self.histories.history(slot) for slot in slots]
        types = [type_of(s.dims[len(lengths(item.loops)) :], _FLOAT32) for s in slots]
        operands = [*old.operands, *values]
        if old.name == "func.call":
            name = ir.StringAttr(inner.op.attributes["sym_name"]).value
            symbol = ir.FlatSymbolRefAttr.get(name)
            if not values:
                old.attributes["callee"] = symbol
                return
            new = editing.remade(old, operands, types, callee=symbol)
        elif not values:
            return
        else:
            shardings = {
                "in_shardings": _replicated(old, "in_shardings", [v.type for v in values]),
                "out_shardings": _replicated(old, "out_shardings", types),
            }
            new = inner.op = editing.remade(old, operands, types, **shardings)
        self.done.append(old)
        for slot, seen in zip(slots, list(new.results)[len(old.results) :], strict=True):
            self.histories.see(slot, seen)

    def _key(self, item: Item, flips: tuple[bool, ...]) -> Value:
        outer, inside = split_flips(flips, self.outside, len(item.loops))
        return self.threads.key(outer, item.loops, inside)

    # ----------------------------------------------------------------------------------- sites

    def _site(self, item: Item) -> None:
        sites = [self.plan.sites.get((*chain, *item.path)) for chain in self.group.chains]
        entries = [site.row for site in sites if site is not None]
        planned = sites[0]
        if planned is None:
            return
        op, params = self.group.op_of(item.eqn), planned.params
        if params is None or not planned.quantized:
            annotation.write(op, entries)
            return
        noises = noises_of(sites_of(self.plan, self.group, item))
        *keys, signs = [n and self.threads.key_of(n, item, self.outside) for n in noises]
        extras = list(op.operands)[2:]
        site = entries[0].site.number  # of those that are this operation, the first
        with ir.InsertionPoint(op):
            operands = [
                self._operand(item, params, o, keys[o.side], signs, site) for o in planned.operands
            ]
            counts = (len(operands[0]), len(operands[1]))
            dot = ScaledDot(params.product, params.dtype, params.lhs, params.rhs, counts)
            with _named(op, f"srjit_{params.label}", site):
                values = [*operands[0], *operands[1], *extras]
                new = composite(self.library, dot, values, dot.described(op))
        annotation.write(new, entries)
        op.results[0].replace_all_uses_with(new.results[0])
        self.done.append(op)

    def _operand(
        self,
        item: Item,
        params: SiteParams,
        operand: Operand,
        key: Value | None,
        signs: Value | None,
        site: int,
    ) -> list[Value]:
        """An operand's values and, if they have one, their scale; itself in high precision."""
        op, side = self.group.op_of(item.eqn), operand.side
        x, extras = op.operands[side], list(op.operands)[2:]
        if operand.shared is None:
            return [x]
        spec, product = operand.shared.spec, params.product
        here = (s for s in self.histories.slots if s.item is item and s.place == side)
        slot = next(here, None)
        quantizer = Quantizer(
            spec,
            params.rng,
            draws=key is not None,
            flips=signs is not None,
            remembers=slot is not None,
            in_memory=operand.in_memory,
            masked=Masked(product, side) if product.masks(side) else None,
        )
        with _named(op, f"srjit_quantize_{spec.format}_{spec.rounding}", site):
            given = [
                x,
                *(extras if quantizer.masked else ()),
                *([key] if quantizer.draws else ()),
                *([signs] if quantizer.flips else ()),
                *([self.histories.history(slot)] if slot else ()),
            ]
            new = composite(self.library, quantizer, given, quantizer.described())
            values = list(new.results)
            if slot:
                self.histories.see(slot, values.pop())
        return values


def _named(op: ir.Operation, name: str, site: int) -> ir.Location:
    """The location of what stands for an operation, with a name that profilers show."""
    scope = scope_of(site)
    return ir.Location.name(f"{scope}/{name}" if scope else name, op.location)


def _replicated(op: ir.Operation, which: str, types: list[ir.Type]) -> ir.Attribute:
    """The shardings of a manual computation with more values, which all devices have."""
    try:
        return with_replicated(op, which, [ir.RankedTensorType(t).rank for t in types])
    except LookupError as error:
        raise PassError(op, str(error)) from None
