"""Progress of work that takes minutes, on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")
VARIABLE = "SRJIT_PROGRESS"


def progress(items: Sequence[T], what: str) -> Iterator[T]:
    """Yields the items, and shows on a terminal how many are done and how long the rest takes.

    Nothing is shown where standard error is no terminal, or ``SRJIT_PROGRESS`` is 0. What was shown
    is wiped at the end, also where the work is interrupted.

    Args:
      items: of the work.
      what: names the work.
    """
    if os.environ.get(VARIABLE) == "0" or not sys.stderr.isatty():
        yield from items
        return
    console = Console(file=sys.stderr)
    yield from track(items, f"srjit: {what}", console=console, transient=True)
