"""Docstrings say what a thing is: they begin with its noun, or with the verb of what it does."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Half a sentence, whose subject is in the name or nowhere.
NOT_FIRST = {
    "As",
    "By",
    "How",
    "If",
    "Of",
    "That",
    "What",
    "Where",
    "Whether",
    "Which",
    "Who",
    "Whose",
}


def _first_words(file: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", file.name), text.split()[0].rstrip(",:")


@pytest.mark.parametrize("folder", ["srjit", "passes", "examples"])
def test_docstrings_begin_with_what_a_thing_is_or_does(folder: str) -> None:
    files = [f for f in (ROOT / folder).rglob("*.py") if ROOT / "srjit" / "passes" not in f.parents]
    words = {(str(file), *found) for file in files for found in _first_words(file)}
    assert len(words) > len(files)
    assert not sorted(found for found in words if found[2] in NOT_FIRST)
