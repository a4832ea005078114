"""Contexts in which a person decides what the planner would have inferred."""

from __future__ import annotations

from typing import Any

import jax

from srjit import recipes
from srjit.choices import unknown_name
from srjit.planning.roles import KEEP_SCOPE, role_scope
from srjit.recipes import Role


def keep_high_precision() -> Any:
    """Returns a context: what is traced inside, and its gradients, stays in high precision."""
    return jax.named_scope(KEEP_SCOPE)


def role(role: Role, gradient: int | None = None) -> Any:
    """Returns a context that says what the products traced inside compute.

    Args:
      role: ``fprop``, ``dgrad`` or ``wgrad``.
      gradient: for ``dgrad`` and ``wgrad``, which operand is the incoming gradient: 0 or 1.

    Raises:
      ValueError: unknown role, or a gradient that does not go with it.
    """
    if role not in recipes.ROLES:
        raise unknown_name("role", role, recipes.ROLES)
    if (role == "fprop") != (gradient is None) or gradient not in (None, 0, 1):
        raise ValueError(
            f"role {role!r} takes gradient=0 or 1, unless it is 'fprop': got {gradient!r}"
        )
    return jax.named_scope(role_scope(role, gradient))
