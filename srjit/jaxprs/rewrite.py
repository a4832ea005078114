"""Evaluates a jaxpr with its sites quantized and its write-backs rounded.

Calls, loops and branches are evaluated by the kind of their control flow; ``Evaluator`` does all
else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srjit import _compat
from srjit.jaxprs.equations import bind
from srjit.jaxprs.evaluator import Evaluator, Kept, State, Trip, alone, unseen
from srjit.jaxprs.figures import FIGURES
from srjit.jaxprs.observation import NOTHING, Shown
from srjit.jaxprs.site import site_p
from srjit.numerics.random_bits import Key
from srjit.numerics.scaling import UNSEEN
from srjit.planning.plan import ProgramPlan
from srjit.planning.planned_site import Amax
from srjit.program.control_flow import ControlFlow, Region
from srjit.program.protocols import Equation
from srjit.program.values import Path


def evaluate(
    closed: Any,
    plan: ProgramPlan,
    key: Key | None,
    args: Sequence[Any],
    histories: State,
    shown: Shown = NOTHING,
) -> tuple[list[Any], State]:
    """The outputs of a closed jaxpr with its planned sites quantized, and what was seen of them.

    Args:
      closed: the program.
      plan: made from the same jaxpr.
      key: two uint32 words; None if nothing draws noise.
      args: flat inputs.
      histories: for every delayed scale, the amax of earlier steps.
      shown: what is shown of the evaluation.

    Returns:
      The outputs; and the amax of every delayed scale and what was measured of every watched
      operand, by name: ``UNSEEN`` where nothing was quantized.
    """
    jaxpr, consts = _compat.open_jaxpr(closed)
    # What is watched leaves loops and branches as what delayed scales see does.
    none = {
        name: jnp.zeros((*site.lengths, len(FIGURES), 1), jnp.float32)
        for name, site in shown.sites.items()
    }
    whole = Rewriter(plan, key, (), (), histories | none, shown)
    outs = whole.run(jaxpr, consts, args)
    return outs, whole.seen(())


def remembered(history: jax.Array, amax: jax.Array) -> jax.Array:
    """A history with this step's amax in front, if there was one and it was finite."""
    seen = jnp.isfinite(amax) & (amax >= 0)
    longer = jnp.concatenate([amax[..., None], history[..., :-1]], axis=-1)
    return jnp.where(seen[..., None], longer, history)


# ------------------------------------------------------------------- scopes with control flow


class Rewriter(Evaluator):
    """A scope that evaluates the control flow in which sites or write-backs stand.

    Attributes:
      in_place: whether calls are evaluated where they are, whatever else they mean.
    """

    in_place: ClassVar[bool] = False

    def _flow(self, eqn: Equation, flow: ControlFlow, path: Path, values: list[Any]) -> list[Any]:
        outer = self.before(flow, path, values)
        evaluate = _KINDS[flow.kind if self.in_place else flow.means or flow.kind]
        return list(evaluate(outer, eqn, flow, path, values))

    def before(self, flow: ControlFlow, path: Path, values: Sequence[Any]) -> Rewriter:
        """The scope that the regions of an equation are evaluated from."""
        if flow.trips:
            begun = flow.body.given(values, "carried", "slice")
            self.hoist((*path, *flow.body.step), invariants(flow.body, values), begun)
        return self

    # Of a loop of known length: all that it slices and stacks beside the program's own values.
    # Codes are by what they are of, histories and what delayed scales saw by name.

    def sliced(self, path: Path, body: Region) -> dict[Any, Any]:
        """Codes and histories that the loop slices: of one over layers, and figures."""
        sharing = self.plan.sharing
        codes = [
            kept
            for kept in self.entering(path, body.inputs_by("slice"), stacked=True)
            if not isinstance(kept, Amax) or sharing.has_one_a_trip(kept, path)
        ]
        names = self.states(path) if self.plan.goes_over_layers(path) else self.shown.inside(path)
        histories = {name: self.histories[name] for name in names}
        return {s: self.stacked[s] for s in codes} | histories

    def receive(self, slices: Mapping[Any, Any]) -> None:
        """Takes one trip's slices, in the scope of the body."""
        self.histories = self.histories | {k: v for k, v in slices.items() if isinstance(k, str)}
        self.codes |= {k: v for k, v in slices.items() if not isinstance(k, str)}

    def made_by(self, body: Evaluator, path: Path, sliced: Mapping[Any, Any]) -> dict[Any, Any]:
        """Codes and amaxes of one trip that the loop stacks."""
        codes = [s for s in self.leaving(body, path)[0] if s not in sliced]
        return {s: alone(body.codes[s]) for s in codes} | body.seen(path)

    def gather(self, stacked: Mapping[Any, Any], sliced: Mapping[Any, Any]) -> None:
        """Takes what was stacked; of histories that were not ``sliced``, the largest of all."""
        self.observe(
            {
                k: v if k in sliced else jnp.max(v, axis=0, initial=UNSEEN)
                for k, v in stacked.items()
                if isinstance(k, str)
            }
        )
        self.stacked |= {k: v for k, v in stacked.items() if not isinstance(k, str)}


def invariants(body: Region, values: Sequence[Any]) -> dict[int, Any]:
    """The inputs of a region that are operands as they are, by position."""
    return {i: values[body.inputs[i].operand] for i in body.inputs_by("same")}


# --------------------------------------------------------------------- one evaluator a kind of flow


def _loop(
    outer: Rewriter, eqn: Equation, flow: ControlFlow, path: Path, values: list[Any]
) -> Sequence[Any]:
    assert flow.trips is not None
    evaluate = _uncounted if flow.trips.length is None else _counted
    return evaluate(outer, eqn, flow, path, values)


def _counted(
    outer: Rewriter, eqn: Equation, flow: ControlFlow, path: Path, values: list[Any]
) -> Sequence[Any]:
    body, trips = flow.body, flow.trips
    assert trips is not None and trips.length is not None
    invariant = outer.entering(path, body.inputs_by("same"))
    sliced = outer.sliced(path, body)
    made: list[Any] = []

    def step(state: Any, x: Any) -> Any:
        trip, carry = state
        slices, beside = x
        inner = outer.inner(path, Trip(trip, trips.length))
        inner.codes = {s: outer.codes[s] for s in invariant}
        inner.receive(dict(zip(sliced, beside, strict=True)))
        given = body.arranged(body.given(values, "same"), carry, slices)
        outs = inner.run(body.program, body.consts, given)
        stacked = outer.made_by(inner, path, sliced)
        made[:] = stacked
        carry, ys = ([outs[i] for i in body.outputs_by(way)] for way in ("carried", "stack"))
        return (trip + np.uint32(1), carry), (ys, list(stacked.values()))

    (_, carry), (ys, stacked) = lax.scan(
        step,
        (jnp.uint32(0), body.given(values, "carried")),
        (body.given(values, "slice"), list(sliced.values())),
        length=trips.length,
        reverse=trips.reverse,
        unroll=trips.unroll,
    )
    outer.gather(dict(zip(made, stacked, strict=True)), sliced)
    return body.results(carry, ys)


def _uncounted(
    outer: Rewriter, eqn: Equation, flow: ControlFlow, path: Path, values: list[Any]
) -> Sequence[Any]:
    test, body = flow.regions
    body_path = (*path, *body.step)
    invariant = outer.entering(body_path, body.inputs_by("same"))

    def condition(state: Any) -> Any:
        inner = outer.inner((*path, *test.step), Trip(state[0], None))
        given = test.arranged(test.given(values, "same"), state[1])
        return inner.run(test.program, test.consts, given)[0]

    def step(state: Any) -> Any:
        trip, carry, before = state
        inner = outer.inner(body_path, Trip(trip, None))
        inner.codes = {s: outer.codes[s] for s in invariant}
        given = body.arranged(body.given(values, "same"), carry)
        outs = inner.run(body.program, body.consts, given)
        # A loop of unknown length has one history for all its iterations.
        return trip + np.uint32(1), outs, jax.tree.map(jnp.maximum, before, inner.seen(body_path))

    none = {name: unseen(outer.histories[name]) for name in outer.states(body_path)}
    start = jnp.uint32(0), body.given(values, "carried"), none
    _, outs, seen = lax.while_loop(condition, step, start)
    outer.observe(seen)
    return body.results(outs)


def _branches(
    outer: Rewriter, eqn: Equation, flow: ControlFlow, path: Path, values: list[Any]
) -> Sequence[Any]:
    def branch(region: Region) -> Callable[..., Any]:
        where = (*path, *region.step)

        def run(*args: Any) -> Any:
            inner = outer.inner(where)
            inside = outer.entering(where, range(len(region.inputs)))
            inner.codes = {s: outer.codes[s] for s in inside}
            given = region.given(dict(zip(read, args, strict=True)))
            outs = inner.run(region.program, region.consts, given)
            return region.results(outs), inner.seen(path)

        return run

    assert flow.selector is not None
    read = sorted({i.operand for region in flow.regions for i in region.inputs})
    branches = [branch(region) for region in flow.regions]
    outs, seen = lax.switch(values[flow.selector], branches, *(values[i] for i in read))
    outer.observe(seen)
    return outs


def _shards(
    outer: Rewriter, eqn: Equation, flow: ControlFlow, path: Path, values: list[Any]
) -> Sequence[Any]:
    body, shards, trips = flow.body, flow.shards, outer.trips
    assert shards is not None
    manual = () if shards.is_typed else tuple(sorted(shards.manual))

    def run(scalars: Any, *args: Any) -> Any:
        key, numbers, histories = scalars
        inside = tuple(
            dataclasses.replace(t, number=n) for t, n in zip(trips, numbers, strict=True)
        )
        inner = Rewriter(outer.plan, key, path, inside, histories, outer.shown)
        outs = inner.run(body.program, body.consts, args)
        return outs, {name: _largest(x, manual) for name, x in inner.seen(path).items()}

    histories = {name: outer.histories[name] for name in outer.states(path)}
    scalars = (outer.root, [t.number for t in trips], histories)
    replicated = jax.sharding.PartitionSpec()  # the scalars are, and so is what was seen
    mapped = jax.shard_map(
        run,
        mesh=eqn.params["mesh"],
        in_specs=(replicated, *eqn.params["in_specs"]),
        out_specs=(list(eqn.params["out_specs"]), replicated),
        axis_names=frozenset(eqn.params["newly_manual_axes"]),
        check_vma=eqn.params["check_vma"],
    )
    outs, seen = mapped(scalars, *values)
    outer.observe(seen)
    return outs


def _largest(amax: jax.Array, manual: tuple[str, ...]) -> jax.Array:
    """The largest of all shards: along the axes that its type tells, or along all of them."""
    axes = _compat.varying_axes(amax) or manual
    return lax.pmax(amax, axes) if axes else amax


def _call(
    outer: Rewriter, eqn: Equation, flow: ControlFlow, path: Path, values: list[Any]
) -> Sequence[Any]:
    """Evaluates a call in place: it has no meaning of its own."""
    body, inner = flow.body, outer.inner(path)
    inner.codes = {s: outer.codes[s] for s in outer.entering(path, range(len(body.inputs)))}
    inner.stacked = dict(outer.stacked)
    outs = inner.run(body.program, body.consts, body.given(values))
    plain, stacked = outer.leaving(inner, path)
    outer.codes.update({s: inner.codes[s] for s in plain})
    outer.stacked.update({s: inner.stacked[s] for s in stacked})
    outer.observe(inner.observed)
    return body.results(outs)


# ------------------------------------------------------------- calls that mean more than their body


def _bound_anew(
    outer: Rewriter, eqn: Equation, flow: ControlFlow, path: Path, values: list[Any]
) -> Sequence[Any]:
    """Calls what was called, with codes that enter and leave it beside its values."""
    body = flow.body
    # What enters a checkpoint that is not differentiated yet is kept for its backward pass.
    is_kept = "policy" in eqn.params and outer.plan.is_differentiable
    plain = [] if is_kept else outer.entering(path, range(len(body.inputs)))
    stacked = outer.entering(path, body.inputs_by("same"), stacked=True)
    leaving: list[tuple[bool, Kept]] = []

    def run(codes: list[Any], *args: Any) -> Any:
        inner = outer.inner(path)
        inner.codes = dict(zip(plain, codes, strict=False))
        inner.stacked = dict(zip(stacked, codes[len(plain) :], strict=True))
        outs = inner.run(body.program, body.consts, args)
        made = outer.leaving(inner, path)
        leaving[:] = [(False, s) for s in made[0]] + [(True, s) for s in made[1]]
        codes = [alone((inner.stacked if is_stack else inner.codes)[s]) for is_stack, s in leaving]
        return outs, (codes, inner.seen(path))

    entering = [alone(outer.codes[s]) for s in plain] + [outer.stacked[s] for s in stacked]
    policy = eqn.params.get("policy")
    changed = {"policy": _policy_for_sites(policy)} if policy else {}
    outs, (codes, seen) = _compat.bind_call(eqn, run, entering, values, **changed)
    outer.observe(seen)
    for (is_stack, shared), q in zip(leaving, codes, strict=True):
        (outer.stacked if is_stack else outer.codes)[shared] = q
    return outs


def _policy_for_sites(policy: Callable[..., Any]) -> Callable[..., Any]:
    """A checkpoint policy that sees the products which sites stand for."""

    def decide(primitive: Any, *avals: Any, **params: Any) -> Any:
        if primitive is site_p:
            product, product_params = params["site"].product.equation()
            return policy(product, *avals[:2], **product_params)
        return policy(primitive, *avals, **params)

    return decide


def _custom_jvp(
    outer: Rewriter, eqn: Equation, flow: ControlFlow, path: Path, values: list[Any]
) -> Sequence[Any]:
    """The user's rule keeps differentiating: the value is quantized, tangents are not."""

    @jax.custom_jvp
    def run(*args: Any) -> Any:
        return outer.inner(path).run(flow.body.program, flow.body.consts, args)

    @run.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        _, out = jax.jvp(lambda *args: list(bind(eqn, args)), primals, tangents)
        return run(*primals), out

    return run(*values)


def _custom_vjp(
    outer: Rewriter, eqn: Equation, flow: ControlFlow, path: Path, values: list[Any]
) -> Sequence[Any]:
    """The user's rule keeps differentiating: the value is quantized, cotangents are not."""

    @jax.custom_vjp
    def run(*args: Any) -> Any:
        return outer.inner(path).run(flow.body.program, flow.body.consts, args)

    def forward(*args: Any) -> Any:
        _, pullback = jax.vjp(lambda *a: list(bind(eqn, a)), *args)
        return run(*args), pullback

    run.defvjp(forward, lambda pullback, cts: pullback(cts))
    return run(*values)


_KINDS = {
    "loop": _loop,
    "branches": _branches,
    "shards": _shards,
    "call": _call,
    "jit": _bound_anew,
    "jvp": _custom_jvp,
    "vjp": _custom_vjp,
}
