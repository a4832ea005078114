"""The page about recipes has every recipe and every field."""

from __future__ import annotations

import dataclasses
import re

from docs.pages import ROOT
from srjit import Quantization, Recipe, recipes
from srjit.recipes.rule import ROLES, Rule

PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")


def _first_cells(heading: str) -> set[str]:
    """The names in the first column of the table below a heading."""
    rows = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0].splitlines()
    cells = [row.split("|")[1] for row in rows if row.startswith("| `")]
    return set(re.findall(r"`\[*([\w.-]+)\]*`", "".join(cells)))


def test_every_builtin_recipe_is_in_the_table():
    assert _first_cells("The built-in ones") == set(recipes.names())


def test_every_field_is_in_its_table():
    def fields(cls: type) -> set[str]:
        return {f.name for f in dataclasses.fields(cls)}

    of_sites = {"axis", "apart", "grouped", "ragged"}
    assert _first_cells("Fields of a recipe") == fields(Recipe) - {"rules"} | {"rule"}
    assert _first_cells("Fields of a quantization") == fields(Quantization) - of_sites
    in_rules = {name.partition(".")[0] for name in _first_cells("Fields of a rule")}
    assert in_rules == fields(Rule) and set(ROLES) < in_rules


def test_the_file_on_the_page_is_the_recipe_beside_it():
    (text,) = re.findall(r"```toml.*?\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Recipe] = {}
    program = re.search(r"```python\n(.*?)careful\.save", PAGE, re.DOTALL)
    assert program is not None
    exec(program[1], names)
    assert Recipe.from_toml(text) == names["careful"]
