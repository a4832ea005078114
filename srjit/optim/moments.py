"""For Optax: the moments of an optimizer as codes of 8 bits, rounded stochastically."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.extend import core

from srjit.choices import Rng, unknown_name
from srjit.numerics.arrays import QuantizedArray
from srjit.numerics.encode import encode
from srjit.numerics.formats import get_storage
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key, as_key, mix
from srjit.numerics.shards import of_all_shards
from srjit.optim.positive import PositiveArray
from srjit.optim.roots import under_roots

if TYPE_CHECKING:
    import optax

MomentFormat = Literal["int8", "fp8"]
_FORMATS = {"int8": "int8", "fp8": "fp8_e4m3"}  # of first moments
_LEAST = 4096  # elements of a moment that is worth it: smaller ones stay as they are
_POSITIVE = "positive"  # on the grid of PositiveArray


class QuantizedMomentsState(NamedTuple):
    """The state of ``quantized_moments``.

    Attributes:
      key: uint32[2], the key words; they never change.
      steps: uint32, how many updates there were: an update's noise depends on both alone.
      inner: the state of the wrapped transformation, with codes in place of moments.
    """

    key: jax.Array
    steps: jax.Array
    inner: Any


def quantized_moments(
    transform: optax.GradientTransformation,
    format: MomentFormat = "int8",
    key: Any = 0,
    *,
    block: int = 128,
    rng: Rng = "hash",
) -> optax.GradientTransformationExtraArgs:
    """``transform``, whose state keeps its moments in 8 bits.

    Moments are what the state has of the parameters' shapes, in float32 or less and of 4096
    elements or more, and starts as zeros. An update computes with what their codes stand for, and
    rounds the new ones stochastically: on average they are what the transformation made them. A
    moment whose root the update takes (Adam's second) is a ``PositiveArray``, whose grid has no
    zero; others are a ``QuantizedArray``. Blocks run along a moment's longest dimension. Moments
    are float32 inside of an update, and so are the updates that they are in.

    Args:
      transform: an Optax transformation; ``stochastic_rounding`` may be around it.
      format: ``int8``, or ``fp8``: E4M3 for the moments that are no second ones.
      key: a typed PRNG key or an integer; runs of equal keys are equal.
      block: elements that share a float32 scale.
      rng: ``hash`` or ``threefry``.

    Returns:
      A transformation whose state is a ``QuantizedMomentsState``.

    Raises:
      ValueError: there is no such format, or block is not positive.
      TypeError: key is not a key; in ``update``, the state is that of another transformation.

    Example:
      >>> optimizer = srjit.optim.quantized_moments(optax.adamw(1e-3), "int8", jax.random.key(0))
    """
    import optax

    if format not in _FORMATS:
        raise unknown_name("format", format, get_args(MomentFormat))
    if block < 1:
        raise ValueError(f"block={block}: it is a number of elements, 1 at least")
    words = as_key(key)
    inner = optax.with_extra_args_support(transform)

    def coded(x: jax.Array, way: str, now: Key, number: int) -> QuantizedArray | PositiveArray:
        axis = max(range(x.ndim), key=lambda d: (x.shape[d], d))
        x = x.astype(jnp.float32)
        noise = of_all_shards(mix(now, number), x)
        if way == _POSITIVE:
            return PositiveArray.of(x, axis, block, noise, rng)
        spec = Quantization(
            format=way, rounding="stochastic", axis=axis, granularity="block", block=block
        )
        q = encode(x, spec, noise, rng=rng)
        return dataclasses.replace(q, codes=get_storage(way).cast(q.codes))

    def init(params: Any) -> QuantizedMomentsState:
        leaves, tree = jax.tree.flatten(inner.init(params))
        ways = _ways(inner, params, _FORMATS[format])
        narrow = [
            x if way is None else coded(x, way, words, i)
            for i, (x, way) in enumerate(zip(leaves, ways, strict=True))
        ]
        return QuantizedMomentsState(jnp.stack(words), jnp.uint32(0), tree.unflatten(narrow))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if not isinstance(state, QuantizedMomentsState):
            raise TypeError(
                f"quantized_moments: the state is a {type(state).__name__}, which this "
                "transformation did not make: call its init"
            )
        before = jax.tree.leaves(state.inner, is_leaf=_is_coded)
        values = jax.tree.map(
            lambda x: x.dequantize() if _is_coded(x) else x, state.inner, is_leaf=_is_coded
        )
        updates, values = inner.update(updates, values, params, **extra)
        leaves, tree = jax.tree.flatten(values)
        now = mix((state.key[0], state.key[1]), state.steps)
        after = [
            coded(x, _way_of(old), now, i) if _is_coded(old) else x
            for i, (x, old) in enumerate(zip(leaves, before, strict=True))
        ]
        return updates, state._replace(steps=state.steps + 1, inner=tree.unflatten(after))

    return optax.GradientTransformationExtraArgs(init, update)


def _ways(inner: Any, params: Any, first: str) -> list[str | None]:
    """For every leaf of the state: the format of its codes, ``_POSITIVE``, or None."""
    closed, shapes = jax.make_jaxpr(inner.init, return_shape=True)(params)
    state = jax.tree.leaves(shapes)
    roots = under_roots(jax.make_jaxpr(inner.update)(params, shapes, params))
    count = len(jax.tree.leaves(params))
    kinds = {jnp.shape(p) for p in jax.tree.leaves(params)}
    fixed = _independent(closed.jaxpr)

    def way(i: int) -> str | None:
        x = state[i]
        is_float = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize <= 4
        if not (is_float and fixed[i] and x.shape in kinds and math.prod(x.shape) >= _LEAST):
            return None
        return _POSITIVE if count + i in roots else first

    return [way(i) for i in range(len(state))]


def _independent(jaxpr: Any) -> list[bool]:
    """For every output, whether no input is in it: a copy of the parameters is no moment."""
    made = set(jaxpr.invars)
    for eqn in jaxpr.eqns:
        if any(v in made for v in eqn.invars if isinstance(v, core.Var)):
            made.update(eqn.outvars)
    return [not (isinstance(v, core.Var) and v in made) for v in jaxpr.outvars]


def _is_coded(x: Any) -> bool:
    return isinstance(x, QuantizedArray | PositiveArray)


def _way_of(coded: QuantizedArray | PositiveArray) -> str:
    return coded.spec.format if isinstance(coded, QuantizedArray) else _POSITIVE
