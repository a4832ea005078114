"""For Optax: parameters in bfloat16 or float16 that are updated with stochastic rounding.

For those who prefer to say it where the optimizer is made; recipes with ``weights="stochastic"``
do the same to any training step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from srjit import _stack
from srjit.choices import Rng
from srjit.numerics.encode import round_with
from srjit.numerics.formats import get_storage
from srjit.numerics.random_bits import Key, as_key, mix
from srjit.numerics.shards import guessed_axes, may_be_copies, of_all_shards

if TYPE_CHECKING:
    import optax

_NARROW = ("bfloat16", "float16")


class StochasticRoundingState(NamedTuple):
    """The state of ``stochastic_rounding``.

    Attributes:
      key: uint32[2], the key words; they never change.
      steps: uint32, how many updates there were: an update's noise depends on both alone.
      inner: the state of the wrapped transformation.
    """

    key: jax.Array
    steps: jax.Array
    inner: Any


def stochastic_rounding(
    transform: optax.GradientTransformation, key: Any = 0, *, rng: Rng = "hash"
) -> optax.GradientTransformationExtraArgs:
    """``transform``, whose updates make ``optax.apply_updates`` round stochastically.

    ``optax.apply_updates(params, updates)`` then gives stochastic_round(float32(params) +
    float32(updates)) in the parameters' dtype: the update that is returned is that minus the
    parameter, in float32. The sum of the two is the rounded value itself, and casting it changes
    nothing; but where an update leaves less than 2^-13 of a parameter, the difference of two such
    numbers is no float32, and the result is off by at most 2^-24 of what the parameter was.

    Args:
      transform: an Optax transformation, the whole of an optimizer.
      key: a typed PRNG key or an integer; runs of equal keys are equal.
      rng: ``hash`` or ``threefry``.

    Returns:
      A transformation whose ``update`` needs ``params``. Updates of float32 and float64 parameters
      are left as they are.

    Raises:
      TypeError: key is not a key; in ``update``, a parameter is in 8 bits, to which
        ``optax.apply_updates`` adds nothing wider.
      ValueError: in ``update``, there are no ``params``.

    Example:
      >>> optimizer = srjit.optim.stochastic_rounding(optax.adamw(1e-3), jax.random.key(0))
      >>> updates, state = optimizer.update(grads, state, params)
      >>> params = optax.apply_updates(params, updates)
    """
    import optax

    words = as_key(key)
    inner = optax.with_extra_args_support(transform)

    def init(params: Any) -> StochasticRoundingState:
        return StochasticRoundingState(jnp.stack(words), jnp.uint32(0), inner.init(params))

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        if params is None:
            raise ValueError(
                "stochastic_rounding rounds parameters: call update(updates, state, params)"
            )
        if guessed := guessed_axes():
            message = f"stochastic_rounding: {may_be_copies(guessed)}"
            _stack.warn(message)
        updates, inside = inner.update(updates, state.inner, params, **extra)
        leaves, tree = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
        now = mix((state.key[0], state.key[1]), state.steps)
        rounded = [
            u if u is None else _rounded(mix(now, i), p, u, rng)
            for i, (u, p) in enumerate(zip(leaves, tree.flatten_up_to(params), strict=True))
        ]
        return tree.unflatten(rounded), state._replace(steps=state.steps + 1, inner=inside)

    return optax.GradientTransformationExtraArgs(init, update)


def _rounded(key: Key, param: Any, update: Any, rng: Rng) -> jax.Array:
    """The float32 to add to a parameter so that the sum is a number of its own dtype."""
    dtype = jnp.result_type(param)
    if dtype.itemsize == 1 and jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"stochastic_rounding: a parameter is {dtype.name}, to which optax.apply_updates adds "
            "no float32; add to it in your own step, under srjit(recipe='bf16-sr')"
        )
    if dtype.name not in _NARROW:
        return update
    before, change = (jnp.asarray(x).astype(jnp.float32) for x in (param, update))
    exact = before + change
    words = of_all_shards(key, exact)
    after = round_with(words, exact, get_storage(dtype), rng).astype(jnp.float32)
    # Infinity minus itself would be NaN: what is not finite is left to the addition.
    return jnp.where(jnp.isfinite(exact), after - before, change)
