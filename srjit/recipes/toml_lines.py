"""The lines on which the keys of a TOML text stand: Python's parser does not tell."""

from __future__ import annotations

import dataclasses
import itertools
import re

_KEY = r"""(?:[\w-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_TOKEN = re.compile(
    rf"""#[^\n]*|\"\"\"(?:\\.|[^\\])*?\"\"\"|\'\'\'.*?\'\'\'|{_KEY}|[\[\]{{}}=,\n]""", re.DOTALL
)


@dataclasses.dataclass
class _Inline:
    """An inline table (``index`` is None), or an array with the index of the element at hand."""

    path: tuple[str, ...]
    index: int | None = None


class TomlLines:
    """Where the keys of a TOML text stand: the parser does not tell."""

    def __init__(self, text: str) -> None:
        self.found: list[tuple[tuple[str, ...], int]] = []
        table: tuple[str, ...] = ()
        inside: list[_Inline] = []
        keys: list[str] | None = []  # None: where a value stands
        header, rules = "", 0
        path: tuple[str, ...] = ()  # of the value
        for match in _TOKEN.finditer(text):
            token, number = match[0], 1 + text.count("\n", 0, match.start())
            if token == "\n":
                keys, header = keys if inside else [], ""
            elif token == "[" and keys is not None:
                header += "["
            elif token == "]" and header and keys:
                rules += header == "[["
                table = tuple(keys)
                if table[0] == "rule" and rules:
                    table = ("rule", str(rules - 1), *table[1:])
                self.found.append((table, number))
                keys, header = None, ""
            elif token == "=" and keys:
                path = (*(inside[-1].path if inside else table), *keys)
                self.found.append((path, number))
                keys = None
            elif token in ("[", "{"):
                if inside and (index := inside[-1].index) is not None:
                    path = (*inside[-1].path, str(index))
                    self.found.append((path, number))
                inside.append(_Inline(path, 0 if token == "[" else None))
                keys = [] if token == "{" else None
            elif token in ("]", "}") and inside:
                inside.pop()
                keys = None
            elif token == "," and inside:
                if inside[-1].index is None:
                    keys = []
                else:
                    inside[-1].index += 1
            elif keys is not None and token[0] != "#":
                keys.append(token.strip("\"'"))

    def find(self, where: tuple[str, ...]) -> int:
        """The line of the key at ``where``, or of what it would stand in."""

        def common(path: tuple[str, ...]) -> int:
            pairs = zip(path, where, strict=False)
            return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

        best = max(self.found, key=lambda entry: common(entry[0]), default=((), 1))
        return best[1] if common(best[0]) else 1
