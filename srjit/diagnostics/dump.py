"""``SRJIT_DUMP_TO``: the program after every stage, numbered in order."""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

_count = itertools.count()
_lock = threading.Lock()


class Dump:
    """Writes numbered files for one function; does nothing without a folder."""

    def __init__(self, folder: str | os.PathLike[str] | None, name: str) -> None:
        self.folder = Path(folder) if folder else None
        self.name = re.sub(r"\W+", "_", name).strip("_") or "function"
        self.written = 0

    def __bool__(self) -> bool:
        return self.folder is not None

    def write(self, stage: str, text: Callable[[], str]) -> None:
        """Writes ``NNNN.function.stage``; an unwritable folder is an OSError that names it."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.written += 1
        with _lock:
            number = next(_count)
        (self.folder / f"{number:04d}.{self.name}.{stage}").write_text(text())
