"""Recipes: which format and rounding each operand of each product gets, as data.

A recipe is a list of rules; the first that matches a site decides. It prints, compares, and
round-trips through TOML.
"""

from srjit.recipes.builtin import BUILTIN, get, names
from srjit.recipes.recipe import Recipe, WriteBackRounding
from srjit.recipes.rule import KINDS, ROLES, Kind, Operands, RecipeError, Role, Rule

__all__ = [
    "BUILTIN",
    "KINDS",
    "ROLES",
    "Kind",
    "Operands",
    "Recipe",
    "RecipeError",
    "Role",
    "Rule",
    "WriteBackRounding",
    "get",
    "names",
]
