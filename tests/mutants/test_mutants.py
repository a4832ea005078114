"""Every planted mistake still has its place in the source, and tests that exist to notice it."""

import pathlib
import subprocess
import sysconfig

import pytest

from mutants.catalogue import MUTANTS

TESTS = pathlib.Path(__file__).parents[1]
RUFF = pathlib.Path(sysconfig.get_path("scripts"), "ruff")


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_has_its_place(name: str):
    mutant = MUTANTS[name]
    module = TESTS.parent.joinpath(*mutant.module.split(".")).with_suffix(".py")
    assert module.read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.killed_by
    for test in mutant.killed_by:
        file, _, function = test.partition("[")[0].partition("::")
        assert f"def {function}(" in (TESTS / file).read_text(encoding="utf-8")


def test_no_mutant_has_a_name_that_its_module_does_not_know(tmp_path: pathlib.Path):
    for number, mutant in enumerate(MUTANTS.values()):
        module = TESTS.parent.joinpath(*mutant.module.split(".")).with_suffix(".py")
        source = module.read_text(encoding="utf-8").replace(mutant.old, mutant.new)
        (tmp_path / f"m{number}_{module.name}").write_text(source, encoding="utf-8")
    undefined_names = [RUFF, "check", "--isolated", "--select=F821", tmp_path]
    checked = subprocess.run(undefined_names, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
