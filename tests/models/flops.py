"""Counts the matrix multiplications of a jaxpr, and tells their roles, without importing srjit.

Two independent instruments:

- ``matmuls(fun, *args)`` walks the traced program through every control flow and lists each
  matrix multiplication with its FLOPs and the number of times that it runs.
- ``oracle(loss, argnums, *args)`` says what roles the sites of a training step must have. It never
  looks at a backward pass to guess: it rewrites the *forward* program, so that each product
  announces its own two gradients while JAX differentiates it. Which of the two is the gradient
  of a weight is a property of the forward program: the operand that was computed from parameters
  alone.

FLOPs are counted as written: a strided convolution's gradient, which JAX writes as a convolution
over a dilated input, counts the zeros too. The branches of a ``cond`` count once each; a ``while``
loop, whose trips nobody knows, counts once.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.interpreters import partial_eval

ROLES = FPROP, DGRAD, WGRAD = "fprop", "dgrad", "wgrad"
_TAG = "oracle_"


@dataclasses.dataclass(frozen=True)
class Matmul:
    """One matrix multiplication: what it is, what one execution costs, how often it runs.

    The oracle adds its role, and whether a weight takes part: it does not in the products of
    attention, of two activations, nor in their gradients.
    """

    op: str
    lhs_shape: tuple[int, ...]
    rhs_shape: tuple[int, ...]
    flops: int
    trips: int
    role: str = ""
    weighted: bool = False

    @property
    def total(self) -> int:
        """FLOPs over all executions."""
        return self.flops * self.trips


# ---------------------------------------------------------------------------------------------
# The FLOPs of one operation


def _dot_flops(out: Any, lhs: Any, rhs: Any, params: dict[str, Any]) -> int:
    """2·(elements of the result)·(length of each sum)."""
    contracting = params["dimension_numbers"][0][0]
    return 2 * math.prod(out.shape) * math.prod(lhs.shape[d] for d in contracting)


def _conv_flops(out: Any, lhs: Any, rhs: Any, params: dict[str, Any]) -> int:
    """2·(elements of the result)·(window)·(input features that one output feature sees)."""
    out_features = rhs.shape[params["dimension_numbers"].rhs_spec[0]]
    return 2 * math.prod(out.shape) * math.prod(rhs.shape) // out_features


def _ragged_flops(out: Any, lhs: Any, rhs: Any, params: dict[str, Any]) -> int:
    """As if the groups filled all rows: each row meets the matrix of one group."""
    numbers = params["ragged_dot_dimension_numbers"]
    (contracting, _), _ = numbers.dot_dimension_numbers
    flops = 2 * math.prod(out.shape) * math.prod(lhs.shape[d] for d in contracting)
    if set(numbers.lhs_ragged_dimensions) <= set(contracting):
        return flops // out.shape[0]  # the groups share the contracted rows between them
    return flops


_FLOPS: dict[str, Callable[..., int]] = {
    "dot_general": _dot_flops,
    "conv_general_dilated": _conv_flops,
    "ragged_dot_general": _ragged_flops,
}


# ---------------------------------------------------------------------------------------------
# Walking a program


def _open(jaxpr: Any) -> Any:
    """The open jaxpr of an open or a closed one."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _inner(eqn: Any) -> Iterator[tuple[Any, int]]:
    """The programs inside an equation, each with how often one execution runs it."""
    name, params = eqn.primitive.name, eqn.params
    if name == "pallas_call":
        return
    trips = params["length"] if name == "scan" else 1
    for value in params.values():
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, core.Jaxpr | core.ClosedJaxpr):
                yield _open(item), trips


def _tag(stack: str) -> tuple[str, bool]:
    """The innermost of our own tags in a name stack: the role, and whether there is a weight."""
    tags = [part.split(_TAG)[1] for part in stack.replace(")", "/").split("/") if _TAG in part]
    role, _, weight = tags[-1].partition("+") if tags else ("", "", "")
    return role, bool(weight)


def _walk(jaxpr: Any, trips: int, stack: str) -> Iterator[Matmul]:
    """Every matrix multiplication in execution order; a loop's body once."""
    for eqn in jaxpr.eqns:
        here = f"{stack}/{eqn.source_info.name_stack}"
        flops = _FLOPS.get(eqn.primitive.name)
        if flops is not None:
            out, lhs, rhs = eqn.outvars[0].aval, eqn.invars[0].aval, eqn.invars[1].aval
            role, weighted = _tag(here)
            yield Matmul(
                op=eqn.primitive.name,
                lhs_shape=tuple(lhs.shape),
                rhs_shape=tuple(rhs.shape),
                flops=flops(out, lhs, rhs, eqn.params),
                trips=trips,
                role=role,
                weighted=weighted,
            )
        for body, repeat in _inner(eqn):
            yield from _walk(body, trips * repeat, here)


def _live(closed: Any) -> Any:
    """The program without dead code."""
    jaxpr = _open(closed)
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def matmuls(fun: Callable[..., Any], *args: Any) -> list[Matmul]:
    """Every live matrix multiplication of ``fun(*args)``."""
    return list(_walk(_live(jax.make_jaxpr(fun)(*args)), 1, ""))


def total(sites: Sequence[Matmul]) -> int:
    """FLOPs of all sites over all their executions."""
    return sum(site.total for site in sites)


def by_role(sites: Sequence[Matmul]) -> dict[str, int]:
    """FLOPs of each role."""
    sums: dict[str, int] = {}
    for site in sites:
        sums[site.role] = sums.get(site.role, 0) + site.total
    return sums


def counted(sites: Sequence[Matmul], *, roles: bool) -> collections.Counter[tuple[Any, ...]]:
    """The sites as a multiset of (role, operation, FLOPs, trips)."""
    return collections.Counter(
        (site.role if roles else "", site.op, site.flops, site.trips) for site in sites
    )


# ---------------------------------------------------------------------------------------------
# The oracle: where does an operand come from?

# In rising order; what is computed from several is the largest of them.
CONSTANT, PARAMETER, DATA = 0, 1, 2


def _scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many constants and how many carried values a scan has, in old and new JAX."""
    if "ft_in" in params:
        consts, carry, _ = params["ft_in"].unpack()
        return len(list(consts)), len(list(carry))
    return params["num_consts"], params["num_carry"]


def _label_scan(eqn: Any, labels: list[int]) -> list[int]:
    consts, carry = _scan_counts(eqn.params)
    body = _open(eqn.params["jaxpr"])
    while True:
        outs = _label(body, labels)
        grown = [max(a, b) for a, b in zip(labels[consts : consts + carry], outs, strict=False)]
        if grown == labels[consts : consts + carry]:
            return outs
        labels = labels[:consts] + grown + labels[consts + carry :]


def _label_while(eqn: Any, labels: list[int]) -> list[int]:
    skip, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    fixed, carry = labels[skip : skip + consts], labels[skip + consts :]
    body = _open(eqn.params["body_jaxpr"])
    while True:
        grown = [max(a, b) for a, b in zip(carry, _label(body, fixed + carry), strict=True)]
        if grown == carry:
            return carry
        carry = grown


def _label_eqn(eqn: Any, labels: list[int]) -> list[int]:
    """The labels of an equation's results."""
    name = eqn.primitive.name
    if name == "scan":
        return _label_scan(eqn, labels)
    if name == "while":
        return _label_while(eqn, labels)
    if name == "cond":
        branches = [_label(_open(b), labels[1:]) for b in eqn.params["branches"]]
        return [max(labels[0], *each) for each in zip(*branches, strict=True)]
    body = _called(eqn)
    if body is not None:
        return _label(_open(body), labels)
    return [max(labels, default=CONSTANT)] * len(eqn.outvars)


def _label(jaxpr: Any, labels: Sequence[int]) -> list[int]:
    """The labels of a program's results, given those of its arguments."""
    env = dict(zip(jaxpr.invars, labels, strict=True))

    def read(atom: Any) -> int:
        return CONSTANT if isinstance(atom, core.Literal) else env.get(atom, CONSTANT)

    for eqn in jaxpr.eqns:
        outs = _label_eqn(eqn, [read(v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


# ---------------------------------------------------------------------------------------------
# The oracle: the forward program again, with products that announce their gradients

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def _called(eqn: Any) -> Any:
    """The program that a call-like equation calls, or None."""
    key = _CALLS.get(eqn.primitive.name)
    return None if key is None else eqn.params[key]


def _announcing(eqn: Any, weights: tuple[bool, bool]) -> Callable[..., Any]:
    """The product of an equation, whose gradients carry the name of their role."""

    def product(lhs: Any, rhs: Any, *rest: Any) -> Any:
        return eqn.primitive.bind(lhs, rhs, *rest, **eqn.params)

    def scope(role: str) -> Any:
        return jax.named_scope(_TAG + role + ("+weight" if any(weights) else ""))

    @jax.custom_vjp
    def announced(lhs: Any, rhs: Any, *rest: Any) -> Any:
        with scope(FPROP):
            return product(lhs, rhs, *rest)

    def forward(lhs: Any, rhs: Any, *rest: Any) -> Any:
        return announced(lhs, rhs, *rest), (lhs, rhs, rest)

    def backward(saved: Any, cotangent: Any) -> Any:
        lhs, rhs, rest = saved
        roles = [WGRAD if weight else DGRAD for weight in weights]
        with scope(roles[0]):
            (grad_lhs,) = jax.linear_transpose(lambda x: product(x, rhs, *rest), lhs)(cotangent)
        with scope(roles[1]):
            (grad_rhs,) = jax.linear_transpose(lambda x: product(lhs, x, *rest), rhs)(cotangent)
        nothing = [np.zeros(np.shape(x), jax.dtypes.float0) for x in rest]
        return grad_lhs, grad_rhs, *nothing

    announced.defvjp(forward, backward)
    return announced


def _run_scan(eqn: Any, values: list[Any], labels: list[int]) -> list[Any]:
    params, body = eqn.params, eqn.params["jaxpr"]
    consts, carry = _scan_counts(params)
    outs = _label_scan(eqn, labels)
    stable = [max(a, b) for a, b in zip(labels[consts : consts + carry], outs, strict=False)]
    labels = labels[:consts] + stable + labels[consts + carry :]

    def step(state: list[Any], xs: list[Any]) -> Any:
        results = _run(body, [*values[:consts], *state, *xs], labels)
        return results[:carry], results[carry:]

    state, ys = lax.scan(
        step,
        values[consts : consts + carry],
        values[consts + carry :],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*state, *ys]


def _run_while(eqn: Any, values: list[Any], labels: list[int]) -> list[Any]:
    params = eqn.params
    skip, consts = params["cond_nconsts"], params["body_nconsts"]
    fixed = labels[skip : skip + consts] + _label_while(eqn, labels)
    test, body = params["cond_jaxpr"], params["body_jaxpr"]
    unlabelled = [DATA] * len(_open(test).invars)
    return lax.while_loop(
        lambda state: _run(test, [*values[:skip], *state], unlabelled)[0],
        lambda state: _run(body, [*values[skip : skip + consts], *state], fixed),
        values[skip + consts :],
    )


def _run_eqn(eqn: Any, values: list[Any], labels: list[int]) -> list[Any]:
    """Evaluates one equation, its products replaced by announcing ones."""
    name, params = eqn.primitive.name, eqn.params
    if name in _FLOPS and jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating):
        weights = (labels[0] == PARAMETER, labels[1] == PARAMETER)
        return [_announcing(eqn, weights)(*values)]
    if name == "scan":
        return _run_scan(eqn, values, labels)
    if name == "while":
        return _run_while(eqn, values, labels)
    if name == "cond":
        branches = [
            lambda *ops, branch=branch: _run(branch, ops, labels[1:])
            for branch in params["branches"]
        ]
        return lax.switch(values[0], branches, *values[1:])
    body = _called(eqn)
    if body is None:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(params))
        return list(out) if eqn.primitive.multiple_results else [out]
    if name == "custom_vjp_call" and any(True for _ in _walk(_open(body), 1, "")):
        raise NotImplementedError("a custom_vjp writes its own products: they have no oracle")
    if "policy" in params:
        again = jax.checkpoint(
            lambda *ops: _run(body, ops, labels),
            prevent_cse=params["prevent_cse"],
            policy=params["policy"],
        )
        return again(*values)
    return _run(body, values, labels)


def _run(jaxpr: Any, values: Sequence[Any], labels: Sequence[int]) -> list[Any]:
    """Evaluates a program, open or closed; both the values and where they come from flow."""
    body = _open(jaxpr)
    env: dict[Any, tuple[Any, int]] = {}
    consts = [(const, CONSTANT) for const in getattr(jaxpr, "consts", ())]
    env.update(zip(body.constvars, consts, strict=True))
    env.update(zip(body.invars, zip(values, labels, strict=True), strict=True))

    def read(atom: Any) -> tuple[Any, int]:
        return (atom.val, CONSTANT) if isinstance(atom, core.Literal) else env[atom]

    for eqn in body.eqns:
        pairs = [read(v) for v in eqn.invars]
        ins, sources = [p[0] for p in pairs], [p[1] for p in pairs]
        outs = _run_eqn(eqn, ins, sources)
        env.update(zip(eqn.outvars, zip(outs, _label_eqn(eqn, sources), strict=True), strict=True))
    return [read(v)[0] for v in body.outvars]


def oracle(
    loss: Callable[..., Any],
    args: Sequence[Any],
    *,
    trained: int | Sequence[int] = 0,
    frozen: Sequence[int] = (),
) -> list[Matmul]:
    """Every matrix multiplication that a training step on ``loss(*args)`` does, with its role.

    ``trained`` are the arguments that are differentiated and count as parameters, ``frozen`` those
    that count as parameters only. ``loss`` may return ``(loss, aux)``.
    """
    trained = (trained,) if isinstance(trained, int) else tuple(trained)
    closed = jax.make_jaxpr(lambda *a: jax.tree.leaves(loss(*a)))(*args)
    labels: list[int] = []
    for number, arg in enumerate(args):
        label = PARAMETER if number in (*trained, *frozen) else DATA
        labels += [label] * len(jax.tree.leaves(arg))

    def announced(*args: Any) -> Any:
        value, *aux = _run(closed, jax.tree.leaves(args), labels)
        return value, aux

    return matmuls(jax.value_and_grad(announced, trained, has_aux=True), *args)
