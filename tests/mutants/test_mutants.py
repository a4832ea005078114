"""Every planted mistake still has its place in the source, and tests that exist to notice it."""

import pathlib

import pytest

from mutants.catalogue import MUTANTS

TESTS = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_has_its_place(name: str):
    mutant = MUTANTS[name]
    module = TESTS.parent.joinpath(*mutant.module.split(".")).with_suffix(".py")
    assert module.read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.killed_by
    for test in mutant.killed_by:
        file, _, function = test.partition("[")[0].partition("::")
        assert f"def {function}(" in (TESTS / file).read_text(encoding="utf-8")
