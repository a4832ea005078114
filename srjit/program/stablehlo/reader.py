"""A module read as the program that it is, shaped as a jaxpr, so that both doors plan alike.

Calls become calls, a ``stablehlo.while`` that JAX wrote for a scan becomes a scan again, matrix
multiplications become JAX's own primitives, and every other operation an equation of its name. The
result is never evaluated: it is what provenance, roles and plans are computed from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from srjit._mlir import ir
from srjit.products import kinds
from srjit.program.control_flow import FLOWS
from srjit.program.stablehlo import meshes, names, products
from srjit.program.stablehlo.loops import Loop
from srjit.program.stablehlo.multiplications import Multiplications
from srjit.program.stablehlo.names import Names
from srjit.program.stablehlo.operations import (
    MalformedProgram,
    callee_of,
    functions,
    is_dense,
    is_effectful,
    main_of,
    terminator,
    text,
    why_closed,
)
from srjit.program.stablehlo.program import Equation, Primitive, Program, Var, aval_of, multiplies
from srjit.program.stablehlo.regions import adds, attributes, free_values, structure

# What provenance knows these operations as.
_NAMES = {
    "stablehlo.convert": "convert_element_type",
    "stablehlo.transpose": "transpose",
    "stablehlo.reshape": "reshape",
    "stablehlo.broadcast_in_dim": "broadcast_in_dim",
    "stablehlo.reverse": "rev",
    "stablehlo.reduce_precision": "reduce_precision",
    "stablehlo.optimization_barrier": "optimization_barrier",
    "sdy.sharding_constraint": "sharding_constraint",
    "sdy.reshard": "reshard",
    "stablehlo.add": "add",
    "stablehlo.subtract": "sub",
    "stablehlo.select": "select_n",
    "stablehlo.scatter": "scatter_add",
    "stablehlo.rng": "rng_uniform",
    "stablehlo.rng_bit_generator": "rng_bit_generator",
    **meshes.COLLECTIVES,
}
_VIEW_CALLS = ("Sharding", "annotate_device_placement", "LayoutConstraint")
RAGGED = "ragged_dot"
_RAGGED_NOTE = (
    "a ragged_dot was lowered to masked multiplications, which are sites of their own: their noise "
    "is not that of the decorator's jaxpr; layer='stablehlo' keeps it one site"
)
_RETURNS = ("func.return", "stablehlo.return", "sdy.return")


class Raiser:
    """Reads a module's functions; each once, however often it is called.

    Attributes:
      functions: by name.
      meshes: the sizes of the axes of every mesh.
      notes: where a module cannot be what the jaxpr was that it was lowered from.
    """

    def __init__(self, module: Any) -> None:
        self.functions = functions(module)
        self.meshes = meshes.meshes_of(module)
        self.notes: dict[str, None] = {}
        self.products: dict[Any, products.Equation | str] = {}
        self.name_of = functools.cache(names.name_of)  # operations of one primitive share it
        self._programs: dict[str, Program] = {}
        self._open: list[str] = []
        self.multiplications = Multiplications(self.functions)

    def note(self, text: str) -> None:
        """Something that a report has to say, once."""
        self.notes[text] = None

    def main(self, module: Any) -> Program:
        """The program that the module starts with."""
        main = main_of(module)
        why = self.why_closed("main")
        if not why:
            return self.function("main")
        inputs = [Var(aval_of(a)) for a in main.regions[0].blocks[0].arguments]
        eqn = Equation(Primitive(main.name), [], [], {}, main, Names(), effects=True)
        eqn.opaque = why
        return Program(inputs, [], [eqn], [], [])

    def why_closed(self, name: str) -> str:
        """Why a function is not read; nothing if it is."""
        if name in self._open:
            return f"@{name} calls itself, directly or not"
        if name not in self.functions:
            return f"there is no function @{name}"
        why = why_closed(self.functions[name])
        return f"@{name} {why}" if why else ""

    def function(self, name: str) -> Program:
        """The program of a function that is not closed."""
        if name in self._programs:
            return self._programs[name]
        op = self.functions[name]
        self._open.append(name)
        block = op.regions[0].blocks[0]
        reader = _BlockReader(self, None, Names())
        program = reader.read(block, list(block.arguments))
        self._open.pop()
        self._programs[name] = program
        return program


class _BlockReader:
    """Reads one block; values from outside of it become inputs."""

    def __init__(self, raiser: Raiser, outer: _BlockReader | None, inside: Names) -> None:
        self.raiser, self.outer, self.inside = raiser, outer, inside
        self.env: dict[Any, Var] = {}
        self.captured: dict[Any, Var] = {}  # values of enclosing blocks
        self.eqns: list[Equation] = []
        self.constvars: list[Var] = []
        self.consts: list[Any] = []
        self.bodies: set[str] = set()  # functions that were called

    def value(self, v: Any) -> Var:
        """The variable of a value."""
        if v in self.env:
            return self.env[v]
        if self.outer is None:
            raise MalformedProgram(None, f"a value is used before it is defined: {v}")
        if v not in self.captured:
            self.captured[v] = Var(aval_of(v))
        return self.captured[v]

    def define(self, v: Any) -> Var:
        """A new variable for a value of this block."""
        self.env[v] = Var(aval_of(v))
        return self.env[v]

    def read(self, block: Any, inputs: Sequence[Any]) -> Program:
        """The program of a block whose inputs are these of its values."""
        program = self.read_but(block, inputs, ())
        program.outvars = [self.value(v) for v in terminator(block).operands]
        return program

    def read_but(self, block: Any, inputs: Sequence[Any], skipped: Sequence[Any]) -> Program:
        """The program of a block but for some operations, without outputs yet."""
        invars = [self.define(v) for v in inputs]
        for op in block.operations:
            op = op.operation
            if op.name not in _RETURNS and op not in skipped:
                self._operation(op)
        return Program(invars, [], self.eqns, self.constvars, self.consts)

    def names_of(self, op: Any, is_leaf: bool = True) -> Names:
        """The names of an operation, relative to the operation that this block belongs to."""
        name = self.raiser.name_of(op.location)
        if RAGGED in name and op.name != "stablehlo.composite":
            self.raiser.note(_RAGGED_NOTE)
        found = names.read(name, is_leaf)
        scopes, transforms = self.inside.scopes, self.inside.transforms
        if found.scopes[: len(scopes)] == scopes:
            found = dataclasses.replace(found, scopes=found.scopes[len(scopes) :])
        if found.transforms[: len(transforms)] == transforms:
            found = dataclasses.replace(found, transforms=found.transforms[len(transforms) :])
        return found

    def add(
        self, primitive: Any, op: Any, invars: Iterable[Var], outs: Iterable[Any], **params: Any
    ) -> Equation:
        """A new equation for an operation."""
        eqn = Equation(
            primitive,
            list(invars),
            [self.define(v) for v in outs],
            params,
            op,
            self.names_of(op, is_leaf=primitive.name not in FLOWS),
        )
        self.eqns.append(eqn)
        return eqn

    # ------------------------------------------------------------------- one rule an operation

    def _operation(self, op: Any) -> None:
        rule = self._rules.get(op.name)
        if rule is None or not rule(self, op):
            self._simple(op)

    def _simple(self, op: Any) -> None:
        """An operation without a rule."""
        region = free_values(op) if len(op.regions) else []
        name = _NAMES.get(op.name, op.name)
        if op.name == "stablehlo.scatter" and not adds(op):
            name = op.name
        if op.name == "stablehlo.custom_call" and text(op, "call_target_name") in _VIEW_CALLS:
            name = "sharding_constraint"
        params: dict[str, Any] = {
            "attributes": attributes(op),
            "types": tuple(r.type for r in op.results),
        }
        if len(op.regions):
            params["regions"] = structure(op, {v: i for i, v in enumerate(region)})
        if op.name in meshes.COLLECTIVES:
            params["axes"] = meshes.axes_of_collective(op, self.raiser.meshes)
        inputs = [self.value(v) for v in (*op.operands, *region)]
        eqn = self.add(Primitive(str(name)), op, inputs, op.results, **params)
        eqn.effects = is_effectful(op)
        eqn.opaque = self.raiser.multiplications.why_opaque(op)

    def _remainder(self, op: Any) -> bool:
        """The place of a device along one axis of its mesh, as JAX computes it."""
        axis = meshes.axis_of_index(op, self.raiser.meshes)
        if axis:
            self.add(Primitive("axis_index"), op, [], op.results, axes=(axis,))
        return bool(axis)

    def _constant(self, op: Any) -> bool:
        aval = aval_of(op.results[0])
        value = ir.DenseElementsAttr(op.attributes["value"]) if is_dense(op) else None
        splat = value is None or value.is_splat
        if aval.ndim < 2 or splat or getattr(aval.dtype, "kind", "") != "f":
            return False
        self.constvars.append(self.define(op.results[0]))
        self.consts.append(aval)
        return True

    def _call(self, op: Any) -> bool:
        name = callee_of(op)
        assert name is not None
        if name.startswith("threefry2x32"):
            self.add(Primitive("threefry2x32"), op, map(self.value, op.operands), op.results)
            return True
        if why := self.raiser.why_closed(name):
            self._simple(op)
            self.eqns[-1].opaque, self.eqns[-1].effects = why, True
            return True
        program = self.raiser.function(name)
        operands = map(self.value, op.operands)
        self.add(Primitive("closed_call"), op, operands, op.results, call_jaxpr=program, name=name)
        # JAX calls the body of a scan so, once unless it was unrolled.
        if name.startswith("closed_call") and name in self.bodies and multiplies(program):
            self.raiser.note(
                f"a loop at {names.line_of(op.location) or 'an unknown place'} was unrolled, as by "
                "scan(unroll=...): its noise is not that of the decorator's jaxpr"
            )
        self.bodies.add(name)
        return True

    def _composite(self, op: Any) -> bool:
        """A composite is what its decomposition computes, unless it is a product of ours."""
        name = text(op, "name")
        if kinds.of_operation(name) is not None:
            found = products.equation_of(op)
            if isinstance(found, str):
                self._simple(op)
                self.eqns[-1].opaque = found
                return True
            primitive, params = found
            self.add(primitive, op, map(self.value, op.operands), op.results, **params)
            return True
        called = ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value
        if name.startswith("srjit.") or self.raiser.why_closed(called):
            return False
        program = self.raiser.function(called)
        operands = map(self.value, op.operands)
        eqn = self.add(Primitive("closed_call"), op, operands, op.results, call_jaxpr=program)
        if multiplies(program):
            eqn.primitive = Primitive(name)
            eqn.params = {}
            eqn.opaque = "srjit does not look inside composites"
        return True

    def _product(self, op: Any) -> bool:
        key = (op.name, attributes(op), tuple(v.type for v in (*op.operands, *op.results)))
        if key not in self.raiser.products:
            self.raiser.products[key] = products.equation_of(op)
        found = self.raiser.products[key]
        if isinstance(found, str):
            self._simple(op)
            self.eqns[-1].opaque = found
            return True
        primitive, params = found
        self.add(primitive, op, map(self.value, op.operands[:2]), op.results, **params)
        return True

    def _case(self, op: Any) -> bool:
        regions = list(op.regions)
        if op.name == "stablehlo.if":
            regions.reverse()  # a conditional's branch 1 is what an if does
        readers = [_BlockReader(self.raiser, self, self._inside(op)) for _ in regions]
        programs = [
            reader.read(region.blocks[0], [])
            for reader, region in zip(readers, regions, strict=True)
        ]
        captured = list(dict.fromkeys(v for reader in readers for v in reader.captured))
        for reader, program in zip(readers, programs, strict=True):
            program.invars = [reader.captured.get(v) or Var(aval_of(v)) for v in captured]
        inputs = [self.value(v) for v in (op.operands[0], *captured)]
        self.add(Primitive("cond"), op, inputs, op.results, branches=tuple(programs))
        return True

    def _manual(self, op: Any) -> bool:
        """A ``shard_map``; its types do not tell what varies along which axes."""
        block = op.regions[0].blocks[0]
        if why := self._why_not_manual(op):
            self._simple(op)
            self.eqns[-1].opaque = why if self.raiser.multiplications.inside(op) else ""
            return True
        reader = _BlockReader(self.raiser, self, Names())
        program = reader.read(block, list(block.arguments))
        program.invars += reader.captured.values()
        self.add(
            Primitive("shard_map"),
            op,
            map(self.value, (*op.operands, *reader.captured)),
            op.results,
            jaxpr=program,
            check_vma=False,
            in_specs=meshes.specs_of(op, "in_shardings") + ((),) * len(reader.captured),
            out_specs=meshes.specs_of(op, "out_shardings"),
            newly_manual_axes=meshes.manual_axes_of(op),
        )
        return True

    def _why_not_manual(self, op: Any) -> str:
        """Why a manual computation is left alone; nothing if it is not."""
        shardings = [
            s for n in ("in_shardings", "out_shardings") for s in meshes.shardings_of(op, n)
        ]
        named = {meshes.mesh_named_by(sharding) for sharding in shardings}
        if not named or "" in named:
            return "a manual computation whose shardings srjit cannot read"
        if not named <= self.raiser.meshes.keys():
            return "a manual computation over a mesh with devices in an order of its own"
        return ""

    def _inside(self, op: Any) -> Names:
        """The names around the regions of an operation."""
        return names.read(self.raiser.name_of(op.location), is_leaf=False)

    def _while(self, op: Any) -> bool:
        loop = Loop(op, self.raiser.functions)
        inside = self._inside(op)
        body = _BlockReader(self.raiser, self, inside)
        arguments = list(loop.body.arguments)
        carried = [a for i, a in enumerate(arguments) if i in loop.carried]
        inputs = [*carried, *loop.slices.values()]
        program = body.read_but(loop.body, inputs, loop.skipped)
        outs = [body.value(loop.returned[i]) for i in sorted(loop.carried)]
        stacked = [body.value(loop.stacks[i]) for i in sorted(loop.stacks)]
        constants: dict[Any, Any] = {}  # a value of the body: what it is outside
        for i, a in enumerate(arguments):
            if i not in loop.carried and i not in loop.stacks and a in body.captured:
                constants[a] = op.operands[i]
        captures = {v: v for v in body.captured if v not in constants}
        constants |= captures
        consts = [body.captured[v] for v in constants]
        given = [self.value(outside) for outside in constants.values()]
        carry = [self.value(op.operands[i]) for i in sorted(loop.carried)]
        program.invars = [*consts, *program.invars]
        program.outvars = [*outs, *stacked]
        results = [op.results[i] for i in (*sorted(loop.carried), *sorted(loop.stacks))]
        if loop.length is None:
            before, test = self._condition(op, loop, inside)
            eqn = self.add(
                Primitive("while"),
                op,
                [*before, *given, *carry],
                results,
                cond_nconsts=len(before),
                cond_jaxpr=test,
                body_nconsts=len(consts),
                body_jaxpr=program,
            )
        else:
            eqn = self.add(
                Primitive("scan"),
                op,
                [*given, *carry, *(self.value(op.operands[i]) for i, _ in loop.slices)],
                results,
                jaxpr=program,
                num_consts=len(consts),
                num_carry=len(carried),
                length=loop.length,
                reverse=loop.reverse,
                unroll=1,
            )
        eqn.loop = loop
        self._finish_loop(op, loop)
        return True

    def _condition(self, op: Any, loop: Loop, inside: Names) -> tuple[list[Var], Program]:
        """A loop's condition, and what it reads beside what the loop carries."""
        reader = _BlockReader(self.raiser, self, inside)
        arguments = list(op.regions[0].blocks[0].arguments)
        carried = [a for i, a in enumerate(arguments) if i in loop.carried]
        test = reader.read(op.regions[0].blocks[0], carried)
        fixed = {a: op.operands[i] for i, a in enumerate(arguments) if i not in loop.carried}
        test.invars = [*reader.captured.values(), *test.invars]
        return [self.value(fixed.get(v, v)) for v in reader.captured], test

    def _finish_loop(self, op: Any, loop: Loop) -> None:
        """What a loop returns as it was given, and its counter."""
        for i, result in enumerate(op.results):
            if result not in self.env:
                if i == loop.counter:
                    self.add(Primitive("trip_count"), op, [], [result], length=loop.length)
                else:
                    self.env[result] = self.value(op.operands[i])

    _rules: ClassVar[dict[str, Callable[..., bool]]] = {
        "stablehlo.constant": _constant,
        "func.call": _call,
        "stablehlo.composite": _composite,
        "stablehlo.dot_general": _product,
        "stablehlo.dot": _product,
        "stablehlo.convolution": _product,
        "stablehlo.case": _case,
        "stablehlo.if": _case,
        "stablehlo.while": _while,
        "stablehlo.remainder": _remainder,
        "sdy.manual_computation": _manual,
    }
