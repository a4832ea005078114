"""The blocks of a page, run as they are printed, and what each of them printed."""

from __future__ import annotations

import dataclasses
import doctest
import re
from pathlib import Path

import fresh

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_END = "-- end of a block --"


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of Python.

    Attributes:
      line: where it begins on its page.
      code: its text.
      shown: the block of text that follows it, which is what it prints; None if there is none.
      not_run: the reason, in its title, for which it is not run.
    """

    line: int
    code: str
    shown: str | None
    not_run: str


def blocks(page: Path) -> list[Block]:
    """The blocks of Python of a page."""
    text = page.read_text(encoding="utf-8")
    found = list(_FENCE.finditer(text))
    made: list[Block] = []
    for fence, after in zip(found, [*found, None][1:], strict=True):
        language, title, code = fence.groups()
        if language == "python":
            follows = after is not None and not text[fence.end() : after.start()].strip()
            shown = after[3] if after is not None and follows and after[1] == "text" else None
            reason = re.search(r'title="not run: (.+)"', title)
            line = text.count("\n", 0, fence.start(3)) + 1
            made.append(Block(line, code, shown, reason[1] if reason else ""))
    return made


def run(page: Path, cwd: Path, **variables: str) -> list[tuple[Block, str]]:
    """Runs a page's blocks in one process of their own; each with what it printed.

    Raises:
      AssertionError: a block raised.
    """
    chosen = [block for block in blocks(page) if not block.not_run]
    parts = [
        f"exec(compile({_in_place(b)!r}, {str(page)!r}, 'exec'), globals())\nprint({_END!r})"
        for b in chosen
    ]
    out = fresh.python("\n".join(parts), cwd=cwd, JAX_PLATFORMS="cpu", **variables).decode()
    return list(zip(chosen, out.split(f"{_END}\n")[:-1], strict=True))


def _in_place(block: Block) -> str:
    """The block's text, below as many empty lines as it has lines above: tracebacks name them."""
    return "\n" * (block.line - 1) + block.code


def differs(block: Block, printed: str) -> str:
    """In words, how a block printed something else than the page shows; ``...`` is anything."""
    checker = doctest.OutputChecker()
    flags = doctest.ELLIPSIS | doctest.REPORT_NDIFF
    if block.shown is None or checker.check_output(block.shown, printed, flags):
        return ""
    return f"line {block.line}: shown, then printed:\n{block.shown}\n{printed}"
