"""The tests notice every planted mistake: for each of them, the tests that it names fail."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mutants.catalogue import MUTANTS

TESTS = pathlib.Path(__file__).parents[1]
GROUPS = sorted({mutant.group for mutant in MUTANTS.values()})


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_has_its_place(name: str):
    module = TESTS.parent.joinpath(*MUTANTS[name].module.split(".")).with_suffix(".py")
    assert module.read_text(encoding="utf-8").count(MUTANTS[name].old) == 1


@pytest.mark.nightly
@pytest.mark.parametrize("group", GROUPS)
def test_every_mutant_is_killed(group: str):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), inherited.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-m", "mutants.run", group],
        env=inherited | {"PYTHONPATH": path},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    alive = {
        name: {test: found[name].get(test, "not run") for test in mutant.killed_by}
        for name, mutant in MUTANTS.items()
        if mutant.group == group and found[name] != dict.fromkeys(mutant.killed_by, "failed")
    }
    assert not alive, f"{json.dumps(alive, indent=2)}\n{run.stderr}"
