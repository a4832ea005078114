"""Rewrites one function of a module: its multiplications are quantized, its calls pass on needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from srjit._mlir import ir
from srjit.passes.emit.composites import Masked, Quantizer, ScaledDot, composite
from srjit.passes.emit.frames import Group, Item
from srjit.passes.emit.gathered import gathered
from srjit.passes.emit.lowering import Library
from srjit.passes.emit.needs import Need, Slot, noises_of, sites_of
from srjit.passes.emit.seen import Seen, largest_of_shards, remembered
from srjit.passes.emit.values import Values, count_trips
from srjit.passes.mlir import annotation, attributes, editing
from srjit.program.site_names import scope_of
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.meshes import Meshes, manual_axes_of, with_replicated

if TYPE_CHECKING:
    from srjit.planning.plan import ProgramPlan
    from srjit.planning.planned_site import Operand, SiteParams


class GroupRewriter:
    """Rewrites the multiplications and calls of one function.

    Args:
      group: the function.
      plan: of the program.
      needs: of all groups, with what their functions have got for them.
      library: the functions that the module calls.
      meshes: sizes of the axes of every mesh.
    """

    def __init__(
        self,
        group: Group,
        plan: ProgramPlan,
        needs: Mapping[Group, Mapping[Need, Any]],
        library: Library,
        meshes: Meshes,
    ) -> None:
        self.group, self.plan, self.needs, self.library = group, plan, needs, library
        if needs[group]:
            count_trips(group)
        self.values = Values(group, needs[group], library, meshes)
        self.seen = Seen(self.values)
        self.done: list[Any] = []
        self._again: dict[tuple[Any, Any], Any] = {}
        self._gathered: dict[tuple[Any, Any], list[Any]] = {}  # codes, by what of, and how

    def run(self) -> None:
        """Rewrites."""
        for item in self.group.frame.items:
            if item in self.group.calls:
                self._call(item, self.group.calls[item])
            else:
                self._site(item)
        if self.values.slots:
            self._return_seen()
        for op in (*self.done, *self.seen.done):
            op.erase()

    def _return_seen(self) -> None:
        """Lets the function return what its delayed scales saw; @main, the new histories."""
        op = self.group.op
        block, marks = op.regions[0].blocks[0], list[ir.Attribute]()
        seen = self.seen.returned()
        with ir.InsertionPoint(operations.terminator(block)), op.location:
            if op.name == "sdy.manual_computation":
                axes = manual_axes_of(op)
                seen = [largest_of_shards(v, self.values.meshes, axes) for v in seen]
            elif self.group.is_main:
                named = self._remembered(seen)
                marks = [attributes.encode({annotation.STATE: name}) for name in named]
                seen = list(named.values())
        if op.name == "func.func":
            editing.add_results(op, seen, marks)
        else:
            editing.return_more(block, seen)

    def _remembered(self, seen: list[Any]) -> dict[str, Any]:
        largest: dict[str, Any] = {}
        before: dict[str, Any] = {}
        for slot, value in zip(self.values.slots, seen, strict=True):
            name = slot.names[0]
            before[name] = self.values.entry(slot)
            known = largest.get(name)
            largest[name] = value if known is None else editing.binary("maximum", known, value)
        return {
            name: self.library.call("srjit.remembered", remembered, before[name], value)
            for name, value in largest.items()
        }

    def _call(self, item: Item, inner: Group) -> None:
        wanted, old = self.needs[inner], self.group.op_of(item.eqn)
        slots = [self.values.slot(item, need) for need in wanted if isinstance(need, Slot)]
        with old.location:
            values = [self.values.passed(need, item) for need in wanted]
        types = [self.seen.type_of(slot, len(item.loops)) for slot in slots]
        is_call, changed = old.name == "func.call", dict[str, Any]()
        if is_call:
            name = operations.text(inner.op, "sym_name")
            changed["callee"] = old.attributes["callee"] = ir.FlatSymbolRefAttr.get(name)
        if not values:
            return
        if not is_call:
            changed["in_shardings"] = with_replicated(old, "in_shardings", [v.type for v in values])
            changed["out_shardings"] = with_replicated(old, "out_shardings", types)
        new = editing.remade(old, [*old.operands, *values], types, **changed)
        if not is_call:
            inner.op = new
        self.done.append(old)
        self.seen.at |= zip(slots, list(new.results)[len(old.results) :], strict=True)

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
        *keys, signs, sent = [noise and self.values.key_of(noise, item) for noise in noises]
        extras = list(op.operands)[2:]
        site = entries[0].site.number  # of those that are this operation, the first
        with ir.InsertionPoint(op):
            operands: dict[int, list[Any]] = {}
            for o in sorted(planned.operands, key=lambda o: o.waits):
                first = operands.get(1 - o.side) or [op.operands[1 - o.side]]
                x = self._after(op, o.side, first[-1]) if o.waits else op.operands[o.side]
                operands[o.side] = self._operand(item, params, o, x, keys[o.side], signs, site)
            counts = (len(operands[0]), len(operands[1]))
            dot = ScaledDot(
                params.product,
                params.dtype,
                params.lhs,
                params.rhs,
                counts,
                reduce=params.reduce,
                wire=params.wire,
                rng=params.rng,
            )
            with _named(op, f"srjit_{params.label}", site):
                values = [*operands[0], *operands[1], *extras, *([sent] if sent else [])]
                new = composite(self.library, dot, values, dot.described(op))
        annotation.write(new, entries)
        annotation.move(op, new)
        op.results[0].replace_all_uses_with(new.results[0])
        self.done.append(op)

    def _after(self, op: Any, side: int, value: Any) -> Any:
        """An operand, which compilers do not take for what it was before a value was made."""
        x = op.operands[side]
        known = (op.block, x)
        if known not in self._again:
            with op.location:
                made = editing.create(
                    "stablehlo.optimization_barrier", [x.type, value.type], [x, value]
                )
            self._again[known] = made[0]
        return self._again[known]

    def _operand(
        self,
        item: Item,
        params: SiteParams,
        operand: Operand,
        x: Any,
        key: Any,
        signs: Any,
        site: int,
    ) -> list[Any]:
        """The values of an operand x and, if they have one, their scale; x in high precision."""
        op, side = self.group.op_of(item.eqn), operand.side
        extras = list(op.operands)[2:]
        if operand.shared is None:
            return [x]
        spec, product = operand.shared.spec, params.product
        slot = self.values.slot(item, side)
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
            if self._is_gathered(item, side):
                whole = op.operands[side]  # not what waits for something
                if (whole, spec) not in self._gathered:
                    made = gathered(whole, quantizer, self.library, self.values.meshes)
                    self._gathered[whole, spec] = made or []
                if self._gathered[whole, spec]:
                    return self._gathered[whole, spec]
            given = [
                x,
                *(extras if quantizer.masked else ()),
                *([key] if quantizer.draws else ()),
                *([signs] if quantizer.flips else ()),
                *([self.values.history(slot)] if slot else ()),
            ]
            new = composite(self.library, quantizer, given, quantizer.described())
            values = list(new.results)
            if slot:
                self.seen.at[slot] = values.pop()
        return values

    def _is_gathered(self, item: Item, side: int) -> bool:
        """True if a collective gathers an operand of a site, and only products read its result."""
        paths = [(*chain, *item.path) for chain in self.group.chains]
        return all((path, side) in self.plan.gathers for path in paths)


def _named(op: Any, name: str, site: int) -> Any:
    """The location of what stands for an operation, with a name that profilers show."""
    scope = scope_of(site)
    return ir.Location.name(f"{scope}/{name}" if scope else name, op.location)
