"""Finds the parameters among the arguments of a program.

An argument is one, with all of its arrays, if the program

  updates it          returns it with something added that a gradient made, and multiplies by it
  differentiates it   returns its gradient
  multiplies by it    as by those: it is frozen (``_beside``)

If it returns neither, it is the first argument, as a rule (``_usual``). Keys, counters and other
integers are never parameters, wherever they are.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax.numpy as jnp

from srjit import _compat
from srjit.planning import write_backs
from srjit.planning.dependences import Dependence, Dependences, Multiplication
from srjit.planning.site import listed
from srjit.planning.sums import Kind, kind_of
from srjit.products.kinds import product_of
from srjit.program.values import COUNTER, DATA, PARAMETER, SourceInfo
from srjit.recipes import BUILTIN

_UPDATED, _DIFFERENTIATED = "the step updates it", "the step differentiates it"
OTHERWISE = "say otherwise with params_argnums= or params_argnames="


@dataclasses.dataclass(frozen=True, eq=False)
class Argument:
    """One argument of a program; equal to none but itself.

    Attributes:
      name: what users call it.
      inputs: numbers of the program's inputs that are its arrays.
      is_container: whether it is a pytree, not one array.
      is_first: whether it is the first of all, arguments without arrays included.
    """

    name: str
    inputs: tuple[int, ...]
    is_container: bool
    is_first: bool = False

    @functools.cached_property
    def bits(self) -> int:
        """Its inputs as bits."""
        return sum(1 << i for i in self.inputs)


def arguments_of(owners: Sequence[str], is_nested: Sequence[bool]) -> list[Argument]:
    """Arguments, of each input's argument and whether it is inside of a pytree."""
    found: dict[str, list[int]] = collections.defaultdict(list)
    for i, owner in enumerate(owners):
        found[owner].append(i)
    return [
        Argument(name, tuple(inputs), any(is_nested[i] for i in inputs), n == 0)
        for n, (name, inputs) in enumerate(found.items())
    ]


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The parameters of a program.

    Attributes:
      arguments: those that are.
      note: for reports: which were taken, and why; empty where nobody could expect others.
    """

    arguments: tuple[Argument, ...]
    note: str = ""

    @property
    def inputs(self) -> frozenset[int]:
        """Numbers of the program's inputs that are theirs."""
        return frozenset(i for a in self.arguments for i in a.inputs)


def _is_float(dtype: Any) -> bool:
    """Complex ones count: their products stay, which is to be said."""
    return not isinstance(dtype, str) and jnp.issubdtype(dtype, jnp.inexact)  # a token has none


def labels_of(program: Any, chosen: Iterable[int]) -> list[str]:
    """A label for every input of a program, of which the chosen ones are parameters."""
    chosen = frozenset(chosen)
    inputs = _compat.open_jaxpr(program)[0].invars
    return [_label(v.aval) if i in chosen else DATA for i, v in enumerate(inputs)]


def _label(aval: Any) -> str:
    """The label of an input that belongs to a parameter's argument."""
    if _is_float(aval.dtype):
        return PARAMETER
    # Arrays of plain integers are batches; single bytes and PRNG keys are part of the model.
    is_batch = aval.ndim and str(aval.dtype) in ("int32", "int64")
    return DATA if is_batch else COUNTER


def declared(closed: Any, arguments: Sequence[Argument], said: str) -> Parameters:
    """The parameters that a user names.

    Raises:
      ValueError: an argument has arrays, and none of floats.
    """
    inputs = _compat.open_jaxpr(closed)[0].invars
    for a in arguments:
        dtypes = dict.fromkeys(str(inputs[i].aval.dtype) for i in a.inputs)
        if not any(_is_float(inputs[i].aval.dtype) for i in a.inputs):
            raise ValueError(
                f"{said}: {a.name} has no arrays of floats ({', '.join(dtypes)}): keys, counters "
                "and other integers are no parameters; name the argument that the weights are in"
            )
    note = (
        ""
        if arguments
        else (
            f"{said}: no arguments are parameters; weights are looked for among the arrays that "
            "the function captures"
        )
    )
    return Parameters(tuple(arguments), note)


def find(closed: Any, arguments: Sequence[Argument], source: SourceInfo[Any]) -> Parameters:
    """Finds the parameters of a program.

    Args:
      closed: a closed jaxpr, or what was read of a module.
      arguments: its arguments.
      source: reads scopes off its equations.
    """
    return _Search(Dependences(closed, source), arguments).found()


class _Search:
    """Looks for the arguments that a program updates or differentiates."""

    def __init__(self, dependences: Dependences, arguments: Sequence[Argument]) -> None:
        self.dependences = dependences
        program = _compat.open_jaxpr(dependences.closed)[0]
        self.kinds = [kind_of(v) for v in program.invars]
        self.floats = sum(1 << i for i, v in enumerate(program.invars) if _is_float(v.aval.dtype))
        self.arguments = [a for a in arguments if a.bits & self.floats]
        self._owners = {i: a for a in self.arguments for i in a.inputs}
        self._raw: dict[Argument, list[tuple[Dependence, int]]] = {}
        # Forward products, as (product, side, the operand there, the other one).
        self.sides: list[tuple[Multiplication, int, Dependence, Dependence]] = [
            (m, side, m.operands[side], m.operands[1 - side])
            for m in dependences.products
            if m.phase != "backward" and not any(o.is_gradient for o in m.operands)
            for side in (0, 1)
        ]
        self.outputs = list(zip(dependences.outputs, map(kind_of, program.outvars), strict=True))

    def found(self) -> Parameters:
        """Looks."""
        if trained := self._updated():
            return _beside(self, trained, _UPDATED)
        if self.dependences.differentiates and (trained := self._differentiated()):
            return _beside(self, trained, _DIFFERENTIATED)
        return _usual(self)

    def taken(self, arguments: list[Argument], how: str) -> Parameters:
        """The parameters, with a note unless they are what comes first and is trained."""
        is_usual = [a.is_first for a in arguments] == [True]
        if is_usual and how in (_UPDATED, _DIFFERENTIATED):
            return Parameters(tuple(arguments))
        names = listed([a.name for a in arguments], 4) or "none"
        return Parameters(tuple(arguments), f"parameters: {names}: {how}; {OTHERWISE}")

    def alone(self, flow: Dependence) -> Argument | None:
        """The argument that alone flows into a value."""
        a = self.owner(flow.inputs)
        return a if a and not flow.inputs & ~a.bits else None

    def owner(self, bits: int) -> Argument | None:
        """The argument that the first of some inputs belongs to."""
        return self._owners.get((bits & -bits).bit_length() - 1)

    def is_above(self, a: Argument, bare: Argument) -> bool:
        """True if a pytree multiplies a bare array, or what is made of it, as weights do."""
        if bare.is_container or not a.is_container:
            return False
        if a not in self._raw:
            self._raw[a] = [
                (other, side)
                for m, side, operand, other in self.sides
                if self.is_raw(operand, a) and m.eqn.invars[side].aval.ndim > 1
            ]
        right, deep = 0, False
        for other, side in self._raw[a]:
            deep = deep or bool(other.inputs & a.bits and other.inputs & bare.bits)
            if self.alone(other) is bare:
                right += 1 if side else -1
        return deep or right > 0

    def is_raw(self, flow: Dependence, a: Argument) -> bool:
        """True if a value is an array of an argument, or a view of one."""
        return flow.parts != 0 and flow.parts == flow.inputs and not flow.inputs & ~a.bits

    def _updated(self) -> list[Argument]:
        bits: dict[Kind, int] = collections.defaultdict(int)
        for out, kind in self.outputs:
            bits[kind] |= out.updated
        updated = [a for a in self.arguments if any(bits[self.kinds[i]] >> i & 1 for i in a.inputs)]
        if not self.dependences.products:
            return self._written()
        if not self.dependences.differentiates:  # by no name: the gradient of it has to be there
            gradients = self._gradients()
            return [a for a in updated if a in gradients]
        mixed = 0  # inputs of products of several arguments
        for m in self.dependences.products:
            inputs = m.operands[0].inputs | m.operands[1].inputs
            a = self.owner(inputs)
            if m.phase == "primal" and (a is None or inputs & ~a.bits):
                mixed |= inputs
        return [a for a in updated if a.bits & mixed] or self._unmixed(updated)

    def _written(self) -> list[Argument]:
        """Arguments that a program without products writes back; the first if that is one.

        Only narrow ones, which recipes write back rounded, matter in it.
        """
        if not any(
            self.kinds[i][1] in write_backs.NARROW for a in self.arguments[:1] for i in a.inputs
        ):
            return []
        closed, count = self.dependences.closed, len(self.kinds)
        names = [str(i) for i in range(count)]
        found = write_backs.find(closed, [PARAMETER] * count, names, BUILTIN["bf16-sr"])
        written = {int(w.path) for w in found.reported if w.status == "stochastic"}
        updated = [a for a in self.arguments if not written.isdisjoint(a.inputs)]
        return updated[:1] if updated and updated[0].is_first else self._unmixed(updated)

    def _unmixed(self, updated: list[Argument]) -> list[Argument]:
        """Those of the updated that are in no other's update: moments are in their parameter's."""
        bits, mixed = sum(a.bits for a in updated), 0
        for out, _ in self.outputs:
            others, whole = out.inputs & bits, out.whole & bits
            if not whole:
                continue
            while a := self.owner(whole):
                others, whole = others & ~a.bits, whole & ~a.bits
            mixed |= others
        return [a for a in updated if not a.bits & mixed] or updated

    def _differentiated(self) -> list[Argument]:
        gradients, taken = {k for out, k in self.outputs if out.is_gradient}, self._gradients()
        multiplied = [
            a
            for a in self.arguments
            if a in taken and any(_ends(k, self.kinds[i]) for k in gradients for i in a.inputs)
        ]
        if multiplied:
            return multiplied
        alike = [
            a
            for a in self.arguments
            if all(any(_ends(k, kind) for k in gradients) for kind in self._float_kinds(a))
        ]
        return [a for a in alike if a.is_container] or alike[:1]

    def _gradients(self) -> set[Argument]:
        """Arguments that are multiplied and whose gradient is taken."""
        dependences, found = self.dependences, set[Argument]()
        for m in dependences.products:
            if m.phase == "backward":
                of = dependences.differentiated(m.eqn, m.operands, named=dependences.differentiates)
                if of is not None and (a := self.alone(of)):
                    found.add(a)
        return found

    def _float_kinds(self, a: Argument) -> set[Kind]:
        return {self.kinds[i] for i in a.inputs if self.floats >> i & 1}


def _ends(whole: Kind, kind: Kind) -> bool:
    """True if arrays of one kind are batches of the other, as of gradients of every example."""
    (shape, dtype), (inner, other) = whole, kind
    return dtype == other and shape[len(shape) - len(inner) :] == inner


def _contracted(m: Multiplication, side: int) -> tuple[int, ...]:
    product = product_of(m.eqn)
    return product.contracting(side) if product is not None else ()


# ------------------------------------------------------------------------- frozen beside trained


def _beside(search: _Search, trained: list[Argument], how: str, bodies: bool = True) -> Parameters:
    """Parameters: what is trained, and what is frozen beside it.

    Such an argument multiplies

      the same value as a trained one does, along the same dimension (LoRA: x @ w + x @ a @ b),
      or is added to what is made of trained ones before (x @ (w + a @ b)),
      or, if it is a pytree and for ``bodies``, a bare array or what it makes of integers, which
      nothing trained multiplies (a frozen body under a trained head),
      or a bare array that is trained: an input, no weight.

    What a trained argument multiplies itself is data.
    """
    pytrees = [b for b in search.arguments if b.is_container]
    inputs = {a for a in trained if any(search.is_above(b, a) for b in pytrees)}
    above = [b for b in pytrees if any(search.is_above(b, a) for a in inputs)]
    weights = [*dict.fromkeys([*above, *(a for a in trained if a not in inputs)])]
    if how == _DIFFERENTIATED:
        weights = _without_inputs(search, weights)
    first, taken = frozenset(weights), dict.fromkeys(weights)
    while more := dict.fromkeys(a for a in _more(search, taken, first, bodies) if a not in taken):
        taken |= more
    frozen = taken.keys() - trained
    if frozen:
        how += f"; {listed([a.name for a in taken if a in frozen], 4)}: frozen beside it"
    return search.taken([a for a in search.arguments if a in taken], how)


def _without_inputs(search: _Search, weights: list[Argument]) -> list[Argument]:
    """Drops bare arrays that an earlier one multiplies, where nothing else is data."""
    bits = sum(a.bits for a in weights)
    if any(operand.inputs & ~bits for _, _, operand, _ in search.sides):
        return weights
    partners: dict[Argument | None, set[Argument | None]] = collections.defaultdict(set)
    for _, _, operand, other in search.sides:
        partners[search.alone(operand)].add(search.alone(other))
    left: dict[Argument, None] = {}
    for a in weights:
        if a.is_container or partners[a].isdisjoint(left):
            left[a] = None
    return list(left)


def _more(
    search: _Search, weights: Mapping[Argument, None], trained: Set[Argument], bodies: bool
) -> Iterator[Argument]:
    """Arguments that multiply as some known ones do."""
    alone = search.alone
    bits = sum(a.bits for a in weights)
    data = {alone(other) for _, _, operand, other in search.sides if alone(operand) in trained}
    data -= trained
    multiplied = {
        (other.token, _contracted(m, 1 - side))
        for m, side, operand, other in search.sides
        if operand.inputs and not operand.inputs & ~bits
    }

    def is_input(value: Dependence, a: Argument) -> bool:
        b = alone(value)
        if b is not None:
            return not b.is_container and b not in data and b not in weights
        rest = value.inputs & ~a.bits
        return bool(rest) and not rest & (search.floats | search.dependences.captured)

    for m, side, operand, other in search.sides:
        a = alone(operand)
        if a is None:
            a = _added(search, operand, other, bits)
            if a is not None and a not in data:
                yield a
            continue
        is_beside = (other.token, _contracted(m, 1 - side)) in multiplied
        if not is_beside and bodies and a.is_container:
            is_beside = is_input(other, a)
        if is_beside and a not in data and other.inputs & ~a.bits:
            yield a


def _added(search: _Search, operand: Dependence, other: Dependence, bits: int) -> Argument | None:
    """The argument that an operand adds to weights, of inputs ``bits``, and multiplies so."""
    a = search.owner(operand.inputs & ~bits)
    if a is None or a.bits & bits or operand.inputs & ~(bits | a.bits):
        return None
    is_sum = operand.parts & a.bits and operand.inputs & bits
    return a if is_sum and other.inputs & ~(bits | a.bits) else None


# ------------------------------------------------------------- where nothing is differentiated


def _usual(search: _Search) -> Parameters:
    """Takes the first argument, of a program that differentiates nothing inside.

    Or the next, if that is a key or a counter; or the first pytree that multiplies it as weights
    do, if the first is one bare array; or none, if only captured arrays multiply.
    """
    arguments, sides = search.arguments, search.sides
    if not arguments:
        return search.taken([], "no argument has arrays of floats")
    first, usual = arguments[0], arguments[0].is_first
    pytrees = [a for a in arguments if a.is_container]
    if not (usual or first.is_container) and pytrees:
        first = pytrees[0]
    taken = next((a for a in pytrees if search.is_above(a, first)), first)
    captured = search.dependences.captured
    if any(operand.inputs == captured for _, _, operand, _ in sides) and not any(
        ((taken.is_container and search.alone(operand) is taken) or search.is_raw(operand, taken))
        and other.inputs & ~taken.bits & ~captured
        for _, _, operand, other in sides
    ):
        return search.taken([], "weights are the arrays that the function captures")
    which = "argument" if usual else "argument with floats"
    how = f"the first {which}; the function returns no update and no gradient"
    if taken is not first:
        how = f"it multiplies {first.name} as weights do"
    return _beside(search, [taken], how, bodies=False)
