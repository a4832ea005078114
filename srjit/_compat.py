"""Everything that differs between JAX versions, and every private import, each with its reason."""

from __future__ import annotations

from typing import Any

import jax


def varying_axes(x: jax.Array) -> tuple[str, ...]:
    """Mesh axes of an enclosing ``shard_map`` over which ``x`` differs, by its type."""
    aval = jax.typeof(x)
    manual = getattr(aval, "vma", frozenset())
    return tuple(sorted(manual))
