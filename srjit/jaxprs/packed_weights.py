"""Weights quantized before a program runs: which they are, their codes, and the program with them.

A weight is an operand that a site quantizes to nearest and that is made of parameters alone, by
whatever operations. Two evaluations of a planned program find its codes and use them:

    Packing : (arguments)                  -> the codes of every weight
    Running : (arguments, packed weights)  -> the outputs

What the first does not need for its codes, and what the second does not need of the parameters, is
dead code. In a loop that slices stacked weights, codes are made for every iteration and stacked.
Calls are evaluated in place; what stands in a branch or in a loop of unknown length is quantized
where it is, unless it enters as it is, and so is what stands in a shard_map.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core as jex_core

from srjit import _compat
from srjit.jaxprs.evaluator import Trip
from srjit.jaxprs.rewrite import Rewriter, invariants
from srjit.numerics import hadamard
from srjit.numerics.arrays import Packed, dequantize, pack, unpack
from srjit.numerics.encode import encode
from srjit.numerics.quantization import Quantization
from srjit.numerics.rounding import working_dtype
from srjit.planning.plan import ProgramPlan
from srjit.planning.planned_site import Shared
from srjit.products.quantized import as_held
from srjit.program.control_flow import ControlFlow, Region
from srjit.program.dead_code import without_dead_code
from srjit.program.liveness import needed_inputs
from srjit.program.values import CAPTURED, CONSTANT, PARAMETER, Path
from srjit.targets.operand import quantize_operand

WeightKey = tuple[
    tuple[int, ...], Shared
]  # of a weight: lengths of the loops around, and what it is
_SOURCES = frozenset({PARAMETER, CAPTURED, CONSTANT})


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight that is quantized before the program runs.

    Attributes:
      key: which it is.
      sources: positions of the parameters that it is made of, among the program's inputs.
      parts: shapes and dtypes of its packed codes and scales; stacked ones have a dimension for
        every loop in front.
    """

    key: WeightKey
    sources: tuple[int, ...]
    parts: dict[str, jax.ShapeDtypeStruct]

    @property
    def nbytes(self) -> int:
        """The bytes that it takes when it is packed."""
        return sum(map(_nbytes, self.parts.values()))


@dataclasses.dataclass
class _Where:
    """The weight of every use of one, as ``Packing`` has found it.

    Attributes:
      candidates: what may become a weight.
      keys: by where it is used: the path of a site with the side, or of a loop with the input.
      owners: where a weight is used first.
      reads: weights that are sliced by the loop at a path.
    """

    candidates: frozenset[Shared]
    keys: dict[tuple[Path, int], WeightKey] = dataclasses.field(default_factory=dict)
    owners: dict[WeightKey, tuple[Path, int]] = dataclasses.field(default_factory=dict)
    reads: dict[Path, dict[WeightKey, None]] = dataclasses.field(default_factory=dict)

    def note(
        self, shared: Shared, use: tuple[Path, int], loops: Sequence[tuple[Path, int]]
    ) -> WeightKey:
        """Returns the weight of a use inside loops (path, length): one in fewer, if there is."""
        lengths = tuple(n for _, n in loops)
        keys = [(lengths[:n], shared) for n in range(len(loops) + 1)]
        key = self.keys.get(use) or next((k for k in keys if k in self.owners), keys[-1])
        self.owners.setdefault(key, use)
        self.keys[use] = key
        for path, _ in loops[: len(key[0])]:
            self.reads.setdefault(path, {})[key] = None
        return key


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A program whose weights are quantized before it runs.

    Attributes:
      closed: the program.
      plan: of it.
      weights: in the order in which the program uses them.
      kept: positions of the parameters, among the program's inputs, that stay as they are.
      packing: what makes the parts of all weights from the program's inputs, as a closed jaxpr.
      where: which weight is used where.
    """

    closed: Any
    plan: ProgramPlan
    weights: tuple[Weight, ...]
    kept: frozenset[int]
    packing: Any
    where: _Where

    def pack(self, inputs: Sequence[Any]) -> list[Packed]:
        """The packed weights.

        Args:
          inputs: of the program; those that are no parameters are not looked at.
        """
        closed, used = _compat.without_dead_inputs(self.packing)
        flat = jex_core.jaxpr_as_fun(closed)(*(inputs[i] for i in used))
        return jax.tree.unflatten(jax.tree.structure([w.parts for w in self.weights]), flat)

    def run(self, inputs: Sequence[Any], packed: Sequence[Packed]) -> list[Any]:
        """The outputs of the program; parameters that are not ``kept`` are not looked at."""
        keys = [w.key for w in self.weights]
        whole = Running(self.plan, (), self.where)
        whole.store = dict(zip(keys, packed, strict=True))
        jaxpr, consts = _compat.open_jaxpr(self.closed)
        return whole.run(jaxpr, consts, inputs)


def with_packed_weights(closed: Any, plan: ProgramPlan, parameters: Sequence[bool]) -> Frozen:
    """Finds the weights of a program that take less memory than the parameters they are made of.

    Args:
      closed: the program.
      plan: of it, in inference mode.
      parameters: for each of its inputs, whether it is a parameter.

    Raises:
      ValueError: the program has side effects, other than what its own equations print.
    """
    inputs = [_struct(v.aval) for v in _compat.open_jaxpr(closed)[0].invars]
    own = {i for i, is_parameter in enumerate(parameters) if is_parameter}
    frozen = _all_weights(closed, plan, inputs)
    frozen = _only(frozen, [w for w in frozen.weights if own.issuperset(w.sources)])
    live = own & _read(frozen, inputs)
    worth = _worth(frozen.weights, live, [_nbytes(x) for x in inputs])
    frozen = _only(frozen, worth)
    sources = {i for w in worth for i in w.sources}
    kept = own - (sources - live)
    effects = _compat.open_jaxpr(frozen.packing)[0].effects
    if effects:
        raise ValueError(
            "the function has side effects, and is evaluated for its weights alone, once: take "
            f"io_callback, and printing inside of called functions, out of it ({effects})"
        )
    return dataclasses.replace(frozen, kept=frozenset(kept))


def _all_weights(closed: Any, plan: ProgramPlan, inputs: Sequence[Any]) -> Frozen:
    where = _Where(_candidates(plan))
    keys: list[WeightKey] = []

    def made(*values: Any) -> list[Packed]:
        whole = Packing(plan, (), where)
        jaxpr, consts = _compat.open_jaxpr(closed)
        whole.run(jaxpr, consts, values)
        keys[:] = whole.made
        return list(whole.made.values())

    packing, shapes = jax.make_jaxpr(made, return_shape=True)(*inputs)
    packing = without_dead_code(packing)
    weights: list[Weight] = []
    output = 0
    for key, parts in zip(keys, shapes, strict=True):
        sources = tuple(sorted(needed_inputs(_compat.open_jaxpr(packing)[0], output)))
        weights.append(Weight(key, sources, parts))
        output += len(parts)
    return Frozen(closed, plan, tuple(weights), frozenset(), packing, where)


def _candidates(plan: ProgramPlan) -> frozenset[Shared]:
    """Operands that are quantized the same way at every call, and come from parameters alone."""
    found: set[Shared] = set()
    for o in plan.provenance.occurrences:
        for operand, shared in plan.sites[o.path].quantized:
            masks = plan.sites[o.path].product.masks(operand.side)
            values = [o.operands[operand.side], *(o.extras if masks else ())]
            labels = frozenset[str]().union(*(v.labels for v in values))
            is_own = PARAMETER in labels and labels <= _SOURCES
            if is_own and shared.spec.is_hoistable and shared.spec.ragged is None:
                found.add(shared)
    return frozenset(found)


def _only(frozen: Frozen, weights: Sequence[Weight]) -> Frozen:
    """The same with some of its weights."""
    outputs = [weight in weights for weight in frozen.weights for _ in weight.parts]
    packing = without_dead_code(frozen.packing, outputs)
    return dataclasses.replace(frozen, weights=tuple(weights), packing=packing)


def _read(frozen: Frozen, inputs: Sequence[Any]) -> set[int]:
    """The inputs that the program reads beside its weights."""
    run = jax.make_jaxpr(frozen.run)(inputs, [w.parts for w in frozen.weights])
    return {i for i in _compat.without_dead_inputs(run)[1] if i < len(inputs)}


def _worth(weights: Sequence[Weight], live: set[int], sizes: Sequence[int]) -> list[Weight]:
    """The weights that take less than the parameters in whose place they are.

    Weights of the same parameter are weighed together: if one needs it as it is, it is there.
    """
    groups: list[tuple[set[int], list[Weight]]] = []
    for weight in weights:
        replaced, members = set(weight.sources) - live, [weight]
        apart = [g for g in groups if not g[0] & replaced]
        for sources, others in (g for g in groups if g[0] & replaced):
            replaced, members = replaced | sources, others + members
        groups = [*apart, (replaced, members)]
    chosen = [
        weight.key
        for replaced, members in groups
        for weight in members
        if sum(w.nbytes for w in members) < sum(sizes[i] for i in replaced)
    ]
    return [w for w in weights if w.key in chosen]


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)


def _nbytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize


# ------------------------------------------------------------------------------ both evaluations


class _Weighing(Rewriter):
    """A scope of an evaluation that looks at weights."""

    in_place = True

    def __init__(self, plan: ProgramPlan, path: Path, where: _Where) -> None:
        super().__init__(plan, None, path, (), {})
        self.where = where
        self.loops: tuple[tuple[Path, int], ...] = ()
        self.is_open = True  # not in a branch or in a loop of unknown length

    def inner(self, path: Path, trip: Trip | None = None) -> Any:
        """See Evaluator."""
        inner = type(self)(self.plan, path, self.where)
        inner.trips = (*self.trips, trip) if trip else self.trips
        inner.loops, inner.is_open = self.loops, self.is_open
        if trip is not None and trip.length is not None:
            inner.loops = (*self.loops, (path, trip.length))
        return inner

    def before(self, flow: ControlFlow, path: Path, values: Sequence[Any]) -> Any:
        """See Rewriter. What is in a branch or in a loop of unknown length has no weights."""
        if flow.kind not in ("loop", "branches"):
            return self
        is_counted = flow.trips is not None and flow.trips.length is not None
        for region in flow.regions:
            if not region.is_condition:
                self.enter((*path, *region.step), invariants(region, values))
        scope = self if is_counted else copy.copy(self)
        scope.is_open = self.is_open and is_counted
        return super(_Weighing, scope).before(flow, path, values)

    def weigh(self, shared: Shared, x: Any, use: tuple[Path, int]) -> None:
        """Called before x is quantized."""
        raise NotImplementedError

    def enter(self, path: Path, given: Mapping[int, Any]) -> None:
        """Looks at the weights among inputs of the scope at ``path`` before it is entered."""
        for position, value in given.items():
            token = self.plan.provenance.tokens.get((path, position))
            for shared in self.plan.sharing.uses.get(path, ()):
                if shared[0] == token:
                    self._weigh(shared, value, (path, position))

    def _weigh(self, shared: Shared, x: Any, use: tuple[Path, int]) -> None:
        if self.is_open and shared in self.where.candidates and shared not in self.codes:
            self.weigh(shared, x, use)

    def _site(self, path: Path, values: list[Any]) -> Any:
        site = self.plan.sites[path]
        operands, extras = values[:2], values[2:]
        for operand, shared in site.quantized:
            side = operand.side
            masked = site.product.mask(side, operands[side], *extras)
            self._weigh(shared, masked, (path, side))
            operands[side] = self.in_place_of(shared, operands[side])
        return super()._site(path, [*operands, *extras])

    def in_place_of(self, shared: Shared, x: Any) -> Any:
        """Returns a site's operand in high precision, or what stands for it."""
        return x

    def sliced(self, path: Path, body: Region) -> dict[WeightKey, Packed]:
        """See Rewriter."""
        return {}

    def receive(self, slices: Mapping[WeightKey, Packed]) -> None:
        """See Rewriter."""

    def made_by(
        self, body: Any, path: Path, sliced: Mapping[WeightKey, Packed]
    ) -> dict[WeightKey, Packed]:
        """See Rewriter."""
        return {}

    def gather(self, stacked: Mapping[WeightKey, Packed], sliced: Mapping[Any, Any]) -> None:
        """See Rewriter."""


class Packing(_Weighing):
    """The evaluation that makes the codes of weights, and means nothing else."""

    def __init__(self, plan: ProgramPlan, path: Path, where: _Where) -> None:
        super().__init__(plan, path, where)
        self.made: dict[WeightKey, Packed] = {}

    def inner(self, path: Path, trip: Trip | None = None) -> Any:
        """See Evaluator; what a call makes is made here, and what a loop makes is stacked."""
        inner = super().inner(path, trip)
        inner.made = self.made if trip is None or trip.length is None else {}
        return inner

    def _equation(self, eqn: Any, path: Path, values: list[Any]) -> Sequence[Any]:
        """See Evaluator; what is there for its effects alone (jax.debug.print) does not run."""
        return super()._equation(eqn, path, values) if eqn.outvars else []

    def weigh(self, shared: Shared, x: Any, use: tuple[Path, int]) -> None:
        """Makes the codes, where this use is the first."""
        key = self.where.note(shared, use, self.loops)
        if self.where.owners[key] == use:
            self.made[key] = pack(encode(x, shared[1], None, subnormal=False))

    def made_by(
        self, body: Packing, path: Path, sliced: Mapping[WeightKey, Packed]
    ) -> dict[WeightKey, Packed]:
        """See Rewriter."""
        return body.made

    def gather(self, stacked: Mapping[WeightKey, Packed], sliced: Mapping[Any, Any]) -> None:
        """See Rewriter: what was made in a loop was made in the scope around it."""
        self.made.update(stacked)


class Running(_Weighing):
    """The evaluation of the program with packed weights."""

    def __init__(self, plan: ProgramPlan, path: Path, where: _Where) -> None:
        super().__init__(plan, path, where)
        self.store: dict[WeightKey, Packed] = {}
        self.floats: dict[Shared, Any] = {}

    def inner(self, path: Path, trip: Trip | None = None) -> Any:
        """See Evaluator; what is known outside is known inside, and of a call the other way too."""
        inner = super().inner(path, trip)
        is_call = self.is_open and trip is None
        inner.store, inner.floats = self.store, self.floats if is_call else dict(self.floats)
        return inner

    def weigh(self, shared: Shared, x: Any, use: tuple[Path, int]) -> None:
        """Takes the codes, if there are any."""
        key = self.where.keys.get(use)
        parts = None if key is None else self.store.get(key)
        if parts is None:
            return
        spec = shared[1]
        target = self.plan.settings.target
        quantize = functools.partial(
            quantize_operand, demand=self._demand(spec), key=None, target=target
        )
        like = jax.eval_shape(quantize, jax.ShapeDtypeStruct(x.shape, x.dtype))
        q = unpack(parts, spec, like.values.shape, working_dtype(x.dtype))
        self.codes[shared] = as_held(q, like)
        self.floats[shared] = _undone(dequantize(q), spec, x.shape).astype(x.dtype)

    def in_place_of(self, shared: Shared, x: Any) -> Any:
        """Returns the value of its codes, which only a derivative reads."""
        return self.floats.get(shared, x)

    def sliced(self, path: Path, body: Region) -> dict[WeightKey, Packed]:
        """See Rewriter: the packed weights that are used in the loop."""
        return {k: self.store[k] for k in self.where.reads.get(path, ()) if k in self.store}

    def receive(self, slices: Mapping[WeightKey, Packed]) -> None:
        """See Rewriter: one trip's own weights are there in place of those of all."""
        self.store = {**self.store, **slices}


def _undone(x: jax.Array, spec: Quantization, shape: tuple[int, ...]) -> jax.Array:
    """x, which is as codes are, before a Hadamard transform."""
    if not spec.hadamard:
        return x
    inverse = hadamard.matrix(spec.rotation).T
    back = hadamard.multiplied(x, spec.axes(x.ndim)[-1], inverse)
    return lax.slice(back, [0] * x.ndim, shape)
