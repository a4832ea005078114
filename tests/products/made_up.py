"""A product that srjit does not know, as one file would add it: rows are what it contracts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir

from srjit.products.kinds import Kind, Rules
from srjit.products.product import PrimitiveProduct

KIND = Kind(primitive="made_up_matmul", label="made up", file=__name__)


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    """``x.T @ w``, by a primitive of its own."""
    return made_up_p.bind(x, w)


made_up_p = jex_core.Primitive(KIND.primitive)


def _plainly(x: Any, w: Any) -> Any:
    return jnp.einsum("kn,km->nm", x, w, precision="highest")


made_up_p.def_impl(jax.jit(_plainly))
made_up_p.def_abstract_eval(lambda x, w: x.update(shape=(x.shape[1], w.shape[1])))
mlir.register_lowering(made_up_p, mlir.lower_fun(_plainly, multiple_results=False))
ad.defbilinear(
    made_up_p,
    lambda ct, x, w: jnp.einsum("nm,km->kn", ct, w, precision="highest"),
    lambda ct, x, w: jnp.einsum("kn,nm->km", x, ct, precision="highest"),
)
batching.primitive_batchers[made_up_p] = lambda args, dims: (
    jax.vmap(_plainly, in_axes=dims)(*args),
    0,
)


def _product(primitive: Any, params: dict[str, Any], ranks: tuple[int, ...]) -> PrimitiveProduct:
    return PrimitiveProduct(primitive, (), ((0, 0), (1, 1), (1, 0)), (True, True, True))


def _extents(eqn: Any) -> tuple[int, int, int]:
    (terms, rows), (_, columns) = (v.aval.shape for v in eqn.invars)
    return rows, columns, terms


RULES = Rules(
    product=_product,
    flops=lambda eqn: 2 * _extents(eqn)[0] * _extents(eqn)[1] * _extents(eqn)[2],
    extents=_extents,
)
