"""Targets: what a chip multiplies natively, in which layout, and how its programs are legalized."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from srjit.numerics.formats import get_format, unknown_name
from srjit.numerics.quantization import Quantization
from srjit.numerics.scaled_dot import Multiply, multiply_values


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
    multiply: Multiply = multiply_values

    def carrier(self, spec: Quantization, work: Any) -> Any:
        """The dtype that holds an operand's values inside a program.

        Args:
          spec: how the operand was quantized.
          work: float32 or float64, which the values are computed in.
        """
        fmt = get_format(spec.format)
        if work == jnp.float64 or spec.rounding == "none":
            return work
        if spec.is_blocked:  # element times block scale: 8 significant bits at most, or float32
            return jnp.dtype(jnp.float32) if fmt.scale == "float32" else jnp.dtype(jnp.bfloat16)
        return jnp.dtype(jnp.int8) if fmt.element.is_integer else fmt.element.dtype


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
