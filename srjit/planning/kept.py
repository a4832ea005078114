"""The bytes of the forward pass that the backward pass of a program needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from srjit import _compat
from srjit.numerics.symbolic import all_known
from srjit.planning.provenance import Provenance
from srjit.planning.value_graph import VIEWS
from srjit.program.control_flow import ControlFlow, Region, flow_of
from srjit.program.protocols import Equation, Program, Variable, is_literal
from srjit.program.values import BACKWARD, Path, Scope, Value

UNCHANGED = {"neg", "convert_element_type", "copy"}  # linear in their only operand
# What compilers compute again where it is read, rather than keep it.
ELEMENTWISE = UNCHANGED | {
    "add", "add_any", "sub", "mul", "div", "exp", "exp2", "log", "log1p", "expm1", "tanh",
    "logistic", "erf", "erfc", "sin", "cos", "pow", "integer_pow", "square", "sqrt", "rsqrt",
    "abs", "sign", "max", "min", "select_n", "clamp", "reduce_precision", "broadcast_in_dim",
    "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "one_minus_square", "cbrt", "tan",
    "sinh", "cosh", "asinh", "acosh", "atanh", "asin", "acos", "atan", "atan2", "floor", "round",
}  # fmt: skip


class Around(NamedTuple):
    """The equation that a scope is a region of."""

    scope: Path
    number: int
    eqn: Equation
    flow: ControlFlow
    region: Region


class Part:
    """A scope: its program, the values of its variables, and which equations are the backward's."""

    def __init__(self, scope: Scope, program: Program, values: Mapping[Any, Value]) -> None:
        self.path, self.program, self.values = scope.path, program, values
        self.maker = {v: i for i, eqn in enumerate(program.eqns) for v in eqn.outvars}
        inner = [scope.at(i, *_compat.name_stack(eqn)) for i, eqn in enumerate(program.eqns)]
        self.names = [s.names for s in inner]
        self.late = [s.phase != "forward" for s in inner]
        self.is_late = scope.phase != "forward"
        self.first_late = next((i for i, late in enumerate(self.late) if late), len(inner))
        self.constants: set[Variable] = set()  # made of literals
        for eqn in program.eqns:
            if flow_of(eqn) is None and self.constants.issuperset(variables(eqn.invars)):
                self.constants.update(eqn.outvars)

    def is_gradient(self, v: Variable) -> bool:
        """True if a cotangent flows into a variable."""
        return not is_literal(v) and BACKWARD in self.values[v].labels

    def late_maker(self, v: Variable) -> Equation | None:
        """The equation of the backward pass that makes a variable; None if none does."""
        index = self.maker.get(v)
        return None if index is None or not self.late[index] else self.program.eqns[index]

    def is_zero(self, v: Variable) -> bool:
        """True if a variable is the number zero, repeated."""
        if is_literal(v):
            return bool(v.val == 0)
        eqn = self.program.eqns[self.maker[v]] if v in self.maker else None
        is_same = eqn is not None and eqn.primitive.name in ("broadcast_in_dim", *UNCHANGED)
        return eqn is not None and is_same and self.is_zero(eqn.invars[0])


class Scopes:
    """All scopes of a program, and what its backward pass needs of its forward pass."""

    def __init__(self, provenance: Provenance, coded: set[tuple[Path, int]]) -> None:
        self.provenance, self.coded = provenance, coded
        self.all = {path: Part(*found) for path, found in provenance.scopes.items()}
        self.around: dict[Path, Around] = {}
        self.inner: dict[Path, list[Path]] = {}
        for path, scope in self.all.items():
            for index, eqn in enumerate(scope.program.eqns):
                flow = flow_of(eqn)
                for region in flow.regions if flow else ():
                    inner = (*path, index, *region.step)
                    if flow and inner in self.all:
                        self.around[inner] = Around(path, index, eqn, flow, region)
                        self.inner.setdefault((*path, index), []).append(inner)
        self._roots: dict[int, dict[int, int]] = {}

    def needed(self, read: Mapping[Path, Variable]) -> dict[int, int]:
        """The bytes of the forward pass that the backward pass needs, by token.

        Args:
          read: the only operand of some equations that a coefficient stands in.
        """
        found: dict[int, int] = {}
        top = self.all[()]
        self._live((), set(variables(top.program.outvars)), read, found)
        return found

    def _live(
        self, path: Path, live: set[Any], read: Mapping[Path, Variable], found: dict[int, int]
    ) -> set[Any]:
        """The variables of a scope that its outputs need, by its backward pass."""
        scope = self.all[path]
        # What is returned, and what is read when the backward pass has begun.
        reads, first = set(live), 0 if scope.is_late else scope.first_late
        for index in reversed(range(len(scope.program.eqns))):
            eqn, here = scope.program.eqns[index], (*path, index)
            if here in self.inner:
                wanted = self._live_operands(eqn, here, live, read, found)
            elif not any(v in live for v in eqn.outvars) and not eqn.effects:
                continue
            elif here in read:
                wanted = [read[here]]
            else:
                operands = enumerate(eqn.invars)
                wanted = variables(v for side, v in operands if (here, side) not in self.coded)
            live.update(wanted)
            if index >= first:
                reads.update(wanted)
        if any(scope.late) and not scope.is_late:
            for v in reads:
                if scope.maker.get(v, -1) < first:
                    found |= self.roots(scope.values[v].token, v)
        return live

    def _live_operands(
        self,
        eqn: Equation,
        here: Path,
        live: set[Any],
        read: Mapping[Path, Variable],
        found: dict[int, int],
    ) -> list[Variable]:
        wanted: list[Variable] = []
        for inner in self.inner[here]:
            flow, region = self.around[inner].flow, self.around[inner].region
            outs = {
                v
                for v, edge in zip(region.program.outvars, region.outputs, strict=True)
                if not is_literal(v)
                and (
                    edge.result is None or edge.way == "carried" or eqn.outvars[edge.result] in live
                )
            }
            inside = self._live(inner, outs, read, found)
            wanted += [
                eqn.invars[edge.operand]
                for v, edge in zip(region.program.invars, region.inputs, strict=True)
                if v in inside or edge.way == "carried"
            ]
            wanted += [] if flow.selector is None else [eqn.invars[flow.selector]]
        return variables(wanted)

    def sources(self, scope: Part, made: Iterable[Variable]) -> dict[int, int]:
        """The needs of some variables from the forward pass, as of ``needed``."""
        found: dict[int, int] = {}
        todo, seen = list(made), set[Any]()
        while todo:
            v = todo.pop()
            if v in seen:
                continue
            seen.add(v)
            around = self.around.get(scope.path)
            if (eqn := scope.late_maker(v)) is not None:
                todo += variables(eqn.invars)
            elif scope.is_late and around is not None and v in scope.program.invars:
                edge = around.region.inputs[list(scope.program.invars).index(v)]
                outside = around.eqn.invars[edge.operand]
                found |= self.sources(self.all[around.scope], variables([outside]))
            else:
                found |= self.roots(scope.values[v].token, v)
        return found

    def roots(self, token: int, v: Variable) -> dict[int, int]:
        """The part of a value that compilers keep: it, or its origins, element by element."""
        if token not in self._roots:
            self._roots[token] = {}
            self._roots[token] = self._roots_of(token, v)
        return self._roots[token]

    def _roots_of(self, token: int, v: Variable) -> dict[int, int]:
        provenance = self.provenance
        graph, size = provenance.graph, size_of(v)
        if (one := provenance.unstacked(token)) is not None:
            return {} if graph.whole(token) in provenance.given else {one: size}
        made = graph.made.get(token)
        if {token, graph.whole(token)} & provenance.given.keys():
            return {}
        if made is None or made.eqn is None:
            return {token: size}
        is_again = made.name in {*ELEMENTWISE, *VIEWS} and v.aval.dtype != bool
        if not is_again and made.operands:
            return {token: size}
        found: dict[int, int] = {}
        for operand, of in zip(made.operands, made.eqn.invars, strict=True):
            found |= {} if is_literal(of) else self.roots(operand, of)
        return found

    def leads(self, home: Path, late: Path) -> int | None:
        """In how many trips codes get from one scope to another; None if they do not."""
        out, into = self._enclosing(home), self._enclosing(late)
        while out and into and out[-1].region is into[-1].region:
            out, into = out[:-1], into[:-1]
        loops = [[a.flow.trips for a in way if a.flow.trips] for way in (out, into)]
        is_open = all(a.flow.kind in ("loop", "call") for a in (*out, *into))
        is_plain = all(a.flow.means in ("", "jit") for a in (*out, *into))
        lengths = [[trips.length for trips in way] for way in loops]
        if not (is_open and is_plain) or lengths[0] != lengths[1] or len(lengths[0]) > 1:
            return None
        return lengths[0][0] if lengths[0] else 1

    def _enclosing(self, path: Path) -> list[Around]:
        """The scopes around a scope, the innermost first."""
        found: list[Around] = []
        while path in self.around:
            found.append(self.around[path])
            path = found[-1].scope
        return found


def variables(values: Iterable[Variable]) -> list[Variable]:
    """Those of some values that are no literals, of which JAX has some that cannot be hashed."""
    return [v for v in values if not is_literal(v)]


def size_of(v: Variable) -> int:
    """The bytes of a value; 0 where its shape is not known."""
    shape = v.aval.shape
    return math.prod(shape) * v.aval.dtype.itemsize if all_known(shape) else 0
