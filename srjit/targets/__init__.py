"""Targets: what a chip multiplies natively, in which layout, and how its programs are legalized."""

from __future__ import annotations

import jax

from srjit.choices import unknown_name
from srjit.targets import cpu, gpu, tpu
from srjit.targets.target import PORTABLE, Target

__all__ = ["Target", "get", "names", "register"]

_TARGETS: dict[str, Target] = {}


def register(target: Target) -> Target:
    """Adds a target under its name."""
    _TARGETS[target.name] = target
    return target


for _target in (*tpu.TARGETS, *gpu.TARGETS, *cpu.TARGETS, PORTABLE):
    register(_target)


def names() -> tuple[str, ...]:
    """The registered targets' names."""
    return tuple(_TARGETS)


def get(target: str | Target) -> Target:
    """The target with that name; ``auto`` is the attached device's, and ``cpu`` if it has none.

    Raises:
      ValueError: no target has that name; the nearest are listed.
    """
    if isinstance(target, Target):
        return target
    if target == "auto":
        kind = jax.devices()[0].device_kind.lower()
        # The longest match: "gb200" before "b200".
        found = [(len(part), t) for t in _TARGETS.values() for part in t.kinds if part in kind]
        return max(found, key=lambda match: match[0], default=(0, _TARGETS["cpu"]))[1]
    if target not in _TARGETS:
        raise unknown_name("target", target, [*_TARGETS, "auto"])
    return _TARGETS[target]
