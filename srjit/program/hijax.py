"""High-level (hijax) primitives: equations that hold an object, which says what they compute."""

from __future__ import annotations

from typing import Any

import jax


def checkpoint_kind(eqn: Any) -> str:
    """``checkpoint`` or ``name`` if an equation is one by ``JAX_REMAT3``; private in JAX."""
    return _CHECKPOINTS.get(type(eqn.params.get("_prim")).__name__, "")


_CHECKPOINTS = {
    "RematTraced": "checkpoint", "CheckpointName": "name", "CheckpointNameFwd": "name",
}  # fmt: skip


def high_level_program(eqn: Any) -> Any:
    """The closed jaxpr that a high-level (hijax) primitive computes; None of others."""
    primitive = eqn.params.get("_prim")
    if primitive is None:
        return None
    if checkpoint_kind(eqn) == "checkpoint":
        return primitive.jaxpr

    def expanded(*args: Any) -> Any:
        return jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, args)))

    structs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    return jax.make_jaxpr(expanded)(*structs)
