"""The StableHLO door: passes over modules from anywhere, one file a pass; ``srjit.passes``.

This release has no passes yet. Use the decorator, ``srjit.srjit``, which works on the jaxpr.
"""
