"""The blocks of a page, run as they are printed, and what each of them printed.

A block of ``python`` is a part of one program; the block of ``text`` right after it is what it
prints. In a block of ``console``, a line that begins with ``$`` is a command, and what follows is
what it prints.
"""

from __future__ import annotations

import dataclasses
import doctest
import re
from pathlib import Path

import fresh

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_END = "-- end of a block --"


# What runs a command of a page, in the folder and environment of its program.
_COMMAND = """\
import subprocess, sys
pipe = subprocess.PIPE
done = subprocess.run({command!r}, shell=True, stdout=pipe, stderr=subprocess.STDOUT, text=True)
print(done.stdout, end="")
assert done.returncode == 0, done.stdout
"""


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of Python, or a command of a block for a console.

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
    """The blocks of a page that are run, or that say why they are not."""
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
        if language == "console":
            line = text.count("\n", 0, fence.start(3)) + 1
            for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", code, re.MULTILINE):
                made.append(Block(line, _COMMAND.format(command=command), shown, ""))
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
    """In words, how a block printed something else than the page shows; ``...`` is anything.

    Widths of columns do not count, nor do numbers of the page's own lines.
    """
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if block.shown is None or _CHECKER.check_output(*map(_plain, (block.shown, printed)), flags):
        return ""
    return f"line {block.line}: shown, then printed:\n{block.shown}\n{printed}"


_CHECKER = doctest.OutputChecker()


def _plain(text: str) -> str:
    return re.sub(r"-{9,}", "---", re.sub(r"(?<=\.md:)\d+", "#", text))
