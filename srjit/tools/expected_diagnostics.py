"""``--verify-diagnostics``: the diagnostics that a test file expects, in MLIR's notation.

A comment ``expected-error {{text}}`` at the end of a line expects an error on that line whose
message contains the text; ``warning``, ``remark`` and ``note`` are the others. ``@+1``, ``@-2``,
``@above``, ``@below`` and ``@unknown`` move the place. In ``expected-error-re {{a {{[0-9]+}} b}}``
inner braces hold regular expressions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator

from srjit.passes.driver.diagnostics import Diagnostic

_COMMENT = re.compile(
    r"expected-(?P<severity>error|note|remark|warning)(?P<regex>-re)? *"
    r"(@(?P<where>[+-]\d+|above|below|unknown))? *\{\{(?P<text>.*)\}\}$"
)
_UNKNOWN = 0


@dataclasses.dataclass(frozen=True)
class Expected:
    """A diagnostic that has to come.

    Attributes:
      severity: its kind.
      text: as the file has it.
      pattern: what its message has to contain.
      line: where it has to be; 0 where nothing tells.
      written: the line of the comment.
    """

    severity: str
    text: str
    pattern: re.Pattern[str]
    line: int
    written: int


def expectations(source: str, first_line: int = 1) -> list[Expected]:
    """The diagnostics that the comments of a file expect.

    Args:
      source: the file, or a part of it.
      first_line: the number of its first line.
    """
    found: list[Expected] = []
    waiting: list[Expected] = []
    above = first_line
    for number, line in enumerate(source.split("\n"), first_line):
        comment = _COMMENT.search(line.rstrip())
        if comment is None:
            found += [dataclasses.replace(one, line=number) for one in waiting]
            waiting.clear()
            above = number
            continue
        where = comment["where"] or "+0"
        at = {"above": above, "below": number, "unknown": _UNKNOWN}
        expected = Expected(
            comment["severity"],
            comment["text"],
            _pattern(comment["text"], is_regex=bool(comment["regex"])),
            at[where] if where in at else number + int(where),
            number,
        )
        (waiting if where == "below" else found).append(expected)
    return found + waiting


def _pattern(text: str, *, is_regex: bool) -> re.Pattern[str]:
    if not is_regex:
        return re.compile(re.escape(text))
    parts = re.split(r"\{\{(.*?)\}\}", text)
    return re.compile("".join(p if i % 2 else re.escape(p) for i, p in enumerate(parts)))


def complaints(
    expected: Iterable[Expected],
    said: Iterable[Diagnostic],
    files: Iterable[str],
    *,
    ignore_unexpected: bool,
) -> list[tuple[int, str]]:
    """Lines and messages for what was expected and did not come, and for what came unexpected.

    Args:
      expected: what has to come.
      said: what came.
      files: the names that the file goes by; diagnostics elsewhere have no line.
      ignore_unexpected: what came unexpected is no fault.
    """
    names, left = set(files), list(expected)
    wrong: list[tuple[int, str]] = []
    for diagnostic in _with_notes(said):
        line = diagnostic.line if diagnostic.file in names else _UNKNOWN
        here = [e for e in left if e.line == line and e.pattern.search(diagnostic.message)]
        same = next((e for e in here if e.severity == diagnostic.severity), None)
        if same is not None:
            left.remove(same)
        elif here:
            left.remove(here[0])
            was = f"{diagnostic.severity!r} diagnostic where {here[0].severity!r} is expected"
            wrong.append((line, f"{was}: {diagnostic.message}"))
        elif not ignore_unexpected:
            wrong.append((line, f"unexpected {diagnostic.severity}: {diagnostic.message}"))
    missing = [(e.written, f'expected {e.severity} "{e.text}" was not produced') for e in left]
    return wrong + missing


def _with_notes(said: Iterable[Diagnostic]) -> Iterator[Diagnostic]:
    for diagnostic in said:
        yield diagnostic
        # MLIR's own tools turn these notes off here, which the bindings cannot.
        notes = [n for n in diagnostic.notes if not n.message.startswith("see current operation")]
        yield from _with_notes(notes)
