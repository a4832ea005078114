"""Every block on every page runs, as printed, and prints what the page shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs import pages
from docs.pages import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Pages with claims of their own, which their own tests run.
ELSEWHERE = {"aot.md", "stochastic_rounding.md", "verify.md", "write_a_pass.md"}
# Pages that compile much; tests/models/test_frameworks.py has these frameworks every day.
AT_NIGHT = {"commands.md", "migrate.md", "trouble.md"} | {
    f"frameworks/{name}.md"
    for name in ("dp_sgd", "equinox", "haiku", "keras", "linen", "lora", "nnx", "second_order")
}


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT / "docs" if "docs" in page.parts else ROOT))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=_name(p), marks=[pytest.mark.nightly] * (_name(p) in AT_NIGHT))
        for p in PAGES
        if any(not b.not_run for b in pages.blocks(p)) and _name(p) not in ELSEWHERE
    ],
)
def test_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path, compiler_flags: str):
    ran = pages.run(page, tmp_path, XLA_FLAGS=compiler_flags, COLUMNS="100")
    wrong = [said for block, printed in ran if (said := pages.differs(block, printed))]
    assert not wrong, "\n".join(wrong)


def test_blocks_that_are_not_run_say_why_where_readers_see_it():
    for page in PAGES:
        for block in pages.blocks(page):
            assert block.not_run or "not run" not in page.read_text().split("\n")[block.line - 2]


def test_every_public_name_is_in_the_reference():
    import srjit
    from srjit import optim, passes

    text = "\n".join(p.read_text() for p in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    modules = {"srjit.optim", "srjit.passes", "srjit.recipes", "srjit.targets"}
    assert {f"srjit.{name}" for name in srjit.__all__} - modules <= shown
    assert {f"srjit.optim.{name}" for name in optim.__all__} <= shown
    assert "srjit.passes" in shown and passes.__all__


def test_no_link_dangles():
    """Of `make docs`, which also looks at headings, this is what needs no package."""
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#:\s]+)[)#]", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {_name(page) for page in PAGES} - {"README.md"}
