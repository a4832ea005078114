"""``python -m mutants.run GROUP``: runs the tests that must notice each mutant of a group.

JAX is imported once; each mutant then has a process of its own, forked from this one. Prints JSON:
for each mutant, the outcome of each test, or what went wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import sys
import tempfile

import jax
import jax.experimental
import ml_dtypes
import pytest
import scipy.stats

from mutants.catalogue import MUTANTS

PRELOADED = (jax, ml_dtypes, scipy.stats)
TESTS = pathlib.Path(__file__).parents[1]


class _Recorder:
    """Outcomes of tests, by their names; of collection, by the file's."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            outcome = (
                report.outcome if report.when == "call" else f"{report.outcome} in {report.when}"
            )
            self.outcomes[report.nodeid] = outcome

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = f"not collected: {report.longrepr}"


def outcomes_of(name: str) -> dict[str, str]:
    """Runs here, and never returns from srjit: for a process of its own."""
    os.environ["SRJIT_MUTANT"] = name
    recorder = _Recorder()
    tests = [str(TESTS / test) for test in MUTANTS[name].killed_by]
    options = [
        "-p",
        "mutants.plugin",
        "-p",
        "no:cacheprovider",
        "--tb=no",
        "-q",
        f"--rootdir={TESTS.parent}",
    ]
    with contextlib.redirect_stdout(sys.stderr):
        pytest.main([*options, *tests], plugins=[recorder])
    return {test.partition("tests/")[2]: outcome for test, outcome in recorder.outcomes.items()}


def in_a_process(name: str) -> dict[str, str]:
    """``outcomes_of``, forked."""
    with tempfile.NamedTemporaryFile("r") as answer:
        child = os.fork()
        if not child:
            try:
                pathlib.Path(answer.name).write_text(json.dumps(outcomes_of(name)))
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return json.loads(answer.read() or "{}")


if __name__ == "__main__":
    group = [name for name, mutant in MUTANTS.items() if mutant.group == sys.argv[1]]
    print(json.dumps({name: in_a_process(name) for name in group}))
