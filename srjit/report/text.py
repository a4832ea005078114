"""Reports as plain text, as wide as the terminal is: without colours, the same in a pipe."""

from __future__ import annotations

import dataclasses
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.box import Box
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from srjit.report.document import Document, Table

_WIDTH = 100  # where nothing says how wide the terminal is
_NARROWEST = 12  # that a column is made
_GAP = 2  # between columns
# Control characters, marks that turn the direction of text around, and what is no character.
_OBEYED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_RULE = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)  # under the header


def text(document: Document) -> str:
    """Returns a report for a terminal, whose width ``COLUMNS`` overrides."""
    width = shutil.get_terminal_size((_WIDTH, 24)).columns
    first = _wrapped([f"srjit: {document.title}: {document.lead}"], width)
    tables = [_table(t, width) + _wrapped([t.legend], width) for t in document.tables if t.rows]
    first += tables.pop(0) if tables else []
    blocks = [first, *tables, _wrapped(document.notes, width)]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def printable(text: str) -> str:
    """Returns text with an escape in place of every character that a terminal obeys."""
    return _OBEYED.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def _wrapped(sentences: Sequence[str], width: int) -> list[str]:
    wrapper = textwrap.TextWrapper(max(width, 40), subsequent_indent="  ", break_on_hyphens=False)
    return [line for s in sentences for line in wrapper.wrap(printable(" ".join(s.split())))]


def _table(table: Table[Any], width: int) -> list[str]:
    columns = table.shown("terminal")
    made = RichTable(box=_RULE, show_edge=False, padding=(0, 1, 0, 0))
    cells = [[printable(column.cell(row)) for row in table.rows] for column in columns]
    least = -_GAP
    for column, texts in zip(columns, cells, strict=True):
        name = printable(column.name)
        longest = max(map(len, (name, *texts)))
        narrowest = longest if column.narrows == "never" else min(longest, _NARROWEST)
        made.add_column(
            Text(name),
            justify=column.align,
            overflow="fold",
            no_wrap=column.narrows == "never",
            min_width=narrowest,
        )
        least += narrowest + _GAP
    shown = [_Shortened if column.narrows == "middle" else Text for column in columns]
    groups = [table.group(row) for row in table.rows]
    for group, after, row in zip(groups, [*groups[1:], ""], zip(*cells, strict=True), strict=True):
        made.add_row(*(show(text) for show, text in zip(shown, row, strict=True)))
        if group != after:
            made.add_section()
    # What cannot be narrower is not. The space after the last column is left out here: told to do
    # so, Rich fills that column one character too wide, and cuts the character off.
    console = Console(width=max(width, least) + 1, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(made)
    return [line[:-1].rstrip() for line in captured.get().splitlines()]


@dataclasses.dataclass(frozen=True)
class _Shortened:
    """A cell that loses its middle where it does not fit: a path tells most at its end."""

    content: str

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = len(self.content)
        return Measurement(min(longest, _NARROWEST), longest)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        content, width = self.content, options.max_width
        if len(content) > width:
            head = (width - 2) // 3
            content = f"{content[:head]}..{content[head + 2 - width :]}"
        yield Text(content, no_wrap=True, end="")
