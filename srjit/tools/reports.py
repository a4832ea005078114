"""``srjit explain``, ``verify`` and ``recommend``: reports of a function, from a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from srjit.api.recommend import recommend
from srjit.api.transformation import UnsupportedSiteError
from srjit.tools.functions import (
    arguments_of,
    function_of,
    takes_function,
    takes_output,
    target_of,
    without_accelerators,
    write,
)
from srjit.tools.output import Failure, OutputFile

_COMMANDS = {
    "explain": "Reports every matrix multiplication of a function: what it becomes, and why.",
    "verify": "Runs a function many times, and tests that its rounding is unbiased.",
    "recommend": "Trains with recipes for some steps each, and recommends one.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one of the commands.

    Args:
      argv: the command and its arguments; those of the process if None.

    Returns:
      The exit status: 0 if all went well; 1 also where ``verify`` finds a defect.
    """
    options = _parser().parse_args(argv)
    try:
        OutputFile(options.output)  # can it be written? The work takes long
        return {"explain": _explain, "verify": _verify, "recommend": _recommend}[options.command](
            options
        )
    except (Failure, UnsupportedSiteError, ValueError) as error:
        print(f"srjit {options.command}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("srjit", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {
        name: commands.add_parser(
            name, help=said, description=said, epilog=_EXAMPLES[name], allow_abbrev=False
        )
        for name, said in _COMMANDS.items()
    }
    for name, command in made.items():
        takes_function(command, shapes=name == "explain")
        takes_output(command)
    made["explain"].add_argument(
        "--all", action="store_true", help="a row for each site, also where layers are alike"
    )
    made["verify"].add_argument(
        "--draws", type=int, default=256, metavar="N", help="how often it runs (256)"
    )
    recommending = made["recommend"].add_argument
    recommending("--budget", type=int, default=32, metavar="N", help="steps of each recipe (32)")
    recommending("--recipes", metavar="NAMES", help="which to try: int8,nvfp4 (all)")
    return parser


_EXAMPLES = {
    "explain": "example: srjit explain steps:train_step --args 'f32[64,64] f32[32,64]' "
    "--recipe int8",
    "verify": "example: srjit verify steps:train_step --example steps:arguments --recipe nvfp4",
    "recommend": "example: srjit recommend steps:train_step --example steps:arguments --budget 8",
}


def _explain(options: argparse.Namespace) -> int:
    without_accelerators()
    fun = function_of(options)
    if options.target:
        fun = fun.copy(target=target_of(options, fun))
    report = fun.explain(*arguments_of(options, fun, None))
    write(report, report.text(full=options.all), options)
    return 0


def _verify(options: argparse.Namespace) -> int:
    fun = function_of(options)
    certificate = fun.verify(*arguments_of(options, fun, None), draws=options.draws)
    write(certificate, str(certificate), options)
    return 0 if certificate.passed or certificate.by_design else 1


def _recommend(options: argparse.Namespace) -> int:
    fun = function_of(options)
    evidence = recommend(
        fun,
        *arguments_of(options, fun, None),
        budget=options.budget,
        recipes=options.recipes.split(",") if options.recipes else None,
        target=target_of(options, fun),
    )
    write(evidence, str(evidence), options)
    return 0
