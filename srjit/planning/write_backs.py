"""Finds where a training step writes parameters back, and where it casts gradients.

Looked for from the outputs: one that has a parameter's shape and dtype is followed, through what
only passes it (calls, loops, branches, ``where``, ``clip``) or puts parts of it where they stood
(``.at[rows].set``, ``all_gather``), to what makes it. That is a write-back if it is

  narrow arithmetic   p + u, p.at[rows].add(u), or (1 - d) * p - u: all steps from p to the result
                      are in p's dtype
  a cast              from float32 or float64 to p's dtype, of what p was widened and added to

In both, nothing needs to be rounded between p and the result, and p is in it about once: neither
n - p, nor 1e-4 * p + g, nor anything that is made of another output is p's next value.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from srjit import _compat
from srjit.planning.site import WriteBack, WrittenKind
from srjit.planning.sums import ARITHMETIC, Kind, Sum, kind_of, multiplies_by_one
from srjit.program.places import JaxprScope, Place
from srjit.program.values import PARAMETER, Path, Scope, visible
from srjit.recipes import Recipe

NARROW = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
_WIDE = ("float32", "float64")
_STATE = "opt_state"  # a field of what holds parameters and moments, of Flax and others
_OPERATIONS = {  # what reports call them
    "convert_element_type": "cast", "add_any": "add", "scatter-add": "add", "scatter_add": "add",
}  # fmt: skip
# What is, element by element, one of some operands: a write-back is rounded before the choice.
_CHOOSING = {
    "select_n": slice(1, None), "max": slice(None), "min": slice(None), "clamp": slice(1, 2),
}  # fmt: skip


# What is made of parts that stand where they stood in the parameter: (what else is there, parts).
_PLACING = {
    "scatter": (slice(0, 1), slice(2, 3)),  # p.at[rows].set(p[rows] + u)
    "dynamic_update_slice": (slice(0, 1), slice(1, 2)),
    "concatenate": (slice(0), slice(None)),
    "all_gather": (slice(0), slice(None)),  # of shards that devices have updated
    "all_gather_invariant": (slice(0), slice(None)),
}


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
      notes: what else a user should know.
      guessed: mesh axes around the program along which what is written may be copies.
    """

    writes: dict[Path, Write]
    widened: frozenset[Path]
    reported: tuple[WriteBack, ...]
    notes: tuple[str, ...] = ()
    guessed: frozenset[str] = frozenset()


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
    return dataclasses.replace(found, writes=writes, reported=tuple(reported))


# ------------------------------------------------------------------------------------ the search


@dataclasses.dataclass(frozen=True)
class _Source:
    """One of the things that an output may be.

    Attributes:
      inputs: numbers of the program's inputs that it may be the next value of, and how often each
        is in it.
      steps: the places that its write-back makes of them, the write-back first; none if it is an
        input as it came.
      why: why it is no write-back; empty if it is one.
    """

    inputs: Mapping[int, float] = dataclasses.field(default_factory=dict)
    steps: tuple[Place, ...] = ()
    why: str = ""

    @property
    def is_written(self) -> bool:
        """True if it is a write-back."""
        return bool(self.steps) and not self.why


class _Search:
    def __init__(
        self, closed: Any, labels: Sequence[str], names: Sequence[str], recipe: Recipe
    ) -> None:
        jaxpr, _ = _compat.open_jaxpr(closed)
        self.labels, self.names, self.recipe = labels, names, recipe
        self.top = JaxprScope(jaxpr, (), range(len(jaxpr.invars)))
        self.inputs = [kind_of(v) for v in jaxpr.invars]
        self.narrow = [
            i
            for i, (label, kind) in enumerate(zip(labels, self.inputs, strict=True))
            if label == PARAMETER and kind[1] in NARROW
        ]
        self._trained = {k for k, la in zip(self.inputs, labels, strict=True) if la == PARAMETER}
        self.outputs = [Place(self.top, v) for v in jaxpr.outvars]
        self._makers = {self._maker(o) for o in self.outputs if not o.is_literal}
        self._origins: dict[Place, int | None] = {}
        self._sum = functools.partial(Sum, self.inputs, self.origin, self._makers.__contains__)

    def run(self) -> WriteBacks:
        """Looks."""
        kinds = {k for k in self.inputs if k[1] in NARROW}
        sources = {
            n: list(self._sources(output))
            for n, output in enumerate(self.outputs)
            if kind_of(output.var) in kinds
        }
        parameters = {self.inputs[i] for i in self.narrow}
        owners = self._owners(
            {n: s for n, s in sources.items() if kind_of(self.outputs[n].var) in parameters}
        )
        writes: dict[Path, Write] = {}
        widened: set[Path] = set()
        became: dict[int, list[_Source]] = {}
        for n, found in sources.items():
            owner, kind = owners.get(n), kind_of(self.outputs[n].var)
            if owner is None:
                # Nobody's: what a parameter of that kind could have become, if anything.
                for i in self.narrow:
                    if self.inputs[i] == kind:
                        became.setdefault(i, []).extend(s for s in found if s.why)
                continue
            became.setdefault(owner, []).extend(found)
            for source in found:
                if source.is_written:
                    path, *between = (step.path for step in source.steps)
                    widened.update(between)
                    if path not in writes:
                        name, what = self.names[owner], self._kind_of(owner)
                        writes[path] = Write(len(writes), name, what, kind[1])
        # Something is written, or comes back for every parameter: that should be its update.
        returned = Counter(kind_of(o.var) for o in self.outputs)
        trains = bool(writes) or Counter(self.inputs[i] for i in self.narrow) <= returned
        reported = [
            self._reported(i, became.get(i, []), trains)
            for i, label in enumerate(self.labels)
            if i in self.narrow or (label != PARAMETER and i in became)
        ]
        if not any(kind_of(o.var) in self._trained for o in self.outputs):
            reported += self._elsewhere(sources)
        notes = self._notes(became)
        return WriteBacks(writes, frozenset(widened - writes.keys()), tuple(reported), notes)

    def _owners(self, sources: Mapping[int, Sequence[_Source]]) -> dict[int, int]:
        """The input whose next value each output is; one that is written has one such output."""
        order = {n: self._candidates(n, found) for n, found in sources.items()}
        owners: dict[int, int] = {}
        taken: set[int] = set()
        for n in sorted(order, key=lambda n: len(order[n])):  # first those that have no choice
            written = any(s.is_written for s in sources[n])
            owner = next((i for i in order[n] if not (written and i in taken)), None)
            if owner is not None:
                owners[n] = owner
                taken |= {owner} if written else set()
        return owners

    def _candidates(self, n: int, sources: Sequence[_Source]) -> list[int]:
        """Inputs that an output may be the next value of, the likeliest first."""
        kind = kind_of(self.outputs[n].var)
        # Steps return what they took in the same order, as a rule.
        place = sum(kind_of(o.var) == kind for o in self.outputs[:n])
        mates = [i for i, k in enumerate(self.inputs) if k == kind]
        mate = mates[place] if place < len(mates) else None
        with_moments = self.recipe.moments is not None
        factors = {
            i: factor
            for source in sources
            for i, factor in source.inputs.items()
            if self.inputs[i] == kind and (with_moments or self._kind_of(i) == "parameter")
        }

        def unlikely(i: int) -> tuple[bool, bool, float]:
            return self._kind_of(i) != "parameter", i != mate, abs(math.log2(factors[i]))

        return sorted(factors, key=unlikely)

    def _kind_of(self, number: int) -> WrittenKind:
        is_parameter = self.labels[number] == PARAMETER and _STATE not in self.names[number]
        return "parameter" if is_parameter else "moment"

    def _elsewhere(self, sources: Mapping[int, Sequence[_Source]]) -> list[WriteBack]:
        """Write-backs of other arguments, in a program that returns no parameter's kind."""
        return [
            WriteBack(
                path=self.names[i],
                kind="parameter",
                shape=self.inputs[i][0],
                dtype=self.inputs[i][1],
                op=_OPERATIONS.get(source.steps[0].operation, source.steps[0].operation),
                status="kept",
                reason="it is of no argument that params_argnums says to be parameters",
                asked=True,
            )
            for n, found in sources.items()
            for source in found
            if source.is_written
            for i in itertools.islice(self._others(source, kind_of(self.outputs[n].var)), 1)
        ]

    def _others(self, source: _Source, kind: Kind) -> Iterator[int]:
        """Inputs of that kind which it may be the next value of, and which are no parameters."""
        return (i for i in source.inputs if self.labels[i] != PARAMETER and self.inputs[i] == kind)

    def _notes(self, became: Mapping[int, Sequence[_Source]]) -> tuple[str, ...]:
        """Constants of a program that its narrow dtype has lost before srjit sees them."""
        lost = {
            self.names[i]: None
            for i, sources in became.items()
            for s in sources
            if s.is_written and any(multiplies_by_one(step) for step in s.steps)
        }
        if not lost:
            return ()
        return (
            f"{', '.join(lost)}: multiplied by 1 in a narrow dtype. A factor such as 0.999 is 1 in "
            "bfloat16 before it is rounded stochastically: nothing decays. Compute with it in "
            "float32, and cast the result",
        )

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

    def origin(self, place: Place) -> int | None:
        """The program's input that a value is, passed on and nothing else."""
        if place.is_literal:
            return None
        if place not in self._origins:
            self._origins[place] = None  # while it is being found
            if isinstance(place.outside, int):
                self._origins[place] = place.outside
            elif same := place.same:
                found = {self.origin(p) for p in same}
                self._origins[place] = found.pop() if len(found) == 1 else None
        return self._origins[place]

    def _sources(self, place: Place, part: bool = False) -> Iterator[_Source]:
        """Yields the parameters that a value may come from; ``part``: it replaces a part of one."""
        origin = self.origin(place)
        if origin is not None:
            yield _Source({origin: 1.0})
            return
        name = place.operation
        same = place.operands[_CHOOSING[name]] if name in _CHOOSING else place.same
        if same:
            for one in same:
                yield from self._sources(one, part)
        elif name in _PLACING:
            rest, parts = _PLACING[name]
            for one in place.operands[rest]:
                yield from self._sources(one, part)
            for one in place.operands[parts]:
                yield from self._sources(one, True)
        elif name in ARITHMETIC:
            yield self._arithmetic(place, part)
        elif name == "convert_element_type" and kind_of(place.operands[0].var)[1] in _WIDE:
            yield self._cast(place, place.operands[0], part)
        else:
            yield _Source(why=f"{name or 'a constant'} makes it, no addition and no cast")

    def _arithmetic(self, place: Place, part: bool) -> _Source:
        found = self._sum(place, kind_of(place.var)[1], part)
        if not found.inputs:
            why = f"{place.operation} makes it, of nothing that is a parameter"
            return _Source(why=why)
        return _Source(found.inputs, (place, *found.between))

    def _cast(self, place: Place, value: Place, part: bool) -> _Source:
        is_of_inputs = not value.is_literal and kind_of(value.var) in self.inputs
        if is_of_inputs and self._maker(value) in self._makers:
            why = f"a copy of {value.var.aval.dtype} values that the program returns too"
            return _Source(steps=(place,), why=f"{why}: those lose nothing")
        inputs = self._sum(value, kind_of(place.var)[1], part).inputs or self._nearest(value, place)
        if not inputs:
            return _Source(why="it is cast from float32 values that no parameter was added to")
        return _Source(inputs, (place,))

    def _nearest(self, value: Place, cast: Place) -> dict[int, float]:
        """The nearest inputs of the kind of ``cast`` that ``value`` is made of, in any way."""
        kind, level, known = kind_of(cast.var), [value], {value}
        while level:
            origins = [self.origin(p) for p in level if kind_of(p.var) == kind]
            if found := {o: 1.0 for o in origins if o is not None}:
                return found
            operands = [
                p
                for reader in level
                for p in reader.same or reader.operands
                if p.var.aval.shape == value.var.aval.shape and not p.is_literal and p not in known
            ]
            level = list(dict.fromkeys(operands))
            known.update(level)
        return {}

    @staticmethod
    def _maker(place: Place) -> Place:
        """The place where a value is made."""
        while len(same := place.same) == 1:
            place = same[0]
        return place


def _reason(sources: Sequence[_Source], dtype: str) -> str:
    if any(s.inputs and not s.steps for s in sources):
        return "returned as it came"
    reasons = dict.fromkeys(s.why for s in sources if s.why)
    if not reasons:
        return f"no output has its shape and is {dtype}"
    return "the output of its kind: " + "; ".join(itertools.islice(reasons, 3))
