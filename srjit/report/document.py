"""A report as data, which text.py renders for a terminal and page.py for a browser."""

from __future__ import annotations

import abc
import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

Shown = Literal["everywhere", "terminal", "page"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes:
      name: its header.
      narrows: how its cells fit a narrow terminal: not at all, by leaving out their middles, or by
        taking several lines.
      align: where its cells stand.
      shown: whether only terminals or only pages have it.
    """

    name: str
    narrows: Literal["never", "middle", "lines"] = "never"
    align: Literal["left", "right"] = "left"
    shown: Shown = "everywhere"


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      cells: one for each column.
      kind: the kind of row, which colours it on a page.
      group: rows of one group stand together, apart from those of others.
    """

    cells: Sequence[str]
    kind: str = ""
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, which is left out where it has no rows.

    Attributes:
      columns: names, or columns that need more than a name.
      rows: cells in the order of the columns.
      legend: what its marks mean.
    """

    columns: Sequence[str | Column]
    rows: Sequence[Row]
    legend: str = ""

    def columns_of(self, shown: Shown) -> list[tuple[int, Column]]:
        """Returns the columns that a terminal or a page has, with their positions among cells."""
        columns = [Column(name=c) if isinstance(c, str) else c for c in self.columns]
        return [(i, c) for i, c in enumerate(columns) if c.shown in ("everywhere", shown)]

    def groups(self) -> list[list[Row]]:
        """Returns the rows, group by group."""
        return [list(rows) for _, rows in itertools.groupby(self.rows, key=lambda row: row.group)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A report: a title, a sentence, tables, notes, and curves for pages."""

    title: str
    lead: str
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    curves: Sequence[tuple[str, Sequence[float]]] = ()


class Documented(abc.ABC):
    """Something that shows itself as text in a terminal and as a page in a notebook."""

    @abc.abstractmethod
    def document(self) -> Document:
        """Returns the report as data."""

    def __str__(self) -> str:
        from srjit.report.text import text

        return text(self.document())

    def to_html(self) -> str:
        """Returns the report as one HTML page, which needs nothing from elsewhere."""
        from srjit.report.page import page

        return page(self.document())

    def _repr_html_(self) -> str:
        return self.to_html()


def as_json(value: Any) -> str:
    """Returns a value as JSON text, in which numbers that are not finite are null."""
    return json.dumps(finite(value), indent=1, allow_nan=False, default=str)


def finite(value: Any) -> Any:
    """Returns a value with None for numbers that are not finite, and keys that are text."""
    if isinstance(value, dict):
        return {str(k): finite(v) for k, v in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(value, float) and not math.isfinite(value) else value
