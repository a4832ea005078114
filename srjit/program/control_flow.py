"""Control flow, stated once: the regions that an equation holds, what enters and what leaves them.

Everything that looks into calls, loops and branches reads it here: provenance, write-backs, dead
code, noise, histories, freezing and rewriting, of jaxprs and of modules. A primitive that calls is
one entry in ``FLOWS``.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from srjit.program.protocols import Equation, Program

Meaning = Literal["", "jit", "jvp", "vjp"]
Spec = tuple[tuple[str, ...], ...]  # for each dimension, the mesh axes that shard it


@dataclasses.dataclass(frozen=True)
class Input:
    """An input of a region.

    Attributes:
      operand: position of the operand of the equation that it is made of.
      way: ``same``: it is that; ``carried``: it is that on the first trip, and then what the body
        returned; ``slice``: one slice of it a trip; ``shard``: a shard of it.
      spec: how shards are cut.
    """

    operand: int
    way: Literal["same", "carried", "slice", "shard"] = "same"
    spec: Spec = ()


@dataclasses.dataclass(frozen=True)
class Output:
    """An output of a region.

    Attributes:
      result: position of the result of the equation that it becomes; None: of none.
      way: ``same``: it is that; ``carried``: of the last trip, and the next trip's input (the n-th
        carried output is the n-th carried input); ``stack``: one slice a trip; ``shard``: a shard
        of it; ``condition``: whether there is another trip.
      spec: how shards are cut.
    """

    result: int | None
    way: Literal["same", "carried", "stack", "shard", "condition"] = "same"
    spec: Spec = ()


@dataclasses.dataclass(frozen=True)
class Region:
    """A program inside an equation.

    Attributes:
      program: the program.
      consts: values of its constvars.
      inputs, outputs: an edge for each of the program's.
      step: in a path: "cond" or "body", the number of a branch; nothing for the only region.
    """

    program: Program
    consts: Sequence[Any]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    step: tuple[int | str, ...] = ()

    def inputs_by(self, *ways: str) -> list[int]:
        """Positions of the inputs that enter in one of some ways."""
        return [i for i, given in enumerate(self.inputs) if given.way in ways]

    def outputs_by(self, *ways: str) -> list[int]:
        """Positions of the outputs that leave in one of some ways."""
        return [i for i, made in enumerate(self.outputs) if made.way in ways]

    def given(self, values: Sequence[Any] | Mapping[int, Any], *ways: str) -> list[Any]:
        """The operands that the inputs of some ways, or all, are made of."""
        return [values[i.operand] for i in self.inputs if not ways or i.way in ways]

    def arranged(
        self, same: Sequence[Any], carried: Sequence[Any] = (), slices: Sequence[Any] = ()
    ) -> list[Any]:
        """The inputs of a trip."""
        left = {"same": iter(same), "carried": iter(carried), "slice": iter(slices)}
        return [next(left[i.way]) for i in self.inputs]

    def results(self, outs: Sequence[Any], stacks: Sequence[Any] = ()) -> list[Any]:
        """The results of the equation, given what is stacked apart from all else."""
        left, stacked = iter(outs), iter(stacks)
        found = {o.result: next(stacked if o.way == "stack" else left) for o in self.outputs}
        return [found[i] for i in range(len(found))]

    @property
    def is_condition(self) -> bool:
        """True if it decides if a loop goes on."""
        return bool(self.outputs_by("condition"))


@dataclasses.dataclass(frozen=True)
class Trips:
    """The number of times that a loop runs.

    Attributes:
      length: how many trips; None where that is not known.
      reverse: whether slices are read and stacked from the last to the first.
      unroll: as of ``lax.scan``.
    """

    length: int | None
    reverse: bool = False
    unroll: int | bool = 1


@dataclasses.dataclass(frozen=True)
class Shards:
    """The shards that regions run on.

    Attributes:
      manual: the mesh axes.
      is_typed: whether types tell along which of them a value differs.
    """

    manual: frozenset[str]
    is_typed: bool


@dataclasses.dataclass(frozen=True)
class ControlFlow:
    """The regions of an equation and their edges.

    Attributes:
      regions: in the order in which a trip runs them.
      trips: of a loop.
      selector: position of the operand that says which region runs.
      shards: of regions that run on shards.
      means: what a call is beside its body: ``jit``, also of a checkpoint: to be bound again with
        its own parameters; ``jvp`` or ``vjp``: it has a derivative rule of its own.
    """

    regions: tuple[Region, ...]
    trips: Trips | None = None
    selector: int | None = None
    shards: Shards | None = None
    means: Meaning = ""

    @property
    def kind(self) -> Literal["loop", "branches", "shards", "call"]:
        """The kind of control flow."""
        if self.trips:
            return "loop"
        if self.selector is not None:
            return "branches"
        return "shards" if self.shards else "call"

    @property
    def carried(self) -> dict[int, int]:
        """The result that each operand which a loop carries ends as."""
        operands = [i.operand for i in self.body.inputs if i.way == "carried"]
        results = [o.result or 0 for o in self.body.outputs if o.way == "carried"]
        return dict(zip(operands, results, strict=True))

    @property
    def body(self) -> Region:
        """The region that makes the results, where one alone does."""
        return self.regions[-1]


def flow_of(eqn: Equation) -> ControlFlow | None:
    """The control flow of an equation; None if it has none."""
    entry = FLOWS.get(eqn.primitive.name)
    return entry and entry(eqn)


def programs_of(eqn: Equation) -> Iterator[Program]:
    """The programs that an equation holds."""
    flow = flow_of(eqn)
    return (region.program for region in flow.regions) if flow else iter(())


# ------------------------------------------------------------------------------------------ entries

Entry = Callable[[Equation], ControlFlow | None]  # None: this equation has none


def call(body: str, means: Meaning = "") -> Entry:
    """The entry of a primitive that calls a program, on its operands, for its results.

    Args:
      body: the parameter that holds the program.
      means: as of ``ControlFlow``.
    """

    def entry(eqn: Equation) -> ControlFlow:
        inputs, outputs = inputs_of(len(eqn.invars)), outputs_of(len(eqn.outvars))
        return ControlFlow((_region(eqn.params[body], inputs, outputs),), means=means)

    return entry


def _high_level(eqn: Equation) -> ControlFlow | None:
    """A checkpoint of ``JAX_REMAT3``, or a name in one; others are left alone."""
    from srjit.program.hijax import checkpoint_kind, high_level_program  # JAX

    kind = checkpoint_kind(eqn)
    if not kind:
        return None
    inputs, outputs = inputs_of(len(eqn.invars)), outputs_of(len(eqn.outvars))
    region = _region(high_level_program(eqn), inputs, outputs)
    return ControlFlow((region,), means="jit" if kind == "checkpoint" else "")


def _scan(eqn: Equation) -> ControlFlow:
    params = eqn.params
    first, carried = _compat().scan_params(eqn)
    inputs = inputs_of(first, carried, len(eqn.invars) - first - carried)
    outputs = outputs_of(0, carried, len(eqn.outvars) - carried)
    trips = Trips(params["length"], params["reverse"], params["unroll"])
    return ControlFlow((_region(eqn.params["jaxpr"], inputs, outputs),), trips)


def _while(eqn: Equation) -> ControlFlow:
    c, b = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    given, results = inputs_of(c + b, len(eqn.invars) - c - b), outputs_of(0, len(eqn.outvars))
    condition = (*given[:c], *given[c + b :])
    regions = (
        _region(eqn.params["cond_jaxpr"], condition, [Output(None, "condition")], "cond"),
        _region(eqn.params["body_jaxpr"], given[c:], results, "body"),
    )
    return ControlFlow(regions, Trips(None))


def _cond(eqn: Equation) -> ControlFlow:
    inputs, outputs = inputs_of(len(eqn.invars))[1:], outputs_of(len(eqn.outvars))
    branches = enumerate(eqn.params["branches"])
    return ControlFlow(tuple(_region(b, inputs, outputs, i) for i, b in branches), selector=0)


def _shard_map(eqn: Equation) -> ControlFlow:
    params = eqn.params
    inputs = [Input(i, "shard", _axes_of(spec)) for i, spec in enumerate(params["in_specs"])]
    outputs = [Output(i, "shard", _axes_of(spec)) for i, spec in enumerate(params["out_specs"])]
    shards = Shards(frozenset(params["newly_manual_axes"]), params["check_vma"])
    return ControlFlow((_region(params["jaxpr"], inputs, outputs),), shards=shards)


def _axes_of(spec: Sequence[Any]) -> tuple[tuple[str, ...], ...]:
    """For each dimension, the mesh axes in a PartitionSpec, or in a tuple of tuples of them."""
    found = [
        tuple(entry) if isinstance(entry, (tuple, list)) else () if entry is None else (entry,)
        for entry in spec
    ]
    while found and not found[-1]:
        found.pop()
    return tuple(found)


@functools.cache
def inputs_of(same: int, carried: int = 0, slices: int = 0) -> tuple[Input, ...]:
    """The inputs of a region that takes all operands in order, so many in each way."""
    n = itertools.count()
    return (
        *(Input(next(n)) for _ in range(same)),
        *(Input(next(n), "carried") for _ in range(carried)),
        *(Input(next(n), "slice") for _ in range(slices)),
    )


@functools.cache
def outputs_of(same: int, carried: int = 0, stacks: int = 0) -> tuple[Output, ...]:
    """The outputs of a region that makes all results in order, so many in each way."""
    n = itertools.count()
    return (
        *(Output(next(n)) for _ in range(same)),
        *(Output(next(n), "carried") for _ in range(carried)),
        *(Output(next(n), "stack") for _ in range(stacks)),
    )


def _region(
    closed: Any, inputs: Sequence[Input], outputs: Sequence[Output], *step: int | str
) -> Region:
    # A module's blocks are no jaxprs: who looks into them imports no JAX.
    program, consts = _compat().open_jaxpr(closed) if hasattr(closed, "consts") else (closed, ())
    return Region(program, consts, tuple(inputs), tuple(outputs), step)


def _compat() -> Any:
    """``srjit._compat``; passes that meet no equation import no JAX."""
    from srjit import _compat

    return _compat


HIGH_LEVEL = "call_hi_primitive"
# By the name of the primitive. Modules are read as these, too: a func.call as a closed_call.
FLOWS: dict[str, Entry] = {
    "jit": call("jaxpr", "jit"),
    "remat2": call("jaxpr", "jit"),
    HIGH_LEVEL: _high_level,
    "closed_call": call("call_jaxpr"),
    "eval_jaxpr": call("call_jaxpr"),  # the same, from jax 0.12 on
    "custom_jvp_call": call("call_jaxpr", "jvp"),
    "custom_vjp_call": call("call_jaxpr", "vjp"),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
