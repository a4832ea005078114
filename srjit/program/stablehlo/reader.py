"""A module read as the program that it is, shaped as a jaxpr, so that both doors plan alike.

Calls become calls, a ``stablehlo.while`` that JAX wrote for a scan becomes a scan again, matrix
multiplications become JAX's own primitives, and every other operation an equation of its name. The
result is never evaluated: it is what provenance, roles and plans are computed from.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar

from srjit._mlir import ir
from srjit.products import kinds
from srjit.program import left_alone
from srjit.program.control_flow import FLOWS
from srjit.program.stablehlo import meshes, multiplications, names, products
from srjit.program.stablehlo.loops import Loop
from srjit.program.stablehlo.names import Names
from srjit.program.stablehlo.operations import (
    MalformedProgram,
    Search,
    callee,
    entry_of,
    functions,
    is_dense,
    is_effectful,
    main_of,
    terminator,
    text,
    why_closed,
)
from srjit.program.stablehlo.program import Equation, Primitive, Program, Var, aval_of, multiplies
from srjit.program.stablehlo.regions import adds, attributes, branches, free_values, structure

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
        self.products: dict[Any, products.PrimitiveCall | str] = {}
        self.locations = names.Locations()
        # Operations of one primitive share a location.
        self.name_of: Callable[[Any], str] = functools.cache(self.locations.name_of)
        self._programs: dict[str, Program] = {}
        self._open: list[str] = []
        self.multiplications = Search(self.functions, multiplications.multiplies, otherwise=False)

    def main(self, module: Any) -> Program:
        """The program that the module starts with."""
        main = main_of(module)
        entry = entry_of(module)
        why = self.why_closed(entry)
        if not why:
            return self.function(entry)
        inputs = [Var(aval_of(a.type)) for a in main.regions[0].blocks[0].arguments]
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
        program = reader.read(block, block.arguments)
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
        if v in self.env:
            return self.env[v]
        if self.outer is None:
            raise MalformedProgram(None, f"a value is used before it is defined: {v}")
        if v not in self.captured:
            self.captured[v] = Var(aval_of(v.type))
        return self.captured[v]

    def define(self, v: Any) -> Var:
        self.env[v] = Var(aval_of(v.type))
        return self.env[v]

    def read(
        self,
        block: ir.Block,
        inputs: Iterable[ir.Value[Any]],
        outs: Iterable[ir.Value[Any]] | None = None,
        skipped: Collection[ir.Operation] = (),
    ) -> Program:
        """The program of a block but for some operations; ``outs`` if not what it returns."""
        invars = [self.define(v) for v in inputs]
        for op in block.operations:
            op = op.operation
            if op.name not in _RETURNS and op not in skipped:
                self._rules.get(op.name, _BlockReader._simple)(self, op)
        outvars = [self.value(v) for v in (terminator(block).operands if outs is None else outs)]
        return Program(invars, outvars, self.eqns, self.constvars, self.consts)

    def names_of(self, op: ir.Operation, is_leaf: bool = True) -> Names:
        name = self.raiser.name_of(op.location)
        if RAGGED in name and op.name != "stablehlo.composite":
            self.raiser.notes[_RAGGED_NOTE] = None
        return names.read(name, is_leaf).within(self.inside)

    def add(
        self,
        primitive: Any,
        op: ir.Operation,
        inputs: Iterable[ir.Value[Any]],
        outs: Iterable[ir.Value[Any]],
        **params: Any,
    ) -> Equation:
        invars = [self.value(v) for v in inputs]
        outvars = [self.define(v) for v in outs]
        name = self.names_of(op, is_leaf=primitive.name not in FLOWS)
        self.eqns.append(Equation(primitive, invars, outvars, params, op, name))
        return self.eqns[-1]

    # ------------------------------------------------------------------- one rule an operation

    def _simple(self, op: ir.Operation, opaque: str | None = None) -> Equation:
        """An operation without a rule; ``opaque`` if that is known."""
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
        eqn = self.add(Primitive(name), op, (*op.operands, *region), op.results, **params)
        eqn.effects = is_effectful(op)
        if opaque is None:
            opaque = multiplications.why_opaque(op, self.raiser.multiplications.inside)
        eqn.opaque = opaque
        if opaque:
            eqn.flops = multiplications.flops_of(op)
        return eqn

    def _remainder(self, op: ir.Operation) -> None:
        """The place of a device along one axis of its mesh, as JAX computes it."""
        if axis := meshes.axis_of_index(op, self.raiser.meshes):
            self.add(Primitive("axis_index"), op, [], op.results, axes=(axis,))
        else:
            self._simple(op)

    def _constant(self, op: ir.Operation) -> None:
        aval = aval_of(op.results[0].type)
        is_tensor = aval.ndim >= 2 and getattr(aval.dtype, "kind", "") == "f"
        if is_tensor and is_dense(op) and not ir.DenseElementsAttr(op.attributes["value"]).is_splat:
            self.constvars.append(self.define(op.results[0]))
            self.consts.append(aval)
        else:
            self._simple(op)

    def _call(self, op: ir.Operation) -> None:
        name = callee(op)
        if name.startswith("threefry2x32"):
            self.add(Primitive("threefry2x32"), op, op.operands, op.results)
            return
        if why := self.raiser.why_closed(name):
            self._simple(op, why).effects = True
            return
        program = self.raiser.function(name)
        called = Primitive("closed_call")
        self.add(called, op, op.operands, op.results, call_jaxpr=program, name=name)
        # JAX calls the body of a scan so, once unless it was unrolled.
        if name.startswith("closed_call") and name in self.bodies and multiplies(program):
            where = self.raiser.locations.line_of(op.location) or "an unknown place"
            note = f"a loop at {where} was unrolled, as by scan(unroll=...): its noise is not that "
            self.raiser.notes[f"{note}of the decorator's jaxpr"] = None
        self.bodies.add(name)

    def _composite(self, op: ir.Operation) -> None:
        """A composite is what its decomposition computes, unless it is a product of ours."""
        name = text(op, "name")
        called = ir.FlatSymbolRefAttr(op.attributes["decomposition"]).value
        if kinds.of_operation(name) is not None:
            self._equation(op, products.equation_of(op))
        elif name == left_alone.COMPOSITE:
            given = products.Attributes(op.attributes)["composite_attributes"]
            eqn = self._simple(op, given["why"])
            eqn.primitive, eqn.flops = Primitive(given["primitive"]), int(given["flops"])
        elif name.startswith("srjit.") or self.raiser.why_closed(called):
            self._simple(op)
        else:
            program = self.raiser.function(called)
            call = Primitive("closed_call")
            eqn = self.add(call, op, op.operands, op.results, call_jaxpr=program)
            if multiplies(program):
                eqn.primitive, eqn.params = Primitive(name), {}
                eqn.opaque, eqn.flops = left_alone.IN_COMPOSITE, left_alone.flops_of(program)

    def _product(self, op: ir.Operation) -> None:
        key = (op.name, attributes(op), tuple(v.type for v in (*op.operands, *op.results)))
        if key not in self.raiser.products:
            self.raiser.products[key] = products.equation_of(op)
        self._equation(op, self.raiser.products[key])

    def _equation(self, op: ir.Operation, found: products.PrimitiveCall | str) -> None:
        """A product as JAX's own; opaque, for this reason, where JAX has none."""
        if isinstance(found, str):
            self._simple(op, found)
        else:
            primitive, params = found
            self.add(primitive, op, op.operands, op.results, **params)

    def _case(self, op: ir.Operation) -> None:
        regions = branches(op)
        readers = [self._reader_inside(op) for _ in regions]
        programs = [
            r.read(region.blocks[0], []) for r, region in zip(readers, regions, strict=True)
        ]
        captured = list(dict.fromkeys(v for reader in readers for v in reader.captured))
        for reader, program in zip(readers, programs, strict=True):
            program.invars = [reader.captured.get(v) or Var(aval_of(v.type)) for v in captured]
        inputs = (op.operands[0], *captured)
        self.add(Primitive("cond"), op, inputs, op.results, branches=tuple(programs))

    def _manual(self, op: ir.Operation) -> None:
        """A ``shard_map``; its types do not tell what varies along which axes."""
        block = op.regions[0].blocks[0]
        if why := self._why_not_manual(op):
            self._simple(op, why if self.raiser.multiplications.inside(op) else "")
            return
        reader = _BlockReader(self.raiser, self, Names())
        program = reader.read(block, block.arguments)
        program.invars += reader.captured.values()
        self.add(
            Primitive("shard_map"),
            op,
            (*op.operands, *reader.captured),
            op.results,
            jaxpr=program,
            check_vma=False,
            in_specs=meshes.specs_of(op, "in_shardings") + ((),) * len(reader.captured),
            out_specs=meshes.specs_of(op, "out_shardings"),
            newly_manual_axes=meshes.manual_axes_of(op),
        )

    def _why_not_manual(self, op: ir.Operation) -> str:
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

    def _reader_inside(self, op: ir.Operation) -> _BlockReader:
        """The reader of one of an operation's regions."""
        around = names.read(self.raiser.name_of(op.location), is_leaf=False)
        return _BlockReader(self.raiser, self, around)

    def _while(self, op: ir.Operation) -> None:
        loop = Loop(op, self.raiser.functions)
        carried, stacks = sorted(loop.carried), sorted(loop.stacks)
        body = self._reader_inside(op)
        inputs = [*(loop.arguments[i] for i in carried), *loop.slices.values()]
        outs = [*(loop.returned[i] for i in carried), *(loop.stacks[i] for i in stacks)]
        program = body.read(loop.body, inputs, outs, loop.skipped)
        given = body.captured_from(op, loop.body)
        program.invars[:0] = body.captured.values()
        operands = [*given, *(op.operands[i] for i in (*carried, *(i for i, _ in loop.slices)))]
        if loop.length is None:
            block = op.regions[0].blocks[0]
            condition = self._reader_inside(op)
            test = condition.read(block, [block.arguments[i] for i in carried])
            tested = condition.captured_from(op, block)
            test.invars[:0] = condition.captured.values()
            operands[:0] = tested
            params: dict[str, Any] = {
                "cond_nconsts": len(tested),
                "cond_jaxpr": test,
                "body_nconsts": len(given),
                "body_jaxpr": program,
            }
        else:
            params = {
                "jaxpr": program,
                "num_consts": len(given),
                "num_carry": len(carried),
                "length": loop.length,
                "reverse": loop.reverse,
                "unroll": 1,
            }
        primitive = Primitive("while" if loop.length is None else "scan")
        results = [op.results[i] for i in (*carried, *stacks)]
        self.add(primitive, op, operands, results, **params).loop = loop
        for i, result in enumerate(op.results):
            if i == loop.counter and result not in self.env:
                self.add(Primitive("trip_count"), op, [], [result], length=loop.length)
            elif result not in self.env:  # it is what it was
                self.env[result] = self.value(op.operands[i])

    def captured_from(self, loop: ir.Operation, block: ir.Block) -> list[ir.Value[Any]]:
        """The values around a loop that those are which its block has captured."""
        outside: dict[Any, Any] = dict(zip(block.arguments, loop.operands, strict=True))
        return [outside.get(v, v) for v in self.captured]

    _rules: ClassVar[dict[str, Callable[..., Any]]] = {
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
