"""An operand's codes, as a target's programs have them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding

from srjit import _compat
from srjit.numerics import hadamard
from srjit.numerics.groups import Groups
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key
from srjit.products.quantized import ScaledValues, emulated
from srjit.targets.layouts import mesh_axes, placed
from srjit.targets.target import Demand, Target, emulate

QUANTIZER = "srjit_quantize_"  # begins the names of the functions that quantize an operand


def quantize_operand(
    x: jax.Array,
    demand: Demand,
    key: Key | None,
    target: Target,
    before: jax.Array | None = None,
    signs: Key | None = None,
    groups: Groups | None = None,
) -> ScaledValues:
    """x's codes in the target's carrier dtype; one function a demand, traced once a shape.

    ``signs`` is what signs along the contraction are drawn from, the same for both operands; None
    for products that draw none. ``groups`` are those of the rows of a ``ragged`` operand.
    """
    target = target.for_shapes(x.shape)
    if _is_plain(demand.spec, target):  # where an operand stands is all the same to it
        demand = dataclasses.replace(demand, in_memory=False, turned=False)
    key = key if demand.spec.rounding == "stochastic" else None
    groups = None if demand.spec.ragged is None else groups
    return _quantizer(demand, target)(x, key, before, signs, groups)


def _is_plain(spec: Quantization, target: Target) -> bool:
    """True if plain operations quantize."""
    if spec.group_dim is not None:
        return target.quantize_groups is None
    return target.quantize is emulate


def quantize_together(
    x: jax.Array, demands: Sequence[Demand], keys: Sequence[Key | None], target: Target
) -> list[ScaledValues] | None:
    """Several ``quantize_operand`` of x that read it once; None where one by one is as good."""
    target = target.for_shapes(x.shape)
    specs = [r.spec for r in demands]
    is_one = all(
        (s.scaling, s.rounding != "none", s.group_dim) == ("dynamic", True, None) for s in specs
    )
    if target.quantize_together is None or len(specs) < 2 or not is_one:
        return None
    keys = [k if s.rounding == "stochastic" else None for s, k in zip(specs, keys, strict=True)]
    if any(k is None and s.rounding == "stochastic" for s, k in zip(specs, keys, strict=True)):
        return None
    return _joint_quantizer(tuple(demands), target)(x, keys)


@functools.cache
def _quantizer(demand: Demand, target: Target) -> Callable[..., ScaledValues]:
    spec = demand.spec
    is_plain = _is_plain(spec, target)

    def run(
        x: jax.Array,
        key: Key | None,
        before: jax.Array | None,
        signs: Key | None,
        groups: Groups | None,
    ) -> ScaledValues:
        x = lax.stop_gradient(x)
        if signs is not None:
            x = hadamard.flipped(x, spec.axes(x.ndim)[-1], signs, demand.rng)
        if is_plain:
            rng, shows = demand.rng, demand.shows
            q = emulated(x, spec, key, before=before, rng=rng, shows=shows, groups=groups)
        elif spec.group_dim is not None and target.quantize_groups is not None:
            q = target.quantize_groups(x, demand, key, before, groups)
        else:
            q = target.quantize(x, demand, key, before)
        return _carried(q, demand, target)

    def named(
        x: jax.Array,
        key: Key | None,
        before: jax.Array | None,
        signs: Key | None,
        groups: Groups | None,
    ) -> ScaledValues:
        sharding = _compat.explicit_sharding(jax.typeof(x))
        is_simple = not (spec.is_blocked or spec.hadamard or spec.group_dim is not None)
        if sharding is None or is_simple:
            return run(x, key, before, signs, groups)
        # Shards may cut blocks: no type says how such a reshape is sharded, but XLA knows.
        operands = x, key, before, signs, groups
        given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), operands)
        # With their mesh: arrays may have one where there is none around (jax.set_mesh).
        whole = placed(sharding.mesh, ())
        sharded = jax.tree.map(lambda _: whole, jax.eval_shape(run, *given))
        codes = _codes_sharding(x.shape, spec, sharding)
        sharded = dataclasses.replace(sharded, values=codes)
        auto = jax.sharding.auto_axes(run, out_sharding=sharded)
        return auto(*operands)  # type: ignore[call-arg]  (its stub knows one argument)

    named.__name__ = named.__qualname__ = f"{QUANTIZER}{spec.format}_{spec.rounding}"
    return jax.jit(named)


@functools.cache
def _joint_quantizer(
    demands: tuple[Demand, ...], target: Target
) -> Callable[..., list[ScaledValues] | None]:
    def named(x: jax.Array, keys: Sequence[Key | None]) -> list[ScaledValues] | None:
        assert target.quantize_together is not None
        made = target.quantize_together(lax.stop_gradient(x), demands, keys)
        if made is None:
            return None
        return [_carried(q, demand, target) for q, demand in zip(made, demands, strict=True)]

    named.__name__ = named.__qualname__ = f"{QUANTIZER}{demands[0].spec.format}_together"
    return jax.jit(named)


def _carried(q: ScaledValues, demand: Demand, target: Target) -> ScaledValues:
    """Codes in the dtype that a target's programs have them in."""
    if q.blocks is not None:  # as they are
        return q
    carrier = target.carrier(demand, q.values.dtype)
    return dataclasses.replace(
        q,
        values=q.values.astype(carrier),
        turned=None if q.turned is None else q.turned.astype(carrier),
    )


def _codes_sharding(shape: tuple[int, ...], spec: Quantization, sharding: Any) -> NamedSharding:
    """The operand's own sharding, but for a transformed dimension, whose padding has to fit too."""
    axes = mesh_axes(sharding.spec, len(shape))
    if spec.hadamard:
        padded = spec.axes(len(shape))[-1]
        size = -(-shape[padded] // spec.rotation) * spec.rotation
        if size % math.prod(sharding.mesh.shape[n] for n in axes[padded]):
            axes[padded] = ()
    return placed(sharding.mesh, axes)
