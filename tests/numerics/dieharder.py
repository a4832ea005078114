"""Robert G. Brown's dieharder (Debian: dieharder) over the noise's streams.

``python tests/numerics/dieharder.py [--all] [STREAM ...]`` prints a table of p-values. A test whose
p-value is weak is run again, on other keys; it has failed if it is then below 1e-6, on either side.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PROGRAM = shutil.which("dieharder")
STREAMS = pathlib.Path(__file__).with_name("streams.py")
WEAK, FAILED = 0.005, 1e-6

# Numbers of tests with their n-tuples, if any; dieharder -l names them. Two seconds each.
QUICK = ["0", "8", "11", "15", "100"]
# A minute at most each, so neither the GCD test (17) nor minimum distances in four dimensions.
ALL = [
    *("0", "1", "2", "3", "4", "8", "9", "10", "11", "12", "13", "15", "16", "100", "101", "102"),
    *(f"200 -n {n}" for n in (1, 2, 4, 8, 12)),
    *(f"201 -n {n}" for n in (2, 3)),
    *(f"202 -n {n}" for n in (3, 4, 5)),
    *(f"203 -n {n}" for n in (0, 1, 7, 15)),
    *("204", "205", "206", "207", "208", "209", "6"),
]


class Result(NamedTuple):
    test: str
    n: str
    p: float

    @property
    def two_sided(self) -> float:
        """p's distance from the nearer end: results can also be too good."""
        return min(self.p, 1 - self.p)


def run(stream: str, seed: int, test: str, *options: str) -> list[Result]:
    """One test, which may have several results, on a stream of its own."""
    if not PROGRAM:
        raise FileNotFoundError("dieharder is not installed: apt install dieharder")
    writer = subprocess.Popen(
        [sys.executable, str(STREAMS), stream, str(seed)], stdout=subprocess.PIPE
    )
    columns = [word for name in ("test_name", "ntuple", "pvalues") for word in ("-D", name)]
    command = [PROGRAM, "-g", "200", "-d", *test.split(), *options, *columns]
    report = subprocess.run(
        command, stdin=writer.stdout, capture_output=True, text=True, check=True
    )
    writer.stdout.close()
    writer.wait()
    rows = [line.split("|") for line in report.stdout.splitlines() if "|" in line]
    return [Result(name.strip(), n.strip(), float(p)) for name, n, p, *_ in rows]


def results(stream: str, tests: Sequence[str], seed: int = 1) -> Iterator[tuple[Result, bool]]:
    """Every result, and whether it stands for a failure: weak, then all but impossible."""
    for number, test in enumerate(tests):
        first = run(stream, 1000 * seed + number, test)
        weak = [i for i, result in enumerate(first) if result.two_sided < WEAK]
        again = run(stream, 1000 * seed + 500 + number, test) if weak else []
        for i, result in enumerate(first):
            yield result, i in weak and again[i].two_sided < FAILED
            if i in weak:
                yield again[i], again[i].two_sided < FAILED


def main() -> None:
    from streams import STREAMS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("streams", nargs="*", metavar="STREAM", help=", ".join(STREAMS))
    parser.add_argument("--all", action="store_true", help="some minutes a stream, not seconds")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    bad = 0
    for stream in options.streams or STREAMS:
        for result, failed in results(stream, ALL if options.all else QUICK, options.seed):
            verdict = "FAILED" if failed else "weak" if result.two_sided < WEAK else ""
            print(
                f"{stream:16}{result.test:24}{result.n:>4}  {result.p:.8f}  {verdict}", flush=True
            )
            bad += failed
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
