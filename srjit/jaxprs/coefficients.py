"""Coefficients of derivatives as codes: made in the forward pass, read in the backward pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from srjit import _compat
from srjit.choices import Rng
from srjit.jaxprs.equations import bind
from srjit.numerics.arrays import QuantizedArray, dequantize
from srjit.numerics.encode import encode
from srjit.numerics.formats import get_format
from srjit.numerics.random_bits import Key
from srjit.numerics.rounding import working_dtype
from srjit.numerics.shards import of_all_shards
from srjit.planning.coefficients import Coefficient
from srjit.program.protocols import Variable, is_literal

Kept = tuple[QuantizedArray, jax.Array]  # codes, and what they are of: derivatives alone read it


def keep(c: Coefficient, read: Callable[[Variable], Any], key: Key, rng: Rng) -> Kept:
    """A coefficient as codes.

    Args:
      c: it.
      read: the value of a variable of the forward pass.
      key: of its noise, and of no other.
      rng: makes the noise.
    """
    value = _value(c, read)
    exact = lax.stop_gradient(value)
    q = encode(exact, c.spec, of_all_shards(key, exact), rng=rng)
    codes = get_format(c.spec.format).storage.cast(q.codes)
    # A compiler would keep the floats, and round them where they are read.
    codes, scale = lax.optimization_barrier((codes, q.scale))
    return dataclasses.replace(q, codes=codes, scale=scale), value


def scaled(c: Coefficient, kept: Kept, cotangent: jax.Array) -> jax.Array:
    """A cotangent times a coefficient, rounded once."""
    dtype = c.result.aval.dtype
    work = working_dtype(dtype)
    return (_stand_for(*kept).astype(work) * cotangent.astype(work)).astype(dtype)


@jax.custom_jvp
def _stand_for(q: QuantizedArray, value: jax.Array) -> jax.Array:
    return dequantize(q, working_dtype(value.dtype))


@_stand_for.defjvp
def _(primals: Any, tangents: Any) -> Any:
    out = _stand_for(*primals)
    return out, tangents[1].astype(out.dtype)


def _value(c: Coefficient, read: Callable[[Variable], Any]) -> jax.Array:
    """The result of a coefficient's steps for a cotangent of ones."""
    aval: Any = c.cotangent.aval
    ones = jnp.ones(aval.shape, aval.dtype)
    if axes := tuple(sorted(_compat.typed_axes(aval))):
        ones = lax.pcast(ones, axes, to="varying")
    env: dict[Any, Any] = {inside: read(v) for inside, v in c.given} | {c.cotangent: ones}
    for eqn in c.steps:
        outs = bind(eqn, [v.val if is_literal(v) else env[v] for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return env[c.result]
