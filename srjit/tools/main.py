"""``srjit``: one command with all others."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib import metadata

# The module of each command, whether its main takes the command's name too, and what it does.
_COMMANDS = {
    "explain": ("reports", True, "what becomes of every matrix multiplication, and why"),
    "verify": ("reports", True, "whether rounding is unbiased, by many runs"),
    "recommend": ("reports", True, "which recipe a training step can take, by trying"),
    "watch": ("watch", True, "what a run's gradients and their quantization do"),
    "aot": ("aot", False, "what the compiler of a chip that is not attached makes; srjit-aot"),
    "opt": ("opt", False, "runs passes on a module; srjit-opt"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``srjit``.

    Args:
      argv: arguments, without the program's name; those of the process if None.

    Returns:
      The exit status: 0 if all went well, 2 where there is no such command.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if given in (["--version"], ["-V"]):
        print(f"srjit {metadata.version('srjit')}")
        return 0
    if given and given[0] in _COMMANDS:
        module, named, _ = _COMMANDS[given[0]]
        run = importlib.import_module(f"srjit.tools.{module}").main
        return run(given if named else given[1:])
    asked = given in ([], ["-h"], ["--help"])
    out = sys.stdout if asked and given else sys.stderr
    if not asked:
        print(f"srjit: no command {given[0]!r}", file=out)
    print("usage: srjit COMMAND ...; srjit COMMAND --help tells more\n", file=out)
    for name, (_, _, does) in _COMMANDS.items():
        print(f"  {name:<11}{does}", file=out)
    print("\n  --version  prints the version", file=out)
    return 0 if out is sys.stdout else 2


if __name__ == "__main__":
    sys.exit(main())
