"""The StableHLO door: passes over modules from anywhere, one file a pass; ``srjit.passes``."""

from srjit.passes.registry import Pass, PassError, UnknownPassError, register

__all__ = ["Pass", "PassError", "UnknownPassError", "register"]
