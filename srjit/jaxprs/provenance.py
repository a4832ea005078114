"""Where every operand of every matrix multiplication of a jaxpr comes from.

An abstract interpretation, calls and loops included. A value carries:

  labels    whether parameters, captured arrays or data flow into it
  token     equal for values that are equal by construction: the same operation on the same inputs.
            A recomputed value has its original's token; what a loop stacks, and another loop reads
            again in the same positions, keeps the token that it had in the body
  origin    the token before casts, transposes and reshapes
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from jax.extend import core as jex_core
from jax.extend.core import primitives as jex_primitives

from srjit import _compat

Path = tuple[Any, ...]
PARAMETER, CAPTURED, DATA = "parameter", "captured", "data"
RANDOM = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")
PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general", "ragged_dot")
# What keeps a value what it is, seen as a tensor of a network.
_VIEWS = {
    "convert_element_type", "transpose", "reshape", "squeeze", "expand_dims", "copy", "copy_p",
    "sharding_constraint", "reduce_precision", "name", "optimization_barrier", "pvary", "pcast",
    "reshard", "broadcast_in_dim", "rev", "mul_by_one",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Value:
    """See the module's docstring."""

    labels: frozenset[str]
    token: int
    origin: int


@dataclasses.dataclass(frozen=True)
class Occurrence:
    """One product, where it stands in the program.

    Attributes:
      path: indices of the equations that enclose it, and its own.
      eqn: the equation.
      lhs, rhs, out: provenance.
      scopes, transforms: names on its full name stack.
      loops: (length or None, reversed) of each enclosing loop, outermost first.
      rematerialized: whether it stands in a recomputation.
      location: file:line of the user's code.
    """

    path: Path
    eqn: Any
    lhs: Value
    rhs: Value
    out: Value
    scopes: tuple[str, ...]
    transforms: tuple[str, ...]
    loops: tuple[tuple[int | None, bool], ...]
    location: str


@dataclasses.dataclass(frozen=True)
class Opaque:
    """An equation that may multiply matrices where srjit does not look (a Pallas kernel, ...)."""

    path: Path
    name: str
    scopes: tuple[str, ...]
    location: str


class Provenance:
    """The products of a closed jaxpr, in execution order, with what flows into them."""

    def __init__(self, closed: Any, labels: Sequence[str]) -> None:
        self.occurrences: list[Occurrence] = []
        self.opaque: list[Opaque] = []
        self.random: list[str] = []  # where the program itself draws random bits
        self.tokens: dict[tuple[Path, int], int] = {}  # of the inputs of scopes
        self.inputs: dict[Path, set[int]] = {}
        self._fresh = itertools.count()
        self._interned: dict[Any, int] = {}
        self._stacks: dict[int, Value] = {}
        jaxpr, consts = _compat.open_jaxpr(closed)
        inputs = [self._new(label) for label in labels]
        captured = [self._new(CAPTURED if _is_tensor(c) else None) for c in consts]
        self._run(jaxpr, inputs, captured, (), (), (), (), record=True)

    def _new(self, label: str | None) -> Value:
        token = next(self._fresh)
        return Value(frozenset([label] if label else []), token, token)

    def _intern(self, key: Any) -> int:
        if key not in self._interned:
            self._interned[key] = next(self._fresh)
        return self._interned[key]

    def _run(
        self,
        jaxpr: Any,
        inputs: Sequence[Value],
        consts: Sequence[Value],
        path: Path,
        scopes: tuple[str, ...],
        transforms: tuple[str, ...],
        loops: tuple[tuple[int | None, bool], ...],
        record: bool,
    ) -> list[Value]:
        env: dict[Any, Value] = {}

        def read(v: Any) -> Value:
            if isinstance(v, jex_core.Literal):
                token = self._intern(("literal", str(v.aval), _literal_key(v.val)))
                return Value(frozenset(), token, token)
            return env[v]

        env.update(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, inputs, strict=True))
        if record:
            self.inputs[path] = {value.token for value in inputs}
            for i, value in enumerate(inputs):
                self.tokens[path, i] = value.token
        for index, eqn in enumerate(jaxpr.eqns):
            own_scopes, own_transforms = _compat.name_stack(eqn)
            where = (
                (*path, index),
                scopes + own_scopes,
                transforms + own_transforms,
                loops,
                record,
            )
            values = [read(v) for v in eqn.invars]
            outs = self._equation(eqn, values, *where)
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(
        self,
        eqn: Any,
        values: list[Value],
        path: Path,
        scopes: tuple[str, ...],
        transforms: tuple[str, ...],
        loops: tuple[tuple[int | None, bool], ...],
        record: bool,
    ) -> list[Value]:
        primitive = eqn.primitive
        where = (scopes, transforms, loops, record)
        if primitive is jex_primitives.scan_p:
            return self._scan(eqn, values, path, *where)
        if primitive is jex_primitives.while_p:
            return self._while(eqn, values, path, *where)
        if primitive is jex_primitives.cond_p:
            return self._cond(eqn, values, path, *where)
        inner = _compat.called_jaxpr(eqn)
        if inner is not None:
            jaxpr, consts = _compat.open_jaxpr(inner)
            captured = [self._new(CAPTURED if _is_tensor(c) else None) for c in consts]
            return self._run(jaxpr, values, captured, path, *where)
        outs = self._simple(eqn, values)
        if record and primitive.name in PRODUCTS:
            self.occurrences.append(
                Occurrence(
                    path, eqn, values[0], values[1], outs[0], scopes, transforms, loops,
                    _compat.location(eqn),
                )  # fmt: skip
            )
        elif record and _compat.is_opaque(eqn):
            self.opaque.append(Opaque(path, primitive.name, scopes, _compat.location(eqn)))
        elif record and primitive.name in RANDOM:
            self.random.append("/".join(scopes) or _compat.location(eqn) or primitive.name)
        return outs

    def _simple(self, eqn: Any, values: list[Value]) -> list[Value]:
        labels = frozenset[str]().union(*(v.labels for v in values))
        try:
            key = (eqn.primitive, _hashable(eqn.params), tuple(v.token for v in values))
            hash(key)
        except TypeError:
            key = ("unique", next(self._fresh))
        if eqn.effects:
            key = ("unique", next(self._fresh))
        tokens = [self._intern((key, i)) for i in range(len(eqn.outvars))]
        view = eqn.primitive.name in _VIEWS and len(values) >= len(tokens)
        return [
            Value(labels, t, values[i].origin if view else t) for i, t in enumerate(tokens)
        ]

    def _scan(self, eqn: Any, values: list[Value], path: Path, *where: Any) -> list[Value]:
        scopes, transforms, loops, record = where
        params = _compat.scan_params(eqn)
        jaxpr, body_consts = _compat.open_jaxpr(eqn.params["jaxpr"])
        captured = [self._new(CAPTURED if _is_tensor(c) else None) for c in body_consts]
        n, k = params.num_consts, params.num_carry
        consts, carry, xs = values[:n], values[n : n + k], values[n + k :]
        carry = [dataclasses.replace(self._new(None), labels=v.labels) for v in carry]
        slices = [self._sliced(v) for v in xs]
        while True:
            outs = self._run(
                jaxpr, [*consts, *carry, *slices], captured, path, *where[:2], loops, False
            )
            joined = [
                dataclasses.replace(c, labels=c.labels | o.labels)
                for c, o in zip(carry, outs[:k], strict=True)
            ]
            if joined == carry:
                break
            carry = joined
        inside = (*loops, (params.length, params.reverse))
        outs = self._run(
            jaxpr, [*consts, *carry, *slices], captured, path, *where[:2], inside, record
        )
        final = [dataclasses.replace(self._new(None), labels=v.labels) for v in carry]
        return [*final, *(self._stacked(v) for v in outs[k:])]

    def _sliced(self, stacked: Value) -> Value:
        if stacked.token in self._stacks:
            return self._stacks[stacked.token]
        token, origin = (self._intern(("slice", t)) for t in (stacked.token, stacked.origin))
        return Value(stacked.labels, token, origin)

    def _stacked(self, value: Value) -> Value:
        token = self._intern(("stack", value.token))
        self._stacks[token] = value
        return Value(value.labels, token, self._intern(("stack", value.origin)))

    def _while(self, eqn: Any, values: list[Value], path: Path, *where: Any) -> list[Value]:
        scopes, transforms, loops, record = where
        jaxpr, consts = _compat.open_jaxpr(eqn.params["body_jaxpr"])
        captured = [self._new(CAPTURED if _is_tensor(c) else None) for c in consts]
        c, b = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        constant, carry = values[c : c + b], values[c + b :]
        carry = [dataclasses.replace(self._new(None), labels=v.labels) for v in carry]
        while True:
            outs = self._run(jaxpr, [*constant, *carry], captured, path, *where[:2], loops, False)
            joined = [
                dataclasses.replace(v, labels=v.labels | o.labels)
                for v, o in zip(carry, outs, strict=True)
            ]
            if joined == carry:
                break
            carry = joined
        inside = (*loops, (None, False))
        self._run(jaxpr, [*constant, *carry], captured, path, *where[:2], inside, record)
        return [dataclasses.replace(self._new(None), labels=v.labels) for v in carry]

    def _cond(self, eqn: Any, values: list[Value], path: Path, *where: Any) -> list[Value]:
        branches: list[list[Value]] = []
        for i, branch in enumerate(eqn.params["branches"]):
            jaxpr, consts = _compat.open_jaxpr(branch)
            captured = [self._new(CAPTURED if _is_tensor(c) else None) for c in consts]
            branches.append(self._run(jaxpr, values[1:], captured, (*path, i), *where))
        # A residual is zeros in the branches that do not make it: follow the one that does.
        merged: list[Value] = []
        for outs in zip(*branches, strict=True):
            labels = frozenset[str]().union(*(v.labels for v in outs))
            richest = max(outs, key=lambda v: len(v.labels))
            merged.append(dataclasses.replace(richest, labels=labels))
        return merged


def _is_tensor(const: Any) -> bool:
    """Whether a captured constant could be a weight: a float array of two or more dimensions."""
    dtype = getattr(const, "dtype", None)
    return getattr(const, "ndim", 0) >= 2 and dtype is not None and _compat.is_float(dtype)


def _hashable(params: dict[str, Any]) -> Any:
    return tuple(sorted((k, _freeze(v)) for k, v in params.items()))


def _freeze(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_freeze(v) for v in value)
    if callable(value) or hasattr(value, "eqns") or hasattr(value, "jaxpr"):
        return id(value)
    return value


def _literal_key(value: Any) -> Any:
    return repr(value)
