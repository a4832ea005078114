"""``srjit-insert-quantize``: quantize, multiply, scale back, around every multiplication."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import numpy as np

from srjit._mlir import ir
from srjit.passes.annotate_matmuls import provenance_of
from srjit.passes.driver.diagnostics import emit_warning
from srjit.passes.driver.registry import Pass, PassError, register
from srjit.passes.emit import frames
from srjit.passes.emit.composites import (
    QUANTIZE,
    SCALED_DOT,
    Masked,
    Quantizer,
    ScaledDot,
    composite,
)
from srjit.passes.emit.lowering import Library, type_of
from srjit.passes.emit.noise import Needs, Noise, Threads, count_trips, split_flips
from srjit.passes.emit.states import Histories, Slot, history_type, largest_of_shards, lengths
from srjit.passes.mlir import annotation, attributes, editing
from srjit.program.site_names import scope_of
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.meshes import manual_axes_of, meshes_of, with_replicated

T = TypeVar("T")
_NOT_WRITTEN = (
    "parameters are written back, and gradients cast, as the module has it: passes leave that "
    "alone, since a module does not say which of its results are parameters; "
    "srjit(..., layer='stablehlo') rounds them"
)
_FLOAT32 = np.dtype(np.float32)

if TYPE_CHECKING:
    from srjit.passes.emit.frames import Frame, Group, Item, Path
    from srjit.planning.plan import ProgramPlan
    from srjit.planning.planned_site import Operand, PlannedSite, SiteParams


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class InsertQuantize(Pass):
    """Quantizes the operands of the multiplications that a recipe asks for.

    In neutral form: composites `srjit.quantize` and `srjit.scaled_dot`, whose decompositions are
    the functions that the decorator calls, so that the module runs on every backend as it stands.
    Where noise is drawn, @main gets the key as its last argument (`tensor<2xui32> {srjit.key =
    true}`), which goes, with numbers that tell quantizations apart, through calls and loops: a
    function that is called twice stays one function, unless different things are to be done in it.

    Attributes:
      recipe: a name, a `.toml` file, or the text of one; `auto` is the attached device's.
      mode: `train`, or `inference`: nearest everywhere, no key.
      rng: what noise is made by, `hash` or `threefry`.
      strict: whether what the recipe asks for and cannot be had is an error.

    Before ==> after:
        %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] {srjit.sites = [...]}
        ==>
        %q:2 = stablehlo.composite "srjit.quantize" %x {...}
        %r:2 = stablehlo.composite "srjit.quantize" %w {...}
        %0 = stablehlo.composite "srjit.scaled_dot" %q#0, %q#1, %r#0, %r#1 {...}
    """

    name: ClassVar[str] = "srjit-insert-quantize"
    recipe: str = "auto"
    mode: Literal["train", "inference"] = "train"
    rng: Literal["hash", "threefry"] = "hash"
    strict: bool = False

    def run(self, module: ir.Operation) -> None:
        """Inserts."""
        from srjit.planning.plan import Settings
        from srjit.planning.planner import plan_of
        from srjit.targets import get

        if annotation.REPORT in module.attributes:
            raise PassError(None, "the module is quantized already: one recipe for one module")
        settings = Settings(self._recipe(), get("portable"), self.mode, self.rng)
        program, provenance, notes = provenance_of(module)
        classified = annotation.classified(provenance)
        plan = plan_of(provenance, classified, settings, False)
        notes = (*notes, *self._complain(module, plan))
        _Insertion(module, program, plan).run()
        module.attributes[annotation.REPORT] = attributes.encode(
            annotation.Header(
                recipe=settings.recipe.name,
                target=settings.target.name,
                mode=settings.mode,
                notes=(*plan.notes, *notes),
            )
        )

    def _recipe(self) -> Any:
        from srjit import recipes, targets
        from srjit.planning.planner import recipe_of

        try:
            if "\n" in self.recipe:
                return recipes.Recipe.from_toml(self.recipe)
            if self.recipe == "auto":
                return recipe_of(targets.get("auto"))
            return recipes.get(self.recipe)
        except (ValueError, OSError) as error:
            raise PassError(None, str(error)) from None

    def _complain(self, module: ir.Operation, plan: ProgramPlan) -> list[str]:
        """What a report has to say of that the recipe asks for and no pass does.

        Raises:
          PassError: there is something, and ``strict``.
        """
        recipe = plan.settings.recipe
        missing = [s for s in plan.rows if s.asked and s.status == "kept"]
        if self.strict and missing:
            lines = [f"{s.described()}: {s.reason}" for s in missing[:10]]
            raise PassError(
                None,
                f"{len(missing)} multiplications that recipe {recipe.name!r} asks for stay "
                "in high precision (strict): " + "; ".join(lines),
            )
        if (recipe.weights or recipe.casts) is None or plan.settings.mode == "inference":
            return []
        if self.strict:
            raise PassError(None, f"{_NOT_WRITTEN} (strict)")
        emit_warning(module, _NOT_WRITTEN)
        return [_NOT_WRITTEN]


class _Insertion:
    """Rewrites the multiplications of a module as a plan says."""

    def __init__(self, module: Any, program: Any, plan: ProgramPlan) -> None:

        self.module, self.plan = module, plan
        self.library = Library(module)
        self.meshes = meshes_of(module)
        self.slots: dict[Group, list[Slot]] = {}
        self.frames = frames.frames_of(
            program, operations.main_of(module), operations.functions(module)
        )

    def run(self) -> None:
        """Rewrites."""
        fixed = self._fixed() if self.plan.rewritten else set[Any]()
        groups = frames.groups_of(self.frames, self._what, self._copy, fixed)
        for frame in fixed:
            annotation.erase(frame.op)
        ordered = [g for frame in self.frames for g in groups[frame]]
        needs: dict[Group, Needs] = {}
        for group in reversed(ordered):
            needs[group] = self._needs(group, needs)
            self.slots[group] = self._slots(group)
        arguments = {group: self._add_arguments(group, needs[group]) for group in ordered}
        for group in ordered:
            _GroupInsertion(self, group, needs, arguments[group]).run()

    # ------------------------------------------------------------------------------- grouping

    def planned(self, chain: Path, item: Item) -> PlannedSite | None:
        """What is to become of a multiplication along one chain."""
        return self.plan.rewritten.get((*chain, *item.path))

    def _what(self, frame: Frame, chain: Path, item: Item) -> Any:
        planned = self.planned(chain, item)
        if planned is None:
            return None
        outside = frame.chains[chain]
        noise: list[Any] = []
        for operand in planned.quantized:
            flips = split_flips(operand.draw.flips, outside, len(item.loops))
            noise.append((operand.draw.slot, *flips) if operand.draws else None)
        if planned.signs is not None:
            noise.append(split_flips(planned.signs.flips, outside, len(item.loops)))
        return planned.params, tuple(noise), tuple(o.varies for o in planned.operands)

    def _copy(self, frame: Frame) -> Any:
        name = ir.StringAttr(frame.op.attributes["sym_name"]).value
        return frames.clone_function(frame, self.library.free(f"{name}_srjit"))

    def _fixed(self) -> set[Frame]:
        """Functions that others use than what @main reaches: they keep theirs."""
        main, *others = self.frames
        calls = {item.eqn.op for frame in self.frames for item in frame.items if item.callee}
        users: dict[str, list[Any]] = {}
        for op in operations.inside(self.module):
            if op not in calls:
                for name in operations.mentioned(op):
                    users.setdefault(name, []).append(op)
        if "main" in users:
            original = self._original_main(main, users["main"])
            users |= {name: [original] for name in operations.used(original)}
        fixed: set[Frame] = set()
        for frame in others:  # callers first
            if frame.op.name == "func.func":
                name = operations.text(frame.op, "sym_name")
                if operations.is_public(frame.op) or name in users:
                    fixed.add(frame)
            if frame in fixed:
                fixed.update(item.callee for item in frame.items if item.callee)
        return fixed

    def _original_main(self, main: Frame, users: list[Any]) -> Any:
        """A copy of @main as it is, for those that call it: its signature may change."""
        other = [op for op in users if op.name != "func.call"]
        if other:
            message = f"@main cannot be quantized: {other[0].name} uses it, and would get another"
            raise PassError(other[0], message)
        name = self.library.free("main_srjit")
        original = frames.clone_function(main, name)
        annotation.erase(original)
        inside = [op for op in operations.inside(original) if operations.callee_of(op) == "main"]
        for op in (*users, *inside):
            op.attributes["callee"] = ir.FlatSymbolRefAttr.get(name)
        return original

    def noises(self, group: Group, item: Item) -> tuple[Noise | None, Noise | None, Noise | None]:
        """Where the noise of a multiplication's operands comes from, and that of their signs."""
        planned = [self.planned(chain, item) for chain in group.chains]
        sites = [p for p in planned if p is not None]
        first = sites[0]
        found: list[Noise | None] = []
        for o in first.operands:
            if not o.draws:
                found.append(None)
                continue
            numbers = tuple(p.operands[o.side].draw.number for p in sites)
            found.append(Noise(numbers, o.draw.slot, o.draw.flips, tuple(sorted(o.varies))))
        signs = first.signs
        if signs is not None:
            numbers = tuple(p.signs.number for p in sites if p.signs is not None)
            return found[0], found[1], Noise(numbers, signs.slot, signs.flips, ())
        return found[0], found[1], None

    def _needs(self, group: Group, needs: dict[Group, Needs]) -> Needs:
        found = Needs()
        outside = group.frame.chains[group.chains[0]]
        for item in group.frame.items:
            if item in group.calls:
                inner = group.calls[item]
                for flips in needs[inner].keys:
                    found.add_key(split_flips(flips, outside, len(item.loops))[0])
                for offsets in needs[inner].offsets:
                    found.add_numbers(self.along(group, item, inner, offsets))
            elif self.planned(group.chains[0], item) is not None:
                for noise in self.noises(group, item):
                    if noise is not None:
                        found.add_key(split_flips(noise.flips, outside, len(item.loops))[0])
                        found.add_numbers(noise.numbers)
        return found

    def _slots(self, group: Group) -> list[Slot]:
        """The operands in a group that have delayed scales."""
        found: list[Slot] = []
        for item in group.frame.items:
            around = lengths(item.loops)
            if item in group.calls:
                inner = group.calls[item]
                for place, slot in enumerate(self.slots[inner]):
                    names = tuple(self.along(group, item, inner, slot.names))
                    found.append(Slot(item, place, names, around + slot.dims))
                continue
            planned = [self.planned(chain, item) for chain in group.chains]
            for side in (0, 1):
                names = tuple(p.operands[side].history or "" for p in planned if p is not None)
                if any(names):
                    found.append(Slot(item, side, names, around))
        return found

    @staticmethod
    def along(group: Group, item: Item, inner: Group, values: Sequence[T]) -> list[T]:
        """What belongs to the chains that reach a callee, for those that reach the call."""
        at = dict(zip(inner.chains, values, strict=True))
        return [at[*chain, *item.path] for chain in group.chains]

    def _add_arguments(self, group: Group, needs: Needs) -> list[Any]:
        from srjit.planning.noise import HISTORY

        key, number = type_of((2,), np.dtype(np.uint32)), type_of((), np.dtype(np.uint32))
        slots = self.slots[group]
        types = [key] * len(needs.keys) + [number] * len(needs.offsets)
        types += [history_type(slot.dims, HISTORY) for slot in slots]
        if group.frame.op.name != "func.func":
            block = group.op.regions[0].blocks[0]
            return [block.add_argument(t, group.op.location) for t in types]
        if not group.is_main:
            return editing.add_arguments(group.op, types)
        names = {slot.names[0]: t for slot, t in zip(slots, types[len(needs.keys) :], strict=True)}
        marks = [ir.DictAttr.get({annotation.KEY: ir.BoolAttr.get(True)}) for _ in needs.keys]
        marks += [ir.DictAttr.get({annotation.STATE: ir.StringAttr.get(n)}) for n in names]
        types = [*types[: len(needs.keys)], *names.values()]
        added = editing.add_arguments(group.op, types, marks)
        # A value that is quantized in two places has one history.
        by_name = dict(zip(names, added[len(needs.keys) :], strict=True))
        return [*added[: len(needs.keys)], *(by_name[slot.names[0]] for slot in slots)]


class _GroupInsertion:
    """Rewrites one function."""

    def __init__(
        self, whole: _Insertion, group: Group, needs: dict[Group, Needs], arguments: list[Any]
    ) -> None:
        self.whole, self.group, self.needs = whole, group, needs
        self.outside = group.frame.chains[group.chains[0]]
        own = needs[group]
        slots = whole.slots[group]
        if own.keys or slots:
            count_trips(group)
        n, m = len(own.keys), len(own.keys) + len(own.offsets)
        self.threads = Threads(
            group,
            dict(zip(own.keys, arguments[:n], strict=True)),
            dict(zip(own.offsets, arguments[n:m], strict=True)),
            whole.library,
            whole.meshes,
        )
        self.histories = Histories(self.threads, dict(zip(slots, arguments[m:], strict=True)))
        self.done: list[Any] = []

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
                seen = [largest_of_shards(v, self.whole.meshes, axes) for v in seen]
            elif self.group.is_main:
                names, seen = self._remembered(seen)
        if op.name != "func.func":
            editing.return_more(block, seen)
            return
        marks = [ir.DictAttr.get({annotation.STATE: ir.StringAttr.get(n)}) for n in names]
        editing.add_results(op, seen, marks)

    def _remembered(self, seen: list[Any]) -> tuple[list[str], list[Any]]:
        """The names of all histories, and what becomes of them."""
        largest: dict[str, Any] = {}
        entry: dict[str, Any] = {}
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
            numbers = self.whole.along(self.group, item, inner, offsets)
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

    def _key(self, item: Item, flips: tuple[bool, ...]) -> Any:
        outer, inside = split_flips(flips, self.outside, len(item.loops))
        return self.threads.key(outer, item.loops, inside)

    # ----------------------------------------------------------------------------------- sites

    def _site(self, item: Item) -> None:
        sites = [self.whole.plan.sites.get((*chain, *item.path)) for chain in self.group.chains]
        entries = [site.row for site in sites if site is not None]
        planned = sites[0]
        if planned is None:
            return
        op, params = self.group.op_of(item.eqn), planned.params
        if params is None or not planned.quantized:
            annotation.write(op, entries)
            return
        noises = self.whole.noises(self.group, item)
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
                new = composite(
                    SCALED_DOT,
                    self.whole.library,
                    dot,
                    dot.on("portable"),
                    [*operands[0], *operands[1], *extras],
                    dot.label,
                    dot.described(op),
                )
        annotation.write(new, entries)
        op.results[0].replace_all_uses_with(new.results[0])
        self.done.append(op)

    def _operand(
        self, item: Item, params: SiteParams, operand: Operand, key: Any, signs: Any, site: int
    ) -> list[Any]:
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
            new = composite(
                QUANTIZE,
                self.whole.library,
                quantizer,
                quantizer.on("portable"),
                given,
                quantizer.label,
                quantizer.described(),
            )
            values = list(new.results)
            if slot:
                self.histories.see(slot, values.pop())
        return values


def _named(op: Any, name: str, site: int) -> Any:
    """The location of what stands for an operation, with a name that profilers show."""
    scope = scope_of(site)
    return ir.Location.name(f"{scope}/{name}" if scope else name, op.location)


def _replicated(op: Any, which: str, types: list[Any]) -> Any:
    """The shardings of a manual computation with more values, which all devices have."""
    try:
        return with_replicated(op, which, [ir.RankedTensorType(t).rank for t in types])
    except LookupError as error:
        raise PassError(op, str(error)) from None
