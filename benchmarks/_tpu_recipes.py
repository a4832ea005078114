"""The recipes that tpu_cycles.py compares: a chip's own, or with given or with delayed scales."""

from __future__ import annotations

import dataclasses

from srjit import recipes, targets
from srjit.recipes import Recipe


def recipe_of(chip: str, name: str) -> str | Recipe:
    """What one of the names stands for on a chip; any other is a recipe's."""
    own = recipes.get(targets.get(chip).recipe)
    if name == "own":
        return own
    if name == "given scales":
        return own.map_quantizations(
            lambda role, kind, q: dataclasses.replace(q, scaling="static", amax=4.0)
        )
    if name == "delayed scales":
        return own.map_quantizations(
            lambda role, kind, q: dataclasses.replace(q, scaling="delayed")
        )
    return name
