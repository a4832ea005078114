"""Targets: what a chip multiplies natively, in which layout, and how its programs are legalized."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from srjit.numerics.formats import Element, unknown_name
from srjit.numerics.scaled_dot import Multiply, multiply_codes


@dataclasses.dataclass(frozen=True)
class Target:
    """One chip.

    Attributes:
      name: what users type.
      platform: the JAX platform that runs it.
      recipe: what ``recipe="auto"`` is there.
      native: pairs of formats whose products a site has been seen to run natively; a site of any
        other pair is emulated.
      multiply: how codes are multiplied.
    """

    name: str
    platform: str
    recipe: str
    native: frozenset[tuple[str, str]] = frozenset()
    multiply: Multiply = multiply_codes

    def carrier(self, element: Element, work: Any) -> Any:
        """The dtype that holds codes inside a program: the element's own where that is cheap."""
        if work == jnp.float64:
            return work
        if element.is_integer:
            return jnp.dtype(jnp.int8)
        # float4 casts are slow wherever they are emulated; bfloat16 holds E2M1 exactly.
        return jnp.dtype(jnp.bfloat16) if element.dtype == jnp.float4_e2m1fn else element.dtype


_TARGETS: dict[str, Target] = {}


def register(target: Target) -> Target:
    """Adds a target under its name."""
    _TARGETS[target.name] = target
    return target


def names() -> tuple[str, ...]:
    """The registered targets' names."""
    return tuple(_TARGETS)


def get(target: str | Target) -> Target:
    """The target with that name; ``auto`` is the attached device's.

    Raises:
      ValueError: no target has that name; the nearest are listed.
    """
    if isinstance(target, Target):
        return target
    if target == "auto":
        return _attached()
    if target not in _TARGETS:
        raise unknown_name("target", target, [*_TARGETS, "auto"])
    return _TARGETS[target]


# Substrings of a device's kind, most specific first.
_KINDS = (
    ("v5 lite", "v5e"), ("v5e", "v5e"), ("v5p", "v5p"), ("v5", "v5p"), ("v6", "v6e"),
    ("tpu7", "tpu7x"), ("v7", "tpu7x"), ("gb200", "gb200"), ("b200", "b200"), ("b300", "b300"),
    ("h100", "h100"), ("h200", "h200"),
)  # fmt: skip


def _attached() -> Target:
    kind = jax.devices()[0].device_kind.lower()
    name = next((name for part, name in _KINDS if part in kind), "cpu")
    return _TARGETS[name]


from srjit.targets import blackwell, cpu, hopper, tpu  # noqa: E402, F401  (they register)
