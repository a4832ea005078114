"""The origin of every operand of every matrix multiplication of a jaxpr.

An abstract interpretation, calls and loops included: every equation makes values of values, as
``values.py`` describes them. A recomputed value has its original's token; what a loop stacks, and
another loop reads again in the same positions, keeps the token that it had in the body; so does
what a branch makes, and the same branch of another conditional on the same value reads. A shard
has another token than the whole, unless it is all of it.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srjit import _compat
from srjit.numerics.shards import is_declared, shared_axes
from srjit.planning.updates import Updates
from srjit.planning.value_graph import ADDITIONS, SLICES, VIEWS, ValueGraph
from srjit.products.kinds import KINDS
from srjit.program import left_alone
from srjit.program.control_flow import ControlFlow, Input, Output, Region, flow_of
from srjit.program.places import IDENTITIES
from srjit.program.protocols import Equation, Program, Variable, is_literal, keeps_dtype
from srjit.program.values import (
    BACKWARD,
    CAPTURED,
    CONSTANT,
    PARAMETER,
    SOURCES,
    Occurrence,
    Opaque,
    Path,
    Scope,
    SourceInfo,
    Value,
    visible,
)
from srjit.targets.operand import QUANTIZER

_PARAMETER, _BACKWARD, _NONE = frozenset({PARAMETER}), frozenset({BACKWARD}), frozenset[str]()
_STATEFUL = frozenset({"rng_uniform"})  # two calls of these differ, though no effect says so
RANDOM = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")
WRITE_BACK = "srjit_write_back_"  # begins the names of what rounds a parameter
# After these a value is the same along their mesh axes.
_COLLECTIVES = {
    "psum", "psum2", "psum_invariant", "pmax", "pmin", "all_gather", "all_gather_invariant",
}  # fmt: skip
# After these even a value that was the same may differ.
_SPREADING = {"axis_index", "ppermute", "all_to_all", "ragged_all_to_all", "reduce_scatter"}


class JaxprSourceInfo:
    """Source info of jaxprs, which Provenance reads where it is given none."""

    name_stack = staticmethod(_compat.name_stack)
    location = staticmethod(_compat.location)
    opaque = staticmethod(left_alone.why)
    flops = staticmethod(left_alone.flops)


class Provenance:
    """The products of a program, in execution order, with what flows into them.

    The program is a closed jaxpr, or anything with the attributes of one. It may stand inside of
    ``shard_map``: ``manual`` are the mesh axes around it of which types tell nothing.
    """

    def __init__(
        self,
        closed: Any,
        labels: Sequence[str],
        source: SourceInfo[Any] | None = None,
        manual: frozenset[str] = _NONE,
        transforms: Mapping[Path, tuple[str, ...]] | None = None,
    ) -> None:
        self._source, self._manual = source or JaxprSourceInfo(), manual
        self._transforms = transforms or {}
        self.graph = ValueGraph()
        self.occurrences: list[Occurrence] = []
        self.opaque: list[Opaque] = []
        self.random: list[str] = []  # where the program itself draws random bits
        self.unrolled: list[str] = []  # where scans do several iterations in one
        self.tokens: dict[tuple[Path, int], int] = {}  # of the inputs of scopes
        # Mesh axes over which results of equations differ, inside shard_maps; of these, those
        # around the program, of which nobody says whether they do.
        self.varies: dict[Path, frozenset[str]] = {}
        self.guessed: dict[Path, frozenset[str]] = {}
        self.inputs: dict[Path, set[int | None]] = {}  # of scopes; stacks as what they stack, too
        self.loops: dict[Path, bool] = {}  # by path, whether they slice weights
        self.invariants: dict[Path, set[int]] = {}  # what enters every trip of a loop as it is
        self.scopes: dict[Path, tuple[Scope, Program, dict[Variable, Value]]] = {}
        self.read_late: set[int] = set()  # by what is no product, from the backward pass on
        self._is_late = False  # without names: the backward pass has begun
        self._fresh = itertools.count()
        self._interned: dict[Any, int] = {}
        self._forward: set[int] = set()  # what the forward pass made, or its recomputation
        self._stacks: dict[int, Value] = {}
        self.casts: list[tuple[Scope, Any]] = []  # of gradients
        self.scaled: dict[int, int] = {}  # origins of scaled values: what was scaled
        self._updates = Updates(self.graph)
        self._merges: dict[int, tuple[int, tuple[Value, ...]]] = {}
        self._crossed: dict[tuple[str, int], tuple[Any, int]] = {}  # shard_maps, to cross back
        self.program, consts = jaxpr, _ = _compat.open_jaxpr(closed)
        self.parameter_shapes = {
            v.aval.shape
            for v, label in zip(jaxpr.invars, labels, strict=True)
            if label == PARAMETER
        }
        # Captured arrays are weights only where no argument is.
        self._held = CONSTANT if PARAMETER in labels else CAPTURED
        inputs = [self._new(label, v) for v, label in zip(jaxpr.invars, labels, strict=True)]
        # Origins of what is in memory before the program starts, and of its slices in loops.
        self.given = {v.origin: label for v, label in zip(inputs, labels, strict=True)}
        outs = self._run(jaxpr, consts, inputs, Scope(manual=manual))
        self.results = [(o.token, v.aval.shape) for o, v in zip(outs, jaxpr.outvars, strict=True)]

    def derived(self, *key: Any) -> int:
        """A token for what ``key`` says, equal for equal keys."""
        if key not in self._interned:
            self._interned[key] = next(self._fresh)
        return self._interned[key]

    def unstacked(self, token: int | None) -> int | None:
        """The token of one iteration's value, for that of all iterations' values."""
        return self._stacks[token].token if token in self._stacks else None

    def _new(self, label: str | None, v: Variable) -> Value:
        labels = frozenset([label] if label in SOURCES else [])
        return self._renewed(Value(labels, 0, 0, _compat.typed_axes(v.aval) | self._manual))

    def _renewed(self, value: Value) -> Value:
        """Another value that the same things flow into."""
        token = next(self._fresh)
        return value._replace(token=token, origin=token)

    # ---------------------------------------------------------------------------- one jaxpr

    def _run(
        self, jaxpr: Program, consts: Sequence[Any], inputs: Sequence[Value], scope: Scope
    ) -> list[Value]:
        env: dict[Variable, Value] = {}

        def read(v: Variable) -> Value:
            if is_literal(v):
                token = self.derived("literal", v.aval, np.asarray(v.val).tobytes())
                return Value(frozenset(), token, token)
            return env[v]

        for v, const in zip(jaxpr.constvars, consts, strict=True):
            env[v] = self._new(self._held if is_tensor(const) else None, v)
        env.update(zip(jaxpr.invars, inputs, strict=True))
        if scope.record:
            self.scopes[scope.path] = scope, jaxpr, env
            tokens = [value.token for value in inputs]
            self.inputs[scope.path] = {*tokens, *map(self.unstacked, tokens)}
            self.tokens |= {(scope.path, i): token for i, token in enumerate(tokens)}
        first = len(self.occurrences)
        for index, eqn in enumerate(jaxpr.eqns):
            inner = scope.at(index, *self._source.name_stack(eqn))
            if self._transforms and (added := self._transforms.get(inner.path)):
                inner = inner._replace(transforms=inner.transforms + added)
            outs = self._equation(eqn, [read(v) for v in eqn.invars], inner)
            env.update(zip(eqn.outvars, outs, strict=True))
        if len(self.occurrences) > first:
            turned = _turned(jaxpr)
            self.occurrences[first:] = [
                dataclasses.replace(o, is_turned=True) if o.eqn.outvars[0] in turned else o
                for o in self.occurrences[first:]
            ]
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Equation, values: list[Value], scope: Scope) -> list[Value]:
        flow = flow_of(eqn)
        if flow is not None and not _is_quantizer(eqn):
            return self._flow(eqn, flow, values, scope)
        outs = self._simple(eqn, values, scope)
        if eqn.primitive.name in KINDS:
            self._updates.read(values[:2])
        if not scope.record:
            return outs
        if outs and outs[0].varies:
            self.varies[scope.path] = outs[0].varies - shared_axes(scope.names)
            if not is_declared(scope.names):
                self.guessed[scope.path] = outs[0].varies & self._manual
        name = eqn.primitive.name
        is_late = self._is_late or scope.phase != "forward"
        if name in KINDS:
            (lhs, rhs, *extras), location = values, self._source.location(eqn)
            occurrence = Occurrence(scope, eqn, lhs, rhs, tuple(extras), outs[0], location)
            self.occurrences.append(occurrence)
            self._is_late = is_late and bool(self._transforms)
            return outs
        if is_late and outs is not values:
            self.read_late.update([v.token for v in values])
        if flow is None and (why := self._source.opaque(eqn)):
            location, flops = self._source.location(eqn), self._source.flops(eqn)
            self.opaque.append(Opaque(scope, eqn, location, why, flops))
        elif name == "convert_element_type" and BACKWARD in outs[0].labels and not scope.ruled:
            self.casts.append((scope, eqn))
        elif name in RANDOM:
            where = "/".join(visible(scope.names)) or self._source.location(eqn)
            self.random.append(where or name)
        return outs

    def _simple(self, eqn: Equation, values: list[Value], scope: Scope) -> list[Value]:
        name = eqn.primitive.name
        if name in IDENTITIES or keeps_dtype(eqn):
            return values
        view = name in VIEWS and len(values) >= len(eqn.outvars)
        what = self._operation(eqn)
        labels = self._labels(eqn, values)
        varies = _varying(eqn, values)
        tokens, origins = tuple([v.token for v in values]), tuple([v.origin for v in values])
        is_backward = scope.phase == "backward"
        outs: list[Value] = []
        for i, out in enumerate(eqn.outvars):
            token = self.derived(what, tokens, i)
            origin = token if origins == tokens else self.derived(what, origins, i)
            if not is_backward:
                self._forward.add(token)
            # A constant, a part of what was there and what the forward pass has are no gradients.
            elif values and not view and name not in SLICES and token not in self._forward:
                labels |= _BACKWARD
            known = varies and varies & (scope.manual | _compat.typed_axes(out.aval))
            outs.append(Value(labels, token, values[i].origin if view else origin, known))
            self.graph.add(token, name, tokens, eqn, scope.transforms)
            if name in ADDITIONS:
                self._updates.add(token, values)
            if (scaled := self.graph.scale(token, name, eqn, values)) is not None:
                self.scaled[outs[-1].origin] = scaled.origin
        return outs

    def _operation(self, eqn: Equation) -> int:
        """A token for what an equation does to its operands."""
        if eqn.effects or eqn.primitive.name in _STATEFUL:
            return next(self._fresh)
        try:
            return self.derived(eqn.primitive, _hashable(eqn.params))
        except TypeError:
            return next(self._fresh)

    def _labels(self, eqn: Equation, values: list[Value]) -> frozenset[str]:
        name = eqn.primitive.name
        if name in ADDITIONS and self._updates.is_one(eqn, values):
            return _PARAMETER
        flowing = values[1:] if name == "select_n" else values  # what is chosen, not who chooses
        labels = _NONE.union(*[v.labels for v in flowing])
        if name in SLICES and BACKWARD not in values[0].labels:  # where a slice is makes none
            labels -= _BACKWARD
        return labels

    # ------------------------------------------------------------------------------ control flow

    def _flow(
        self, eqn: Equation, flow: ControlFlow, values: list[Value], scope: Scope
    ) -> list[Value]:
        if flow.means in ("jvp", "vjp"):
            scope = scope._replace(ruled=True)
        if flow.shards and not flow.shards.is_typed:
            scope = scope._replace(manual=scope.manual | flow.shards.manual)
        trips = flow.trips
        loop = (trips.length, trips.reverse) if trips else None
        if trips and trips.unroll not in (1, False) and scope.record:
            self.unrolled.append(self._source.location(eqn) or "an unknown place")
        if trips and scope.record:
            self.loops[scope.path] = _slices_weights(flow.body, values)
            self.invariants[scope.path] = {v.token for v in flow.body.given(values, "same")}
        carry = {
            body_input.operand: self._renewed(values[body_input.operand])
            for body_input in flow.body.inputs
            if body_input.way == "carried"
        }

        def run(record: bool) -> list[list[Value]]:
            outs: list[list[Value]] = []
            for number, region in enumerate(flow.regions):
                where = scope.inside(*region.step, loop=loop)._replace(record=record)
                given = [
                    carry.get(i.operand) or self._entering(i, v, flow, number, values)
                    for i, v in zip(region.inputs, region.program.invars, strict=True)
                ]
                outs.append(self._run(region.program, region.consts, given, where))
            return outs

        made: list[list[Value]] = []
        while flow.trips:  # until what flows into the carry stays
            made = run(False)
            after = [made[-1][i] for i in flow.body.outputs_by("carried")]
            joined = {
                operand: c._replace(labels=c.labels | o.labels, varies=c.varies | o.varies)
                for (operand, c), o in zip(carry.items(), after, strict=True)
            }
            if joined == carry:
                break
            carry = joined
        outs = made if flow.trips and not scope.record else run(scope.record)
        carried = iter([self._renewed(v) for v in carry.values()])
        if flow.trips:
            ends = [outs[-1][i].token for i in flow.body.outputs_by("carried")]
            for (operand, first), end in zip(carry.items(), ends, strict=True):
                self.graph.add(first.token, "carry", [values[operand].token, end])
        found: list[list[Value]] = [[] for _ in eqn.outvars]
        for region, results in zip(flow.regions, outs, strict=True):
            for output, v, out in zip(region.outputs, region.program.outvars, results, strict=True):
                if output.result is not None:
                    left = next(carried) if output.way == "carried" else out
                    if left is not out:
                        self.graph.add(left.token, "carry", [out.token])
                    found[output.result].append(self._leaving(output, v, flow, left))
        if str(eqn.params.get("name", "")).startswith(WRITE_BACK):
            # Noise flows into it too, but what was a parameter is one.
            found = [[v._replace(labels=values[0].labels) for v in vs] for vs in found]
        return [
            vs[0] if len(vs) == 1 else self._merged(vs, values[flow.selector or 0]) for vs in found
        ]

    def _entering(
        self, edge: Input, v: Variable, flow: ControlFlow, region: int, values: list[Value]
    ) -> Value:
        value = values[edge.operand]
        if edge.way == "slice":
            return self._sliced(value)
        if edge.way == "shard":
            crossed = self._crossing("shard", value, edge.spec, v.aval.shape)
            return crossed._replace(varies=value.varies.union(*edge.spec))
        if flow.selector is not None:
            return self._chosen(value, values[flow.selector], region, len(flow.regions))
        return value

    def _leaving(self, edge: Output, v: Variable, flow: ControlFlow, value: Value) -> Value:
        if edge.way == "stack":
            return self._stacked(value)
        if flow.shards and edge.way == "shard":
            crossed = self._crossing("unshard", value, edge.spec, v.aval.shape)
            return crossed._replace(varies=value.varies - flow.shards.manual)
        return value

    def _crossing(
        self, way: str, value: Value, spec: tuple[tuple[str, ...], ...], shape: tuple[int, ...]
    ) -> Value:
        """A value on the other side of a shard_map, where shards by ``spec`` have ``shape``.

        It is what it was before if it crosses back the same way.
        """
        if not spec:
            return value
        how = spec, shape
        before, token = self._crossed.get((way, value.token), (None, 0))
        if before != how:
            token = self.derived(way, how, value.token)
            back = "unshard" if way == "shard" else "shard"
            self._crossed[back, token] = how, value.token
            self.graph.add(token, "cross", [value.token])
        return value._replace(token=token)

    def _sliced(self, stacked: Value) -> Value:
        if stacked.token not in self._stacks:
            token, origin = (self.derived("slice", t) for t in (stacked.token, stacked.origin))
            self._stacks[stacked.token] = stacked._replace(token=token, origin=origin)
            self.graph.add(token, "slice", [stacked.token])
            if stacked.origin in self.given:
                self.given[origin] = self.given[stacked.origin]
        return self._stacks[stacked.token]

    def _stacked(self, value: Value) -> Value:
        token, origin = (self.derived("stack", t) for t in (value.token, value.origin))
        self._stacks[token] = value
        self.graph.add(token, "stack", [value.token])
        return value._replace(token=token, origin=origin)

    def _merged(self, outs: Sequence[Value], chooser: Value) -> Value:
        """One output of a conditional: the same value as a branch's only where all agree."""
        if len({v.token for v in outs}) == 1:
            return outs[0]
        labels = _NONE.union(*(v.labels for v in outs))
        token, origin = (
            self.derived("cond", chooser.token, *(getattr(v, f) for v in outs))
            for f in ("token", "origin")
        )
        self._merges[token] = chooser.token, tuple(outs)
        self.graph.add(token, "merge", [v.token for v in outs])
        return Value(labels, token, origin, chooser.varies.union(*(v.varies for v in outs)))

    def _chosen(self, value: Value, chooser: Value, branch: int, count: int) -> Value:
        """A value as one of ``count`` branches sees it: what it made in one on the same."""
        by, outs = self._merges.get(value.token, (None, ()))
        return outs[branch] if by == chooser.token and len(outs) == count else value


def _turned(jaxpr: Program) -> set[Variable]:
    """The matrices among the values of a jaxpr of which nothing but one transpose is read."""
    transposed = [e.invars[0] for e in jaxpr.eqns if e.primitive.name == "transpose"]
    if not transposed:
        return set()
    reads = itertools.chain(jaxpr.outvars, *(eqn.invars for eqn in jaxpr.eqns))
    times = collections.Counter(v for v in reads if not is_literal(v))
    return {v for v in transposed if v.aval.ndim == 2 and times[v] == 1}


def _slices_weights(body: Region, values: list[Value]) -> bool:
    """True if a trip reads a matrix, or more, of a stack that only parameters flow into."""
    return any(
        len(body.program.invars[i].aval.shape) > 1
        and _NONE < values[body.inputs[i].operand].labels <= {PARAMETER, CAPTURED}
        for i in body.inputs_by("slice")
    )


def _is_quantizer(eqn: Equation) -> bool:
    """True if a call is an inner srjit's, whose Hadamard transforms are no products of users."""
    return str(eqn.params.get("name", "")).startswith(QUANTIZER)


def _varying(eqn: Equation, values: list[Value]) -> frozenset[str]:
    """Mesh axes over which the results differ, by the operation that made them."""
    varies, name = _NONE.union(*[v.varies for v in values]), eqn.primitive.name
    if name in _SPREADING:
        return varies | _axes_of(eqn)
    if name in _COLLECTIVES and eqn.params.get("axis_index_groups") is None:
        return varies - _axes_of(eqn)
    return varies


def is_tensor(const: Any) -> bool:
    """True if a captured constant could be a weight: a float array of two or more dimensions."""
    dtype = getattr(const, "dtype", None)
    return getattr(const, "ndim", 0) >= 2 and dtype is not None and _compat.is_float(dtype)


def _hashable(params: dict[str, Any]) -> Any:
    return tuple(sorted([(k, _freeze(v)) for k, v in params.items()]))


def _freeze(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_freeze(v) for v in value)
    if callable(value) or hasattr(value, "eqns") or hasattr(value, "jaxpr"):
        return id(value)
    return value


def _axes_of(eqn: Any) -> frozenset[str]:
    """The mesh axes that a collective is over."""
    given = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return frozenset(given if isinstance(given, (tuple, list)) else (given,))
