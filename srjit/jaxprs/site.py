"""A quantized product as a differentiable JAX operation, by two primitives.

    site : (x, w, codes of both, key) -> product of the codes          its jvp binds
    lin  : (tx, tw, the same)         -> tx . w + x . tw, linear       its transpose binds
    site : with the quantized cotangent and the codes that were saved, for dgrad and wgrad

Residuals are the codes; the float operands beside them are read by forward-mode tangents only (and
by a backward product whose quantization is another than the forward's), so XLA drops them. Of what
is in memory anyway, as weights are, no codes are kept: the transpose makes them again.
Derivatives of a backward product are straight-through, in high precision.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir

from srjit import _compat, _stack
from srjit.numerics.groups import Groups
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key, mix
from srjit.numerics.shards import of_typed_shards
from srjit.planning import planned_site
from srjit.planning.planned_site import Gradient, SiteParams, draw_signs, oriented
from srjit.products.product import Product
from srjit.products.quantized import ScaledValues, scaled_dot
from srjit.program.left_alone import REWRITTEN
from srjit.targets.operand import quantize_operand, quantize_together
from srjit.targets.target import Demand
from srjit.targets.wire import sending

# ----------------------------------------------------------------------------- the two primitives

site_p, lin_p = map(jex_core.Primitive, REWRITTEN)


def bind_site(
    site: SiteParams,
    x: jax.Array,
    w: jax.Array,
    extras: Sequence[jax.Array],
    lhs: ScaledValues | None,
    rhs: ScaledValues | None,
    key: Key | None,
) -> jax.Array:
    """The product of two operands, quantized where codes are given.

    Args:
      site: the static part.
      x, w: the operands in high precision.
      extras: group sizes of a ragged product.
      lhs, rhs: their codes, or None.
      key: what the noise of the parts that devices send, and of the backward products, comes from;
        None where they need none.
    """
    lhs, rhs = (
        q if q is None or wanted else q.alone
        for q, wanted in zip((lhs, rhs), site.turned, strict=True)
    )
    given = (x, w, tuple(extras), lhs, rhs, key if site.needs_key else None)
    leaves, tree = jax.tree.flatten(given)
    return site_p.bind(*leaves, site=dataclasses.replace(site, tree=tree))


def _unflatten(site: SiteParams, args: Sequence[Any]) -> tuple[Any, ...]:
    """Operands of site_p as (x, w, extras, lhs, rhs, key)."""
    return jax.tree.unflatten(site.tree, args)


def _without_copies(
    site: SiteParams, count: int, again: tuple[bool, bool] = (False, False)
) -> tuple[SiteParams, list[int]]:
    """The site without turned copies of codes, and which of site_p's operands are left.

    Nor are the codes of an operand where those are made ``again``.
    """
    x, w, extras, *codes, key = _unflatten(site, range(count))
    codes = [q and q.alone for q in codes]
    lhs, rhs = (None if anew else q for q, anew in zip(codes, again, strict=True))
    kept, tree = jax.tree.flatten((x, w, extras, lhs, rhs, key))
    return dataclasses.replace(site, tree=tree), kept


def _site_impl(*args: jax.Array, site: SiteParams) -> jax.Array:
    x, w, extras, lhs, rhs, key = _unflatten(site, args)
    multiply = site.target.multiply
    if site.wire and key is not None:
        if key[0].ndim:
            _stack.warn(
                f"under vmap gradients are not sent as wire={site.wire!r} says: put vmap inside of "
                "the function that is decorated or transformed"
            )
        else:
            multiply = sending(multiply, site.wire, mix(key, planned_site.PARTS), site.rng)
    with jax.named_scope(f"srjit_{site.label}"):
        if lhs is rhs is None:  # nothing is quantized: the user's product, with its precision
            return _plain(site, x, w, extras)
        return scaled_dot(
            site.product,
            x if lhs is None else lhs,
            w if rhs is None else rhs,
            *extras,
            dtype=site.dtype,
            multiply=multiply,
            multiply_groups=site.target.multiply_groups,
            reduce=site.reduce,
        )


def _site_type(*args: Any, site: SiteParams) -> Any:
    x, w, extras, *_ = _unflatten(site, args)
    return _result_type(site.product, jnp.dtype(site.dtype), x, w, *extras)


@functools.lru_cache(maxsize=4096)
def _result_type(product: Product, dtype: Any, *avals: Any) -> Any:
    return _compat.result_types(functools.partial(product, dtype=dtype), *avals)[0]


def _lin_impl(*args: Any, site: SiteParams, wrt: tuple[bool, bool]) -> jax.Array:
    tangents, rest = args[: sum(wrt)], args[sum(wrt) :]
    x, w, extras, *_ = _unflatten(site, rest)
    return _linear(site, wrt, x, w, extras, *tangents)


def _linear(
    site: SiteParams, wrt: tuple[bool, bool], x: Any, w: Any, extras: Any, *tangents: Any
) -> Any:
    remaining = list(tangents)
    terms: list[jax.Array] = []
    with jax.named_scope(f"srjit_{site.label}_tangent"):
        if wrt[0]:
            terms.append(_plain(site, remaining.pop(0), w, extras))
        if wrt[1]:
            terms.append(_plain(site, x, remaining.pop(0), extras))
        return functools.reduce(jnp.add, terms)


def _plain(site: SiteParams, x: Any, w: Any, extras: Any) -> Any:
    dtype = jnp.promote_types(jnp.promote_types(x.dtype, w.dtype), site.dtype)
    return site.product(x, w, *extras, dtype=dtype).astype(site.dtype)


def _lin_type(*args: Any, site: SiteParams, wrt: tuple[bool, bool]) -> Any:
    return _site_type(*args[sum(wrt) :], site=site)


for _primitive, _impl, _type in ((site_p, _site_impl, _site_type), (lin_p, _lin_impl, _lin_type)):
    _primitive.def_impl(jax.jit(_impl, static_argnames=("site", "wrt")[: 1 + (_impl is _lin_impl)]))
    _primitive.def_abstract_eval(_type)
    mlir.register_lowering(_primitive, mlir.lower_fun(_impl, multiple_results=False))


_compat.lowers_for_devices(site_p)  # targets' products may be partitioned by hand


# --------------------------------------------------------------------------------- differentiation


def _site_jvp(primals: Any, tangents: Any, *, site: SiteParams) -> Any:
    out = site_p.bind(*primals, site=site)
    wrt = tuple(type(t) is not ad.Zero for t in tangents[:2])
    if not any(wrt):
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    given = [t for t in tangents[:2] if type(t) is not ad.Zero]
    # Copies are not worth being saved.
    site, kept = _without_copies(site, len(primals), site.again)
    return out, lin_p.bind(*given, *(primals[i] for i in kept), site=site, wrt=wrt)


def _lin_jvp(primals: Any, tangents: Any, *, site: SiteParams, wrt: tuple[bool, bool]) -> Any:
    out = lin_p.bind(*primals, site=site, wrt=wrt)
    n = sum(wrt)
    x, w, extras, *_ = _unflatten(site, primals[n:])
    inputs = (*primals[:n], x, w)
    dots = [ad.instantiate_zeros(t) for t in (*tangents[:n], *tangents[n : n + 2])]

    def linear(*args: Any) -> Any:
        return _linear(site, wrt, args[n], args[n + 1], extras, *args[:n])

    return out, jax.jvp(linear, inputs, tuple(dots))[1]


def _lin_transpose(ct: Any, *args: Any, site: SiteParams, wrt: tuple[bool, bool]) -> list[Any]:
    n = sum(wrt)
    unknown = [ad.is_undefined_primal(a) for a in args]
    results: list[Any] = [None] * len(args)
    if type(ct) is ad.Zero:
        return [ad.Zero(a.aval) if u else None for a, u in zip(args, unknown, strict=True)]
    sides = [s for s in (0, 1) if wrt[s]]
    grads = backward(site, ct, args[n:], [s for i, s in enumerate(sides) if unknown[i]])
    for i in range(n):
        if unknown[i]:
            results[i] = grads.pop(0).astype(args[i].aval.dtype)
    return results


def backward(site: SiteParams, ct: jax.Array, operands: Any, sides: list[int]) -> list[jax.Array]:
    """The gradients of a site's operands: products of the quantized cotangent and saved codes."""
    x, w, extras, lhs, rhs, key = _unflatten(site, operands)
    floats, saved, kinds = (x, w), (lhs, rhs), (site.lhs, site.rhs)
    masked, groups = site.product.mask(2, ct, *extras), site.product.groups_of(2, ct.shape, *extras)
    planned = {side: _gradient(site, side, ct, floats) for side in sides}
    # The cotangent stands where the differentiated operand stood.
    specs = {side: (grad.lhs, grad.rhs)[side] for side, grad in planned.items()}
    turned = {specs[side] for side, grad in planned.items() if grad.turned[side]}
    drawn = _cotangents_together(site, masked, planned, specs, key, turned)
    grads: list[jax.Array] = []
    for side, grad in planned.items():
        other = 1 - side
        ct_spec, residual_spec = specs[side], (grad.lhs, grad.rhs)[other]
        signs = owner = None
        if key is not None and draw_signs(ct_spec, residual_spec):
            # Codes whose signs are of one product are of no use to the other.
            signs, owner = mix(key, planned_site.GRADIENT_SIGNS + side), side
        if ct_spec and (ct_spec, owner) not in drawn:
            slot = planned_site.CT_DGRAD if side == 0 else planned_site.CT_WGRAD
            demand = Demand(ct_spec, site.rng, turned=ct_spec in turned)
            drawn[ct_spec, owner] = _quantize_backward(
                site, masked, groups, demand, key, slot, signs
            )
        residual = saved[other] if residual_spec else None
        if residual_spec and (residual is None or residual_spec != kinds[other] or signs):
            kept = site.product.mask(other, floats[other], *extras)
            own = site.product.groups_of(other, floats[other].shape, *extras)
            again = site.again[other] and residual_spec == kinds[other]
            if again:
                made = drawn[ct_spec, owner] if ct_spec else None
                kept = after(kept, ct if made is None or made.scale is None else made.scale)
            slot = planned_site.RESIDUAL + side
            demand = Demand(residual_spec, site.rng, in_memory=again, turned=grad.turned[other])
            examples = site.examples[other] if again else 0
            residual = _quantize_backward(site, kept, own, demand, key, slot, signs, examples)
        order = slice(None) if side == 0 else slice(None, None, -1)
        pair = [ct, floats[other]][order]
        codes = [drawn[ct_spec, owner] if ct_spec else None, residual][order]
        grads.append(bind_site(grad, pair[0], pair[1], extras, codes[0], codes[1], None))
    return grads


def _cotangents_together(
    site: SiteParams,
    ct: jax.Array,
    planned: dict[int, SiteParams],
    specs: dict[int, Quantization | None],
    key: Key | None,
    turned: set[Quantization | None],
) -> dict[tuple[Quantization, int | None], ScaledValues]:
    """The codes of the cotangent for both products, where one read of it gives them."""
    wanted = {q: side for side, q in specs.items() if q is not None}
    random = key is not None and any(draw_signs(g.lhs, g.rhs) for g in planned.values())
    if random or (key is not None and key[0].ndim):
        return {}
    slots = (planned_site.CT_DGRAD, planned_site.CT_WGRAD)
    keys = [
        None if key is None else of_typed_shards(mix(key, slots[s]), ct) for s in wanted.values()
    ]
    demands = [Demand(q, site.rng, turned=q in turned) for q in wanted]
    made = quantize_together(ct, demands, keys, site.target)
    return {} if made is None else {(q, None): codes for q, codes in zip(wanted, made, strict=True)}


def _gradient(site: SiteParams, side: int, ct: Any, floats: Any) -> SiteParams:
    product = site.product.transpose(side, jax.typeof(floats[side]))
    wanted = site.backward[side] if site.backward else Gradient("grad", None, None)
    shapes = (ct.shape, floats[1].shape) if side == 0 else (floats[0].shape, ct.shape)
    target = site.target.for_shapes(*shapes)
    lhs = wanted.lhs and oriented(wanted.lhs, product, 0, shapes[0])
    rhs = wanted.rhs and oriented(wanted.rhs, product, 1, shapes[1])
    return dataclasses.replace(
        site,
        product=product,
        dtype=floats[side].dtype,
        lhs=lhs,
        rhs=rhs,
        backward=(),
        wire=None,
        label=f"{site.label}_{wanted.role}",
        target=target,
        turned=target.turns(product, shapes, (lhs, rhs)),
    )


def _quantize_backward(
    site: SiteParams,
    x: jax.Array,
    groups: Groups | None,
    demand: Demand,
    key: Key | None,
    slot: int,
    signs: Key | None,
    examples: int = 0,
) -> ScaledValues:
    """Quantizes a tensor of the backward pass, under vmap if every example has its own key.

    Or if the leading ``examples`` dimensions had scales of their own.
    """
    noise = None
    if key is not None and demand.spec.rounding == "stochastic":
        noise = of_typed_shards(mix(key, slot), x)
    words = noise or signs
    examples = words[0].ndim if words else examples
    demand = dataclasses.replace(demand, turned=demand.turned and not examples)
    call = lambda x, key, signs, groups: quantize_operand(  # noqa: E731
        x, demand, key, site.target, signs=signs, groups=groups
    )
    for _ in range(examples):
        call = jax.vmap(call)
    return call(x, noise, signs, groups)


def after(x: jax.Array, values: Any) -> jax.Array:
    """x, which compilers do not take for what it was before some values were made."""
    return lax.optimization_barrier((x, values))[0]


ad.primitive_jvps[site_p] = _site_jvp
ad.primitive_jvps[lin_p] = _lin_jvp
ad.primitive_transposes[lin_p] = _lin_transpose


# ---------------------------------------------------------------------------------------- batching


def _batch(primitive: Any, args: Any, dims: Any, *, site: SiteParams, **params: Any) -> Any:
    """vmap adds a label to the product; whatever belongs to a mapped operand is mapped with it."""
    wrt = params.get("wrt", ())
    n = sum(wrt)
    if not n:  # of what vmap maps, the last dimension is not to come first
        site, kept = _without_copies(site, len(args))
        args, dims = [args[i] for i in kept], [dims[i] for i in kept]
    mapped = [d is not None for d in dims]
    args = [jnp.moveaxis(a, d, 0) if m else a for a, d, m in zip(args, dims, mapped, strict=True)]
    size = next(a.shape[0] for a, m in zip(args, mapped, strict=True) if m)
    x, w, extras, lhs, rhs, key = _unflatten(site, range(n, len(args)))
    groups, keys = [[x, *jax.tree.leaves(lhs)], [w, *jax.tree.leaves(rhs)]], list(key or ())
    for i, side in enumerate(s for s in (0, 1) if n and wrt[s]):
        groups[side].append(i)
    own_keys = any(mapped[i] for i in keys)
    if own_keys or any(args[i].ndim for i in keys):
        groups.append(keys)  # leading dimensions of keys are the examples'
    for group in groups:
        if own_keys or any(mapped[i] for i in group):
            for i in group:
                if not mapped[i]:
                    args[i] = jnp.broadcast_to(args[i], (size, *args[i].shape))
                mapped[i] = True
    product = site.product.batch(tuple(mapped[i] for i in (x, w, *extras)))
    examples = site.examples[0] + mapped[x], site.examples[1] + mapped[w]
    site = dataclasses.replace(site, product=product, examples=examples)
    return primitive.bind(*args, site=site, **params), 0


for _primitive in (site_p, lin_p):
    batching.primitive_batchers[_primitive] = functools.partial(_batch, _primitive)
