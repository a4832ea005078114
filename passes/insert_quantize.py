"""``srjit-insert-quantize``: quantize, multiply, scale back, around every multiplication."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, ClassVar

from srjit._mlir import ir
from srjit.choices import Quantizing
from srjit.passes.annotate_matmuls import provenance_of
from srjit.passes.driver.diagnostics import emit_warning
from srjit.passes.driver.registry import Pass, PassError, register
from srjit.passes.emit import frames, shardings
from srjit.passes.emit.cuts import cuts_of
from srjit.passes.emit.lowering import Library
from srjit.passes.emit.needs import add_arguments, needs_of, split_flips
from srjit.passes.emit.rewriter import GroupRewriter
from srjit.passes.mlir import annotation, attributes, editing
from srjit.passes.mlir.header import Header
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.meshes import meshes_of

_NOT_WRITTEN = (
    "parameters are written back, and gradients cast, as the module has it: passes leave that "
    "alone, since a module does not say which of its results are parameters; "
    "srjit(..., layer='stablehlo') rounds them"
)
_NOT_KEPT = (
    "what the backward pass needs is kept as the module has it, and not as codes: passes leave "
    "that alone; srjit(..., layer='stablehlo') keeps codes"
)

if TYPE_CHECKING:
    from srjit.passes.emit.frames import Frame, Item, Path
    from srjit.planning.plan import ProgramPlan
    from srjit.planning.profit import Cuts
    from srjit.planning.roles import Classified
    from srjit.program.stablehlo.program import Program


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class InsertQuantize(Quantizing, Pass):
    """Quantizes the operands of the multiplications that a recipe asks for.

    In neutral form: composites `srjit.quantize` and `srjit.scaled_dot`, whose decompositions are
    the functions that the decorator calls, so that the module runs on every backend as it stands.
    Where noise is drawn, @main gets the key as its last argument (`tensor<2xui32> {srjit.key =
    true}`), which goes, with numbers that tell quantizations apart, through calls and loops: a
    function that is called twice stays one function, unless different things are to be done in it.

    Before ==> after:
        %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] {srjit.sites = [...]}
        ==>
        %q:2 = stablehlo.composite "srjit.quantize" %x {...}
        %r:2 = stablehlo.composite "srjit.quantize" %w {...}
        %0 = stablehlo.composite "srjit.scaled_dot" %q#0, %q#1, %r#0, %r#1 {...}
    """

    name: ClassVar[str] = "srjit-insert-quantize"

    def run(self, module: ir.Operation) -> dict[str, int]:
        """Inserts."""
        from srjit.planning.plan import Settings
        from srjit.planning.planner import plan_of, recipe_of
        from srjit.planning.profit import uncut
        from srjit.targets.target import PORTABLE

        if annotation.REPORT in module.attributes:
            raise PassError(None, "the module is quantized already: one recipe for one module")
        try:
            recipe = recipe_of(self.recipe, "auto")
        except (ValueError, OSError) as error:
            raise PassError(None, str(error)) from None
        settings = Settings(recipe, PORTABLE, self.mode, self.rng)
        program, provenance, taken, notes = provenance_of(module)
        classified = annotation.classified(provenance)
        is_sharded = shardings.are_given(operations.main_of(module))
        cuts = functools.partial(_cuts, module) if is_sharded else uncut
        plan = plan_of(provenance, classified, settings, False, cuts)
        notes = (*filter(None, [taken.note]), *notes, *self._complain(module, plan))
        _Insertion(module, program, plan).run()
        if annotation.PARAMETERS in module.attributes:
            del module.attributes[annotation.PARAMETERS]
        module.attributes[annotation.REPORT] = attributes.encode(
            Header(
                recipe=settings.recipe.name,
                target=settings.target.name,
                mode=settings.mode,
                notes=(*plan.notes, *notes),
                left_alone=plan.left_alone,
            )
        )
        quantized = len(plan.rewritten)
        return {"sites quantized": quantized, "sites kept": len(plan.sites) - quantized}

    def _complain(self, module: ir.Operation, plan: ProgramPlan) -> list[str]:
        """Returns notes on recipe requests that no pass can meet, and warns of what stays.

        Raises:
          PassError: there is something, and ``strict``.
        """
        recipe = plan.settings.recipe
        missing = [s for s in plan.rows if s.asked and s.status == "kept"]
        if missing:
            lines = [f"{s.described()}: {s.reason}" for s in missing[:10]]
            lines += [f"and {len(missing) - 10} more"] if len(missing) > 10 else []
            message = (
                f"{len(missing)} of {len(plan.rows)} multiplications that recipe {recipe.name!r} "
                f"asks for stay in high precision{' (strict)' if self.strict else ''}: "
            ) + "; ".join(lines)
            if self.strict:
                raise PassError(None, message)
            emit_warning(module, message)
        if plan.shortfall:
            if self.strict:
                raise PassError(None, f"{plan.shortfall} (strict)")
            emit_warning(module, plan.shortfall)
        asked = {_NOT_WRITTEN: recipe.weights or recipe.casts, _NOT_KEPT: recipe.residuals}
        is_training = plan.settings.mode != "inference"
        left = [message for message, wanted in asked.items() if wanted and is_training]
        for message in left:
            if self.strict:
                raise PassError(None, f"{message} (strict)")
            emit_warning(module, message)
        return left


def _cuts(module: ir.Operation, classified: Sequence[Classified]) -> Cuts | None:
    return cuts_of(module, [c.occurrence for c in classified])


class _Insertion:
    """Rewrites the multiplications of a module as a plan says."""

    def __init__(self, module: ir.Operation, program: Program, plan: ProgramPlan) -> None:
        self.module, self.plan = module, plan
        self.library = Library(module)
        self.meshes = meshes_of(module)
        self.frames = frames.frames_of(
            program, operations.main_of(module), operations.functions(module)
        )

    def run(self) -> None:
        """Rewrites."""
        fixed: set[Frame] = self._fixed() if self.plan.rewritten else set()
        groups = frames.groups_of(self.frames, self._what, self._copy, fixed)
        for frame in fixed:
            annotation.erase(frame.op)
        ordered = [g for frame in self.frames for g in groups[frame]]
        needs = {g: add_arguments(g, found) for g, found in needs_of(ordered, self.plan).items()}
        for group in ordered:
            GroupRewriter(group, self.plan, needs, self.library, self.meshes).run()

    # ------------------------------------------------------------------------------- grouping

    def _what(self, frame: Frame, chain: Path, item: Item) -> Hashable:
        planned = self.plan.rewritten.get((*chain, *item.path))
        if planned is None:
            return None
        outside = frame.chains[chain]
        noise: list[Hashable] = []
        for operand, _ in planned.quantized:
            flips = split_flips(operand.draw.flips, outside, len(item.loops))
            noise.append((operand.draw.slot, *flips) if operand.draws else None)
            noise.append(operand.waits)
        if planned.signs is not None:
            noise.append(split_flips(planned.signs.flips, outside, len(item.loops)))
        varies = tuple(o.varies for o in planned.operands)
        remembers = any(o.history is not None for o in planned.operands)
        return planned.params, tuple(noise), varies, planned.layers if remembers else None

    def _copy(self, frame: Frame) -> ir.Operation:
        name = operations.text(frame.op, "sym_name")
        return editing.clone_function(frame.op, self.library.free(f"{name}_srjit"))

    def _fixed(self) -> set[Frame]:
        """Functions that others use than what @main reaches: they keep theirs."""
        main, *others = self.frames
        calls = {item.eqn.op for frame in self.frames for item in frame.items if item.callee}
        users: dict[str, list[ir.Operation]] = {}
        for op in operations.inside(self.module):
            if op not in calls:
                for name in operations.mentioned(op):
                    users.setdefault(name, []).append(op)
        entry = operations.entry_of(self.module)
        if entry in users:
            original = self._original(main, entry, users[entry])
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

    def _original(self, main: Frame, entry: str, users: list[ir.Operation]) -> ir.Operation:
        """A copy of the entry as it is, for those that call it: its signature may change."""
        own = ir.FlatSymbolRefAttr.get(entry)
        other = [
            op for op in users if "callee" not in op.attributes or op.attributes["callee"] != own
        ]
        if other:
            message = (
                f"@{entry} cannot be quantized: {other[0].name} uses it, and would get another"
            )
            raise PassError(other[0], message)
        name = self.library.free(f"{entry}_srjit")
        original = editing.clone_function(main.op, name)
        annotation.erase(original)
        inside = [op for op in operations.inside(original) if operations.callee_of(op) == entry]
        for op in (*users, *inside):
            op.attributes["callee"] = ir.FlatSymbolRefAttr.get(name)
        return original
