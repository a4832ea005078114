"""The inputs that every value of a program depends on, and those that are added to gradients.

An abstract interpretation with sets of inputs, which are bits of integers: quick enough for every
program, and before anybody has said what is a parameter.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

from srjit import _compat
from srjit.numerics.symbolic import stand_ins
from srjit.products.kinds import KINDS
from srjit.program.control_flow import ControlFlow, Input, Region, flow_of
from srjit.program.places import IDENTITIES
from srjit.program.protocols import Equation, Program, Variable, is_literal
from srjit.program.values import SourceInfo

# Results that are made of whole elements of the operands.
_PARTS = IDENTITIES | {
    "add", "sub", "add_any", "neg", "convert_element_type", "transpose", "reshape", "squeeze",
    "expand_dims", "pcast", "sharding_constraint", "reshard", "reduce_precision", "select_n", "max",
    "min", "clamp", "slice", "dynamic_slice", "concatenate", "split", "pad", "rev",
    "dynamic_update_slice", "scatter", "scatter_add", "scatter-add", "all_gather",
    "all_gather_invariant",
}  # fmt: skip
_SCALED = {"mul", "div"}
_VIEWS = {"transpose", "reshape", "squeeze", "expand_dims", "broadcast_in_dim"}
_ADDED = {"add", "sub", "add_any", "scatter_add", "scatter-add"}
# Operations of modules that jaxprs call something else.
_NAMES = {
    "multiply": "mul", "divide": "div", "negate": "neg", "maximum": "max", "minimum": "min",
}  # fmt: skip


_Extents = tuple[int, ...]


class Dependence(NamedTuple):
    """The inputs and products that flow into a value.

    Attributes:
      inputs: bits of all inputs.
      parts: bits of those that it is made of by addition, selection and scalar factors alone.
      whole: bits of those of its parts that no factor scales.
      updated: bits of those of its parts to which something was added that a gradient made.
      is_gradient: whether the backward pass had any part in it.
      is_uniform: whether all its elements are equal.
      products: bits of the multiplications that flow into it.
      token: equal for equal values, of whatever dtype.
      origin: equal for views of one value too.
    """

    inputs: int = 0
    parts: int = 0
    whole: int = 0
    updated: int = 0
    is_gradient: bool = False
    is_uniform: bool = True
    products: int = 0
    token: int = -1
    origin: int = -1


class Multiplication(NamedTuple):
    """A product, and what flows into its operands.

    Attributes:
      eqn: the equation.
      operands: lhs and rhs.
      out: the result.
      phase: ``primal``: what is differentiated; ``backward``; or empty.
    """

    eqn: Equation
    operands: tuple[Dependence, Dependence]
    out: Dependence
    phase: str


class _Scope(NamedTuple):
    names: frozenset[str] = frozenset()
    transforms: frozenset[str] = frozenset()
    record: bool = True

    @property
    def phase(self) -> str:
        """See Multiplication."""
        if "transpose" not in self.transforms:
            return "primal" if "jvp" in self.transforms else ""
        return "" if "rematted_computation" in self.names else "backward"


@dataclasses.dataclass
class Dependences:
    """The inputs and products that flow into the values of a program.

    Attributes:
      closed: a closed jaxpr, or anything with the attributes of one.
      source: reads scopes off its equations.
      products: all multiplications, in execution order, a loop's body once.
      outputs: the program's.
      differentiates: whether scopes tell of a backward pass.
      captured: the bit of all float constants of two or more dimensions.
    """

    closed: Any
    source: SourceInfo[Any]
    products: list[Multiplication] = dataclasses.field(default_factory=list)
    outputs: list[Dependence] = dataclasses.field(default_factory=list)
    differentiates: bool = False

    def __post_init__(self) -> None:
        program, consts = _compat.open_jaxpr(self.closed)
        self.captured = 1 << len(program.invars)
        self._fresh = itertools.count()
        self._slices: dict[int, tuple[int, int]] = {}
        # Bits of forward products by one operand's origin, and the extents of result and other one.
        self._readers: dict[tuple[int, _Extents, _Extents], int] = {}
        inputs = [
            self._named(Dependence(1 << i, 1 << i, 1 << i, is_uniform=v.aval.size == 1))
            for i, v in enumerate(program.invars)
        ]
        self.outputs = self._run(program, consts, inputs, _Scope())

    def _named(self, flow: Dependence) -> Dependence:
        token = next(self._fresh)
        return flow._replace(token=token, origin=token)

    def _run(
        self, program: Program, consts: Sequence[Any], inputs: Sequence[Dependence], scope: _Scope
    ) -> list[Dependence]:
        env: dict[Variable, Dependence] = dict(zip(program.invars, inputs, strict=True))

        def read(v: Variable) -> Dependence:
            return self._named(Dependence()) if is_literal(v) else env[v]

        for v, const in zip(program.constvars, consts, strict=True):
            env[v] = self._named(self._constant(const))
        for eqn in program.eqns:
            values = [read(v) for v in eqn.invars]
            names, transforms = self.source.name_stack(eqn)
            inside = scope
            if names or transforms:
                inside = scope._replace(
                    names=scope.names.union(names), transforms=scope.transforms.union(transforms)
                )
            flow = flow_of(eqn)
            made = self._flow(eqn, flow, values, inside) if flow else [*self._simple(eqn, values)]
            if inside.phase == "backward" and not flow:
                self.differentiates = True
                made = [m._replace(is_gradient=True) for m in made]
            if eqn.primitive.name in KINDS:
                made = [self._multiplied(eqn, values, made[0], inside)]
            env.update(zip(eqn.outvars, made, strict=True))
        return [read(v) for v in program.outvars]

    def _constant(self, const: Any) -> Dependence:
        is_tensor = getattr(const, "ndim", 0) >= 2 and _compat.is_float(const.dtype)
        return Dependence(self.captured if is_tensor else 0, is_uniform=not is_tensor)

    def _simple(self, eqn: Equation, values: list[Dependence]) -> list[Dependence]:
        name = eqn.primitive.name.removeprefix("stablehlo.")
        name = _NAMES.get(name, name)
        is_sum = name in _PARTS
        is_scaled = name in _SCALED and sum(not v.is_uniform for v in values) < 2
        found = _joined(values) if values else Dependence(is_uniform=name == "constant")
        if not is_sum:
            found = found._replace(whole=0)
            if not is_scaled:
                found = found._replace(parts=0, updated=0)
        if name in _ADDED:
            for v in values:
                if any(o.is_gradient for o in values if o is not v):
                    found = found._replace(updated=found.updated | v.parts)
        made: list[Dependence] = []
        for i, out in enumerate(eqn.outvars):
            if name in IDENTITIES and len(values) == len(eqn.outvars):  # a barrier of several
                made.append(values[i])
                continue
            new = self._named(found)._replace(is_uniform=found.is_uniform or out.aval.size == 1)
            if name in IDENTITIES or name == "convert_element_type":
                new = new._replace(token=values[0].token, origin=values[0].origin)
            elif name in _VIEWS and values:
                new = new._replace(origin=values[0].origin)
            made.append(new)
        return made

    def _multiplied(
        self, eqn: Equation, values: list[Dependence], made: Dependence, scope: _Scope
    ) -> Dependence:
        lhs, rhs = values[:2]
        phase = scope.phase
        if not phase and self.differentiated(eqn, (lhs, rhs), named=False):
            phase, made = "backward", made._replace(is_gradient=True)
        if not scope.record:
            return made
        number = len(self.products)
        made = made._replace(products=made.products | 1 << number)
        self.products.append(Multiplication(eqn, (lhs, rhs), made, phase))
        for side, value in enumerate((lhs, rhs) if phase != "backward" else ()):
            key = value.origin, _extents(eqn.outvars[0]), _extents(eqn.invars[1 - side])
            self._readers[key] = self._readers.get(key, 0) | 1 << number
        return made

    def differentiated(
        self, eqn: Equation, operands: tuple[Dependence, Dependence], named: bool
    ) -> Dependence | None:
        """The operand of an earlier product whose gradient a product may be, or None.

        It shares one operand with the earlier product, whose result has the shape of its other
        operand, and, where no names tell of a backward pass, flows into it.
        """
        for side in (1, 0):
            shared, other = operands[side], operands[1 - side]
            key = shared.origin, _extents(eqn.invars[1 - side]), _extents(eqn.outvars[0])
            readers = self._readers.get(key, 0)
            found = other.products & readers or (readers if named else 0)
            if found:
                earlier = self.products[found.bit_length() - 1]
                return earlier.operands[earlier.operands[0].origin == shared.origin]
        return None

    # ------------------------------------------------------------------------------ control flow

    def _flow(
        self, eqn: Equation, flow: ControlFlow, values: list[Dependence], scope: _Scope
    ) -> list[Dependence]:
        carry = {
            i.operand: self._named(values[i.operand])
            for i in flow.body.inputs
            if i.way == "carried"
        }

        def run(record: bool) -> list[list[Dependence]]:
            where = scope._replace(record=record)
            return [
                self._run(region.program, region.consts, self._given(region, values, carry), where)
                for region in flow.regions
            ]

        while flow.trips:
            made = run(False)
            after = [made[-1][i] for i in flow.body.outputs_by("carried")]
            joined = {
                operand: _joined([c, o])._replace(token=c.token, origin=c.origin)
                for (operand, c), o in zip(carry.items(), after, strict=True)
            }
            if joined == carry:
                break
            carry = joined
        found: list[list[Dependence]] = [[] for _ in eqn.outvars]
        for region, results in zip(flow.regions, run(scope.record), strict=True):
            for output, out in zip(region.outputs, results, strict=True):
                if output.result is not None:
                    left = self._named(out) if output.way == "carried" else out
                    found[output.result].append(
                        self._stacked(left) if output.way == "stack" else left
                    )
        return [vs[0] if len(vs) == 1 else self._named(_joined(vs)) for vs in found]

    def _given(
        self, region: Region, values: list[Dependence], carry: dict[int, Dependence]
    ) -> list[Dependence]:
        return [carry.get(i.operand) or self._entering(i, values[i.operand]) for i in region.inputs]

    def _entering(self, edge: Input, value: Dependence) -> Dependence:
        if edge.way != "slice":
            return value
        if value.token not in self._slices:
            new = self._named(value)
            self._slices[value.token] = new.token, new.origin
        token, origin = self._slices[value.token]
        return value._replace(token=token, origin=origin)

    def _stacked(self, value: Dependence) -> Dependence:
        new = self._named(value)
        self._slices[new.token] = value.token, value.origin
        return new


def _union(bits: Sequence[int]) -> int:
    return functools.reduce(operator.or_, bits, 0)


def _joined(values: Sequence[Dependence]) -> Dependence:
    """The union of what flows into several values."""
    first = values[0]
    return first._replace(
        inputs=_union([f.inputs for f in values]),
        parts=_union([f.parts for f in values]),
        whole=_union([f.whole for f in values]),
        updated=_union([f.updated for f in values]),
        is_gradient=any(f.is_gradient for f in values),
        is_uniform=all(f.is_uniform for f in values),
        products=_union([f.products for f in values]),
    )


def _extents(v: Variable) -> _Extents:
    return stand_ins(v.aval.shape)
