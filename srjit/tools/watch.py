"""``srjit watch``: draws what ``srjit(..., watch="run.jsonl")`` wrote, while it is written too."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from srjit.diagnostics.watch import sinks
from srjit.diagnostics.watch.diagnosis import Diagnosis, diagnosed
from srjit.tools.output import Failure, OutputFile

_CLEAR = "\x1b[2J\x1b[H"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``srjit``.

    Args:
      argv: arguments, without the program's name; those of the process if None.

    Returns:
      The exit status: 0 if all went well.
    """
    options = _parser().parse_args(argv)
    try:
        if options.html:
            output = OutputFile(options.html)
            output.write(_diagnosis(options.file).to_html().encode())
            output.keep()
        while True:
            diagnosis = _diagnosis(options.file)
            text = str(diagnosis) if diagnosis.findings else f"{options.file}: no records yet"
            print(_CLEAR + text if options.follow else text, flush=True)
            if not options.follow:
                return 0
            time.sleep(options.follow)
    except KeyboardInterrupt:
        return 0
    except (Failure, OSError, ValueError) as error:
        print(f"srjit watch: {error}", file=sys.stderr)
        return 1


def _diagnosis(file: str) -> Diagnosis:
    notes: list[str] = []
    records = list(sinks.read(file, notes))
    return diagnosed(records, notes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="srjit", description="Looks at runs of srjit.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    watch = commands.add_parser(
        "watch",
        help="what a run's gradients and their quantization do, and what to do about it",
        description="Draws a file that srjit(..., watch=FILE) writes.",
    )
    watch.add_argument("file", metavar="FILE", help="the JSON-lines file of a run")
    watch.add_argument("--html", metavar="PAGE", help="also writes a page with plots")
    watch.add_argument(
        "--follow",
        metavar="SECONDS",
        type=float,
        nargs="?",
        const=2.0,
        help="draws again and again while the run goes on (every 2 s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
