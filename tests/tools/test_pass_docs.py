"""docs/passes.md is what the passes say of themselves."""

from pathlib import Path

from srjit.passes.driver import registry
from srjit.passes.driver.options import options_of
from srjit.tools import pass_docs

PAGE = Path(__file__).parents[2] / "docs" / "passes.md"


def test_the_page_of_the_passes_is_not_stale():
    assert PAGE.read_text(encoding="utf-8") == pass_docs.document(), "run `make docs`"


def test_the_page_has_every_pass_and_every_option():
    page = pass_docs.document()
    for name in registry.builtin_names():
        section = page.partition(f"## {name}\n")[2].partition("\n## ")[0]
        assert "==>" in section
        for option in options_of(registry.find(name)):
            row = next(line for line in section.split("\n") if line.startswith(f"| `{option}` |"))
            assert not row.endswith("|  |"), f"{name}: {option} is not described"
