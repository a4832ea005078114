"""A report as data, which text.py renders for a terminal and page.py for a browser."""

from __future__ import annotations

import abc
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
U = TypeVar("U")


@dataclasses.dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table.

    Attributes:
      name: its header.
      cell: makes its cell of what a row is about.
      narrows: how its cells fit a narrow terminal: not at all, by leaving out their middles, or by
        taking several lines.
      align: where its cells stand.
      only: whether only terminals or only pages have it.
    """

    name: str
    cell: Callable[[T], str]
    narrows: Literal["never", "middle", "lines"] = "never"
    align: Literal["left", "right"] = "left"
    only: Literal["terminal", "page"] | None = None

    def of(self, part: Callable[[U], T]) -> Column[U]:
        """Returns the column for rows of which ``part`` is what this one is about."""
        return Column(self.name, lambda u: self.cell(part(u)), self.narrows, self.align, self.only)


@dataclasses.dataclass(frozen=True)
class Table(Generic[T]):
    """A table, which is left out where it has no rows.

    Attributes:
      columns: from left to right.
      rows: what each row is about.
      kind: tells what kind of row it is, which colours it on a page.
      group: tells where a row belongs: rows of one group stand together, apart from others.
      legend: what marks in it mean.
    """

    columns: Sequence[Column[T]]
    rows: Sequence[T]
    kind: Callable[[T], str] = lambda _: ""
    group: Callable[[T], str] = lambda _: ""
    legend: str = ""

    def shown(self, where: Literal["terminal", "page"]) -> list[Column[T]]:
        """Returns the columns that a terminal or a page has."""
        return [column for column in self.columns if column.only in (None, where)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """A report: a title, a sentence, tables, notes, and curves for pages."""

    title: str
    lead: str
    tables: Sequence[Table[Any]] = ()
    notes: Sequence[str] = ()
    curves: Sequence[tuple[str, Sequence[float]]] = ()


class Documented(abc.ABC):
    """Something that shows itself as text in a terminal and as a page in a notebook."""

    @abc.abstractmethod
    def document(self) -> Document:
        """Returns the report as data."""

    def short(self) -> Document:
        """Returns the report as data, with one row for all that are alike where there are many."""
        return self.document()

    def text(self, *, full: bool = False) -> str:
        """Returns the report for a terminal, as ``str()`` does.

        Args:
          full: every row, also where many are alike.
        """
        from srjit.report.text import text

        return text(self.document() if full else self.short())

    def __str__(self) -> str:
        return self.text()

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
