"""Where a training step writes parameters back, whatever its optimizer, and casts gradients.

Looked for from the outputs: one that has a parameter's shape and dtype is followed, through what
only passes it (calls, loops, branches, ``where``, ``clip``), to what makes it. That is a
write-back if it is

  narrow arithmetic   p + u, or (1 - d) * p - u: all steps from p to the result are in p's dtype
  a cast              from float32 or float64 to p's dtype, of what p was widened and added to

In both, nothing needs to be rounded between p and the result.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.extend.core import primitives as jex_primitives

from srjit import _compat
from srjit.jaxprs.values import PARAMETER, Path, Scope, visible
from srjit.plan import WriteBack, WrittenKind
from srjit.recipes import Recipe

NARROW = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
_WIDE = ("float32", "float64")
_ARITHMETIC = {"add", "sub", "add_any", "mul", "div", "neg"}
_OPERATIONS = {"convert_element_type": "cast", "add_any": "add"}  # what reports call them
# What is the same values as the operand in the same position, wherever they then stand.
_PASSING = {
    "copy", "copy_p", "name", "optimization_barrier", "pvary", "pcast", "sharding_constraint",
    "reshard", "reshape", "transpose", "squeeze", "expand_dims",
}  # fmt: skip
# What is, element by element, one of some operands: a write-back is rounded before the choice.
_CHOOSING = {
    "select_n": slice(1, None), "max": slice(None), "min": slice(None), "clamp": slice(1, 2),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Write:
    """An equation that writes a parameter back.

    Attributes:
      number: its own among the program's write-backs: its noise comes from that.
      path, kind: of what is written, as reported.
      dtype: what is rounded to.
    """

    number: int
    path: str
    kind: WrittenKind
    dtype: str


@dataclasses.dataclass(frozen=True)
class WriteBacks:
    """All write-backs of a program.

    Attributes:
      writes: the equations that are rounded stochastically, by where they stand.
      widened: those between a parameter and its write-back, whose result is needed unrounded.
      reported: for every narrow parameter, and moments that are written, what becomes of it.
    """

    writes: dict[Path, Write]
    widened: frozenset[Path]
    reported: tuple[WriteBack, ...]


NOTHING = WriteBacks({}, frozenset(), ())


def find(closed: Any, labels: Sequence[str], names: Sequence[str], recipe: Recipe) -> WriteBacks:
    """The write-backs that a recipe asks for.

    Args:
      closed: the program.
      labels: for each of its inputs, whether it is a parameter or data.
      names: what its inputs are called.
      recipe: what asks.
    """
    if recipe.weights is None:
        return NOTHING
    return _Search(closed, labels, names, recipe).run()


def with_casts(found: WriteBacks, casts: Sequence[tuple[Scope, Any]]) -> WriteBacks:
    """The same, and casts of gradients to narrower types, which are written so too.

    Args:
      found: the write-backs.
      casts: where gradients are cast, and the equations.
    """
    writes, reported = dict(found.writes), list(found.reported)
    for scope, eqn in casts:
        wide, narrow = eqn.invars[0].aval.dtype, eqn.outvars[0].aval
        is_float = jnp.issubdtype(wide, jnp.floating) and wide.itemsize > narrow.dtype.itemsize
        if not is_float or narrow.dtype.name not in NARROW or scope.path in writes:
            continue
        path = "/".join(visible(scope.names)) or "backward pass"
        writes[scope.path] = Write(len(writes), path, "gradient", narrow.dtype.name)
        reported.append(
            WriteBack(
                path=path,
                kind="gradient",
                shape=narrow.shape,
                dtype=narrow.dtype.name,
                op="cast",
                status="stochastic",
                asked=True,
            )
        )
    return WriteBacks(writes, found.widened, tuple(reported))


# ------------------------------------------------------------------------------ places of values


class _Scope:
    """A jaxpr where it stands: what makes its variables, and what its inputs are outside."""

    def __init__(self, jaxpr: Any, path: Path, given: Sequence[_Place | int]) -> None:
        self.path = path
        self.outvars = jaxpr.outvars
        self.given = dict(zip(jaxpr.invars, given, strict=True))
        self.made = {
            v: (i, eqn, position)
            for i, eqn in enumerate(jaxpr.eqns)
            for position, v in enumerate(eqn.outvars)
        }
        self._inner: dict[Path, _Scope] = {}

    def inner(self, jaxpr: Any, step: Path, operands: Sequence[Any]) -> _Scope:
        """The scope of a jaxpr of an equation of this one."""
        if step not in self._inner:
            given = [_Place(self, v) for v in operands]
            jaxpr, _ = _compat.open_jaxpr(jaxpr)
            self._inner[step] = _Scope(jaxpr, (*self.path, *step), given)
        return self._inner[step]


@dataclasses.dataclass(frozen=True)
class _Place:
    """A variable of a scope, or a literal."""

    scope: _Scope
    var: Any

    @property
    def made(self) -> tuple[int, Any, int]:
        """The equation that makes it: (index, equation, position of the result), or (-1, None, 0).

        An input of a jaxpr, a constant and a literal are made by none.
        """
        if isinstance(self.var, jex_core.Literal):
            return -1, None, 0
        return self.scope.made.get(self.var, (-1, None, 0))

    @property
    def path(self) -> Path:
        """Of the equation that makes it."""
        return (*self.scope.path, self.made[0])

    @property
    def outside(self) -> _Place | int | None:
        """What an input of a jaxpr is outside; the number of an input of the program."""
        return None if isinstance(self.var, jex_core.Literal) else self.scope.given.get(self.var)

    @property
    def same(self) -> list[_Place]:
        """The values, one or the other of which it only passes on; none if it is made here."""
        index, eqn, position = self.made
        if eqn is None:
            return [self.outside] if isinstance(self.outside, _Place) else []
        if _passes(eqn):
            return [_Place(self.scope, eqn.invars[position])]
        enter = _ENTER.get(eqn.primitive)
        return [] if enter is None else list(enter(self.scope, index, eqn, position))

    @property
    def operands(self) -> list[_Place]:
        """The operands of what makes it."""
        eqn = self.made[1]
        return [] if eqn is None else [_Place(self.scope, v) for v in eqn.invars]

    @property
    def operation(self) -> str:
        """The name of what makes it; empty for inputs, constants and literals."""
        eqn = self.made[1]
        return "" if eqn is None else eqn.primitive.name


def _passes(eqn: Any) -> bool:
    if eqn.primitive.name == "convert_element_type":
        return eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype
    return eqn.primitive.name in _PASSING


def _called(scope: _Scope, index: int, eqn: Any, position: int) -> Iterator[_Place]:
    # A scan's body takes and returns, in the same positions, what the scan does.
    inner = scope.inner(_compat.called_jaxpr(eqn), (index,), eqn.invars)
    yield _Place(inner, inner.outvars[position])


def _looped(scope: _Scope, index: int, eqn: Any, position: int) -> Iterator[_Place]:
    operands = eqn.invars[eqn.params["cond_nconsts"] :]
    inner = scope.inner(eqn.params["body_jaxpr"], (index, "body"), operands)
    yield _Place(inner, inner.outvars[position])


def _branched(scope: _Scope, index: int, eqn: Any, position: int) -> Iterator[_Place]:
    for i, branch in enumerate(eqn.params["branches"]):
        inner = scope.inner(branch, (index, i), eqn.invars[1:])
        yield _Place(inner, inner.outvars[position])


_ENTER: dict[Any, Callable[[_Scope, int, Any, int], Iterator[_Place]]] = {
    jex_primitives.jit_p: _called,
    jex_primitives.remat_p: _called,
    jex_primitives.closed_call_p: _called,
    jex_primitives.scan_p: _called,
    jex_primitives.while_p: _looped,
    jex_primitives.cond_p: _branched,
    _compat.shard_map_p: _called,
}


# ------------------------------------------------------------------------------------ the search


@dataclasses.dataclass(frozen=True)
class _Source:
    """One of the things that an output may be.

    Attributes:
      input: number of the program's input that it comes from; None: of none.
      steps: the places that its write-back makes of the input, the write-back first; none if it is
        the input as it came.
      why: why it is no write-back; empty if it is one.
    """

    input: int | None = None
    steps: tuple[_Place, ...] = ()
    why: str = ""

    @property
    def is_written(self) -> bool:
        """Whether it is a write-back."""
        return bool(self.steps) and not self.why


class _Search:
    """Looks for the write-backs of one program."""

    def __init__(
        self, closed: Any, labels: Sequence[str], names: Sequence[str], recipe: Recipe
    ) -> None:
        jaxpr, _ = _compat.open_jaxpr(closed)
        self.labels, self.names, self.recipe = labels, names, recipe
        self.top = _Scope(jaxpr, (), range(len(jaxpr.invars)))
        self.inputs = [_kind(v) for v in jaxpr.invars]
        self.narrow = [
            i
            for i, (label, kind) in enumerate(zip(labels, self.inputs, strict=True))
            if label == PARAMETER and kind[1] in NARROW
        ]
        self.outputs = [_Place(self.top, v) for v in jaxpr.outvars]
        self._origins: dict[_Place, int | None] = {}

    def run(self) -> WriteBacks:
        """Looks."""
        writes: dict[Path, Write] = {}
        widened: set[Path] = set()
        became: dict[int, list[_Source]] = {}
        parameters = {self.inputs[i] for i in self.narrow}
        for output in self.outputs:
            kind = _kind(output.var)
            if kind not in parameters:
                continue
            sources = list(self._sources(output))
            owner = next(
                (s.input for s in sources if s.input is not None and self._may(s.input, kind)), None
            )
            if owner is None:
                # Nobody's: what a parameter of that kind could have become, if anything.
                for i in self.narrow:
                    if self.inputs[i] == kind:
                        became.setdefault(i, []).extend(s for s in sources if s.why)
                continue
            became.setdefault(owner, []).extend(sources)
            for source in sources:
                if source.is_written:
                    path, *between = (step.path for step in source.steps)
                    widened.update(between)
                    if path not in writes:
                        made = output.var.aval.dtype.name
                        writes[path] = Write(
                            len(writes), self.names[owner], self._kind_of(owner), made
                        )
        # Something is written, or comes back for every parameter: that should be its update.
        returned = Counter(_kind(o.var) for o in self.outputs)
        trains = bool(writes) or Counter(self.inputs[i] for i in self.narrow) <= returned
        reported = [
            self._reported(i, became.get(i, []), trains)
            for i, label in enumerate(self.labels)
            if i in self.narrow or (label != PARAMETER and i in became)
        ]
        return WriteBacks(writes, frozenset(widened - writes.keys()), tuple(reported))

    def _may(self, number: int, kind: tuple[tuple[int, ...], str]) -> bool:
        """Whether the recipe asks for the write-back of an input that an output is of."""
        asked = self.labels[number] == PARAMETER or self.recipe.moments is not None
        return asked and self.inputs[number] == kind

    def _kind_of(self, number: int) -> WrittenKind:
        return "parameter" if self.labels[number] == PARAMETER else "moment"

    def _reported(self, number: int, sources: Sequence[_Source], trains: bool) -> WriteBack:
        shape, dtype = self.inputs[number]
        written = [s.steps[0].operation for s in sources if s.is_written]
        return WriteBack(
            path=self.names[number],
            kind=self._kind_of(number),
            shape=shape,
            dtype=dtype,
            op="/".join(_OPERATIONS.get(op, op) for op in dict.fromkeys(written)),
            status="stochastic" if written else "kept",
            reason="" if written else _reason(sources, dtype),
            asked=bool(written) or (trains and any(s.why and not s.steps for s in sources)),
        )

    # ------------------------------------------------------------------------ what a value is

    def _origin(self, place: _Place) -> int | None:
        """The program's input that a value is, passed on and nothing else."""
        if place not in self._origins:
            self._origins[place] = None  # while it is being found
            if isinstance(place.outside, int):
                self._origins[place] = place.outside
            elif same := place.same:
                found = {self._origin(p) for p in same}
                self._origins[place] = found.pop() if len(found) == 1 else None
        return self._origins[place]

    def _sources(self, place: _Place) -> Iterator[_Source]:
        origin = self._origin(place)
        if origin is not None:
            yield _Source(origin)
            return
        name = place.operation
        same = place.operands[_CHOOSING[name]] if name in _CHOOSING else place.same
        if same:
            for one in same:
                yield from self._sources(one)
        elif name in _ARITHMETIC:
            yield self._arithmetic(place)
        elif name == "convert_element_type" and _kind(place.operands[0].var)[1] in _WIDE:
            yield self._cast(place, place.operands[0])
        else:
            yield _Source(why=f"{name or 'a constant'} makes it, no addition and no cast")

    def _arithmetic(self, place: _Place) -> _Source:
        kind = _kind(place.var)

        def operands(p: _Place) -> list[_Place]:
            return [o for o in p.operands if _kind(o.var) == kind and p.operation in _ARITHMETIC]

        found = self._nearest(place, operands, kind[1])
        return found or _Source(why=f"{place.operation} makes it, of nothing that is a parameter")

    def _cast(self, place: _Place, value: _Place) -> _Source:
        if self._is_kept(value):
            why = f"a copy of {value.var.aval.dtype} values that the program returns too"
            return _Source(steps=(place,), why=f"{why}: those lose nothing")

        def operands(p: _Place) -> list[_Place]:
            return p.same or [o for o in p.operands if o.var.aval.shape == p.var.aval.shape]

        found = self._nearest(value, operands, _kind(place.var)[1])
        if found is None:
            return _Source(why="it is cast from float32 values that no parameter was added to")
        return _Source(found.input, (place,))

    def _nearest(
        self, place: _Place, operands: Callable[[_Place], list[_Place]], dtype: str
    ) -> _Source | None:
        """The nearest input, and the places between it and ``place``, ``place`` first."""
        readers: dict[_Place, list[_Place]] = {place: []}
        level = [place]
        while level:
            origins = [(self._origin(p), p) for p in level if str(p.var.aval.dtype) == dtype]
            inputs = [o for o, _ in origins if o is not None]
            if inputs:
                first = min(inputs, key=lambda o: self.labels[o] != PARAMETER)
                between: dict[_Place, None] = {}
                left = [r for o, p in origins if o == first for r in readers[p]]
                while left:
                    reader = left.pop()
                    between[reader] = None
                    left += [r for r in readers[reader] if r not in between]
                del between[place]
                return _Source(first, (place, *between))
            following: dict[_Place, None] = {}
            for reader in level:
                for p in operands(reader):
                    if p in following:
                        readers[p].append(reader)
                    elif p not in readers:
                        readers[p] = [reader]
                        following[p] = None
            level = list(following)
        return None

    def _is_kept(self, value: _Place) -> bool:
        """Whether wide values are returned themselves, in place of an input of their kind."""
        kinds = {_kind(value.var)}
        outputs = {self._maker(o) for o in self.outputs if _kind(o.var) in kinds}
        return bool(kinds & {*self.inputs}) and self._maker(value) in outputs

    @staticmethod
    def _maker(place: _Place) -> _Place:
        """The place where a value is made."""
        while len(same := place.same) == 1:
            place = same[0]
        return place


def _kind(v: Any) -> tuple[tuple[int, ...], str]:
    return v.aval.shape, str(v.aval.dtype)


def _reason(sources: Sequence[_Source], dtype: str) -> str:
    """Why a parameter is not written back stochastically."""
    if any(s.input is not None and not s.steps for s in sources):
        return "returned as it came"
    reasons = dict.fromkeys(s.why for s in sources if s.why)
    if not reasons:
        return f"no output has its shape and is {dtype}"
    return "the output of its kind: " + "; ".join(itertools.islice(reasons, 3))
