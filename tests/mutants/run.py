"""``make mutants``: runs, for each mutant, the tests that must notice it.

JAX is imported once; each mutant then has a process of its own, forked from this one. Prints a line
for each mutant, and fails if one survives: if a test that has to fail passes or does not run, or
fails because the mutant is no program that runs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

import pytest

from compiled_once import share_compiled_programs
from mutants.catalogue import MUTANTS

TESTS = pathlib.Path(__file__).parents[1]
# What the tests import, as far as it does not import srjit.
PRELOADED = ("jax", "jax.experimental.pallas", "ml_dtypes", "scipy.stats", "hypothesis")
# A test that ends so has noticed a misspelt mutant, not a mistake.
NO_PROGRAM = ("NameError", "AttributeError", "ImportError", "SyntaxError")


class _Recorder:
    """Outcomes of tests, by their names; of collection, by the file's."""

    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            if report.outcome != "passed":
                self.outcomes[report.nodeid] = f"{report.outcome} in {report.when}"
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        if report.failed and crash and crash.message.startswith(NO_PROGRAM):
            self.outcomes[report.nodeid] = f"does not run: {crash.message}"
        else:
            self.outcomes[report.nodeid] = report.outcome

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcomes[report.nodeid] = f"not collected: {report.longrepr}"


def outcomes_of(name: str) -> dict[str, str]:
    """Runs here, and never returns from srjit: for a process of its own."""
    os.environ["SRJIT_MUTANT"] = name
    recorder = _Recorder()
    tests = [str(TESTS / test) for test in MUTANTS[name].killed_by]
    options = ["-p", "mutants.plugin", "-p", "no:cacheprovider", "-q", f"--rootdir={TESTS.parent}"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        pytest.main([*options, *tests], plugins=[recorder])
    return {test.partition("tests/")[2]: outcome for test, outcome in recorder.outcomes.items()}


def run(names: Sequence[str], jobs: int) -> Iterator[tuple[str, dict[str, str], float]]:
    """Runs mutants, some at a time: each one's name, the outcomes of its tests, and seconds."""
    waiting, running = list(names), {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, answer = waiting.pop(0), pathlib.Path(folder, str(len(waiting)))
                child = os.fork()
                if not child:
                    try:
                        answer.write_text(json.dumps(outcomes_of(name)), encoding="utf-8")
                    finally:
                        os._exit(0)
                running[child] = name, answer, time.monotonic()
            child, _ = os.wait()
            name, answer, began = running.pop(child)
            outcomes = json.loads(answer.read_text(encoding="utf-8")) if answer.exists() else {}
            yield name, outcomes, time.monotonic() - began


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="MUTANT", help="all of them by default")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in MUTANTS]:
        parser.error(f"no mutants: {', '.join(unknown)}")
    names = options.names or list(MUTANTS)
    share_compiled_programs()
    for module in PRELOADED:
        importlib.import_module(module)
    survived = 0
    for name, outcomes, seconds in run(names, options.jobs):
        expected = MUTANTS[name].killed_by
        alive = {test: outcomes.pop(test, "not run") for test in expected}
        alive = {
            test: outcome for test, outcome in (alive | outcomes).items() if outcome != "failed"
        }
        survived += bool(alive)
        print(f"{'SURVIVED' if alive else 'killed'} in {seconds:4.1f} s: {name}", flush=True)
        for test, outcome in alive.items():
            print(f"    {outcome}: {test}", flush=True)
    print(f"{len(names) - survived} of {len(names)} mutants are killed")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
