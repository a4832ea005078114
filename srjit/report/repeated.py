"""Rows of a report that are alike but for numbers in their paths, as the layers of a model are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
_NUMBER = re.compile(r"\d+")
_LISTED = 3  # numbers of a path that are listed one by one


@dataclasses.dataclass(frozen=True)
class Repeated(Generic[T]):
    """Rows that are alike.

    Attributes:
      rows: one at least, in the order of the report.
      path: of all of them: ``block_{0..47}/mlp``.
    """

    rows: tuple[T, ...]
    path: str

    @property
    def first(self) -> T:
        """The first of the rows."""
        return self.rows[0]


def repeated(
    rows: Iterable[T], path: Callable[[T], str], alike: Callable[[T], Hashable]
) -> list[Repeated[T]]:
    """Joins rows that are alike, and whose paths differ in numbers at most.

    Args:
      rows: of a table.
      path: tells where a row is.
      alike: tells the rest; rows for which it is equal are alike.

    Returns:
      One for all rows that are alike, in the order of the first of each.
    """
    found: dict[Hashable, list[T]] = {}
    for row in rows:
        found.setdefault((_NUMBER.sub("#", path(row)), alike(row)), []).append(row)
    return [Repeated(tuple(same), _joined([path(r) for r in same])) for same in found.values()]


def _joined(paths: Sequence[str]) -> str:
    """One path for several that differ in numbers at most."""
    texts = _NUMBER.split(paths[0])
    places = zip(*(map(int, _NUMBER.findall(p)) for p in paths), strict=True)
    numbers = [_range(sorted(set(values))) for values in places]
    return "".join(part for pair in zip(texts, [*numbers, ""], strict=True) for part in pair)


def _range(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    if first == last:
        return str(first)
    if len(numbers) > _LISTED and len(numbers) == last - first + 1:
        return f"{{{first}..{last}}}"
    shown = [str(n) for n in numbers[:_LISTED]]
    return f"{{{','.join([*shown, '...'] if len(numbers) > _LISTED + 1 else map(str, numbers))}}}"
