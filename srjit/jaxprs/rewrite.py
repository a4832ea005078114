"""Evaluates a jaxpr with its sites quantized and its write-backs rounded.

One rule for each primitive that calls; all else is in ``Frame``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import primitives as jex_primitives

from srjit import _compat
from srjit.jaxprs.figures import FIGURES
from srjit.jaxprs.frame import Frame, Rule, State, Trip, bind, unseen
from srjit.jaxprs.observation import NOTHING, Shown
from srjit.jaxprs.site import site_p
from srjit.numerics.random_bits import Key
from srjit.planning.plan import ProgramPlan
from srjit.planning.planned_site import Shared
from srjit.products.scaled_values import ScaledValues
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
        name: jnp.zeros((*lengths, len(FIGURES), 1), jnp.float32)
        for name, lengths in shown.lengths(plan).items()
    }
    frame = Frame(RULES, plan, key, (), (), histories | none, shown)
    outs = frame.run(jaxpr, consts, args)
    return outs, frame.seen(())


def remembered(history: jax.Array, amax: jax.Array) -> jax.Array:
    """A history with this step's amax in front, if there was one and it was finite."""
    seen = jnp.isfinite(amax) & (amax >= 0)
    longer = jnp.concatenate([amax[..., None], history[..., :-1]], axis=-1)
    return jnp.where(seen[..., None], longer, history)


# ------------------------------------------------------------------------ one rule a primitive


def _scan(frame: Frame, eqn: Any, path: Path, values: list[Any]) -> Sequence[Any]:
    params = _compat.scan_params(eqn)
    jaxpr, consts = _compat.open_jaxpr(eqn.params["jaxpr"])
    n, k = params.num_consts, params.num_carry
    constant, carry, xs = values[:n], values[n : n + k], values[n + k :]
    frame.hoist(path, values, n)
    invariant = frame.entering(path, range(n))
    sliced = frame.entering(path, range(n + k, len(values)), stacked=True)
    leaving: list[Shared] = []

    def body(state: Any, x: Any) -> Any:
        trip, carry = state
        x, codes, histories = x
        inner = frame.inner(path, Trip(trip, params.length))
        inner.histories = histories
        inner.codes = {s: frame.codes[s] for s in invariant} | dict(zip(sliced, codes, strict=True))
        outs = inner.run(jaxpr, consts, [*constant, *carry, *x])
        leaving[:] = [s for s in frame.leaving(inner, path)[0] if s not in sliced + invariant]
        made = [inner.codes[s].alone for s in leaving]
        return (trip + np.uint32(1), tuple(outs[:k])), (tuple(outs[k:]), made, inner.seen(path))

    histories = {name: frame.histories[name] for name in frame.states(path)}
    (_, carry), (ys, made, seen) = lax.scan(
        body,
        (jnp.uint32(0), tuple(carry)),
        (tuple(xs), [frame.stacked[s] for s in sliced], histories),
        length=params.length,
        reverse=params.reverse,
        unroll=params.unroll,
    )
    frame.stacked.update(zip(leaving, made, strict=True))
    frame.observe(seen)
    return [*carry, *ys]


def _while(frame: Frame, eqn: Any, path: Path, values: list[Any]) -> Sequence[Any]:
    c, b = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    cond_jaxpr, cond_consts = _compat.open_jaxpr(eqn.params["cond_jaxpr"])
    jaxpr, consts = _compat.open_jaxpr(eqn.params["body_jaxpr"])
    for_cond, constant, carry = values[:c], values[c : c + b], values[c + b :]
    body_path = (*path, "body")
    frame.hoist(body_path, constant, b)
    invariant = frame.entering(body_path, range(b))

    def cond(state: Any) -> Any:
        inner = frame.inner((*path, "cond"), Trip(state[0], None))
        return inner.run(cond_jaxpr, cond_consts, [*for_cond, *state[1]])[0]

    def body(state: Any) -> Any:
        trip, carry, before = state
        inner = frame.inner(body_path, Trip(trip, None))
        inner.codes = {s: frame.codes[s] for s in invariant}
        outs = tuple(inner.run(jaxpr, consts, [*constant, *carry]))
        # A loop of unknown length has one history for all its iterations.
        return trip + np.uint32(1), outs, jax.tree.map(jnp.maximum, before, inner.seen(body_path))

    none = {name: unseen(frame.histories[name]) for name in frame.states(body_path)}
    _, outs, seen = lax.while_loop(cond, body, (jnp.uint32(0), tuple(carry), none))
    frame.observe(seen)
    return list(outs)


def _cond(frame: Frame, eqn: Any, path: Path, values: list[Any]) -> Sequence[Any]:
    index, *operands = values

    def branch(i: int, closed: Any) -> Callable[..., Any]:
        jaxpr, consts = _compat.open_jaxpr(closed)

        def run(*args: Any) -> Any:
            inner = frame.inner((*path, i))
            inside = frame.entering((*path, i), range(len(args)))
            inner.codes = {s: frame.codes[s] for s in inside}
            outs = inner.run(jaxpr, consts, args)
            return outs, inner.seen(path)

        return run

    branches = [branch(i, b) for i, b in enumerate(eqn.params["branches"])]
    outs, seen = lax.switch(index, branches, *operands)
    frame.observe(seen)
    return outs


def _call(frame: Frame, eqn: Any, path: Path, values: list[Any]) -> Sequence[Any]:
    """Calls without meaning of their own are evaluated in place."""
    jaxpr, consts = _compat.open_jaxpr(_compat.called_jaxpr(eqn))
    inner = frame.inner(path)
    inner.codes = {s: frame.codes[s] for s in frame.entering(path, range(len(values)))}
    inner.stacked = dict(frame.stacked)
    outs = inner.run(jaxpr, consts, values)
    _hand_out(frame, inner, path)
    frame.observe(inner.observed)
    return outs


def _hand_out(frame: Frame, inner: Frame, path: Path) -> None:
    plain, stacked = frame.leaving(inner, path)
    frame.codes.update({s: inner.codes[s] for s in plain})
    frame.stacked.update({s: inner.stacked[s] for s in stacked})


def _scope_function(
    frame: Frame, eqn: Any, path: Path, values: list[Any]
) -> tuple[Callable[..., Any], list[ScaledValues], list[tuple[bool, Shared]]]:
    """A called jaxpr as a function of (codes that enter, values); and what enters and leaves.

    The function returns (outputs, (codes that leave, what delayed scales saw)); the list of what
    leaves is filled by tracing.
    """
    jaxpr, consts = _compat.open_jaxpr(_compat.called_jaxpr(eqn))
    plain = frame.entering(path, range(len(values)))
    stacked = frame.entering(path, range(len(values)), stacked=True)
    leaving: list[tuple[bool, Shared]] = []

    def run(codes: list[ScaledValues], *args: Any) -> Any:
        inner = frame.inner(path)
        inner.codes = dict(zip(plain, codes, strict=False))
        inner.stacked = dict(zip(stacked, codes[len(plain) :], strict=True))
        outs = inner.run(jaxpr, consts, args)
        made = frame.leaving(inner, path)
        leaving[:] = [(False, s) for s in made[0]] + [(True, s) for s in made[1]]
        codes = [(inner.stacked if is_stack else inner.codes)[s].alone for is_stack, s in leaving]
        return outs, (codes, inner.seen(path))

    entering = [frame.codes[s].alone for s in plain] + [frame.stacked[s] for s in stacked]
    return run, entering, leaving


def _receive(frame: Frame, leaving: list[tuple[bool, Shared]], made: Any) -> None:
    codes, seen = made
    frame.observe(seen)
    for (is_stack, shared), q in zip(leaving, codes, strict=True):
        (frame.stacked if is_stack else frame.codes)[shared] = q


def _jit(frame: Frame, eqn: Any, path: Path, values: list[Any]) -> Sequence[Any]:
    run, entering, leaving = _scope_function(frame, eqn, path, values)
    outs, made = _compat.bind_call(eqn, run, entering, values)
    _receive(frame, leaving, made)
    return outs


def _remat(frame: Frame, eqn: Any, path: Path, values: list[Any]) -> Sequence[Any]:
    run, entering, leaving = _scope_function(frame, eqn, path, values)
    policy = eqn.params["policy"]
    outs, made = _compat.bind_call(
        eqn, run, entering, values, policy=policy and _policy_for_sites(policy)
    )
    _receive(frame, leaving, made)
    return outs


def _policy_for_sites(policy: Callable[..., Any]) -> Callable[..., Any]:
    """A checkpoint policy that sees the products which sites stand for."""

    def decide(primitive: Any, *avals: Any, **params: Any) -> Any:
        if primitive is site_p:
            product, product_params = params["site"].product.equation()
            return policy(product, *avals[:2], **product_params)
        return policy(primitive, *avals, **params)

    return decide


def _shard_map(frame: Frame, eqn: Any, path: Path, values: list[Any]) -> Sequence[Any]:
    jaxpr, consts = _compat.open_jaxpr(eqn.params["jaxpr"])
    root, trips = frame.root, frame.trips
    manual = () if eqn.params["check_vma"] else tuple(sorted(eqn.params["newly_manual_axes"]))

    def run(scalars: Any, *args: Any) -> Any:
        key, numbers, histories = scalars
        inside = tuple(
            dataclasses.replace(t, number=n) for t, n in zip(trips, numbers, strict=True)
        )
        inner = Frame(frame.rules, frame.plan, key, path, inside, histories, frame.shown)
        outs = inner.run(jaxpr, consts, args)
        return outs, {name: _largest(x, manual) for name, x in inner.seen(path).items()}

    histories = {name: frame.histories[name] for name in frame.states(path)}
    scalars = (root, [t.number for t in trips], histories)
    outs, seen = _compat.bind_shard_map(eqn, run, scalars, values)
    frame.observe(seen)
    return outs


def _largest(amax: jax.Array, manual: tuple[str, ...]) -> jax.Array:
    """The largest of all shards: along the axes that its type tells, or along all of them."""
    axes = _compat.varying_axes(amax) or manual
    return lax.pmax(amax, axes) if axes else amax


def _custom_jvp(frame: Frame, eqn: Any, path: Path, values: list[Any]) -> Sequence[Any]:
    """The user's rule keeps differentiating: the value is quantized, tangents are not."""

    @jax.custom_jvp
    def run(*args: Any) -> Any:
        jaxpr, consts = _compat.open_jaxpr(_compat.called_jaxpr(eqn))
        return frame.inner(path).run(jaxpr, consts, args)

    @run.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        _, out = jax.jvp(lambda *args: list(bind(eqn, args)), primals, tangents)
        return run(*primals), out

    return run(*values)


def _custom_vjp(frame: Frame, eqn: Any, path: Path, values: list[Any]) -> Sequence[Any]:
    """The user's rule keeps differentiating: the value is quantized, cotangents are not."""

    @jax.custom_vjp
    def run(*args: Any) -> Any:
        jaxpr, consts = _compat.open_jaxpr(_compat.called_jaxpr(eqn))
        return frame.inner(path).run(jaxpr, consts, args)

    def forward(*args: Any) -> Any:
        _, pullback = jax.vjp(lambda *a: list(bind(eqn, a)), *args)
        return run(*args), pullback

    run.defvjp(forward, lambda pullback, cts: pullback(cts))
    return run(*values)


RULES: dict[Any, Rule] = {
    jex_primitives.scan_p: _scan,
    jex_primitives.while_p: _while,
    jex_primitives.cond_p: _cond,
    jex_primitives.jit_p: _jit,
    jex_primitives.remat_p: _remat,
    jex_primitives.closed_call_p: _call,
    jex_primitives.custom_jvp_call_p: _custom_jvp,
    jex_primitives.custom_vjp_call_p: _custom_vjp,
    _compat.shard_map_p: _shard_map,
}
