"""``SRJIT_DUMP_TO``: the program after every stage, numbered in order."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

VARIABLE = "SRJIT_DUMP_TO"
_numbers = itertools.count()  # of all functions together: files sort in the order of events


class Dump:
    """Writes numbered files for one function.

    Attributes:
      written: how many so far.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str) -> None:
        self.folder = Path(folder)
        self.name = re.sub(r"\W+", "_", name).strip("_") or "function"
        self.written = 0

    def write(self, stage: str, text: str) -> None:
        """Writes ``NNNN.function.stage``.

        Raises:
          OSError: the folder cannot be made or written to; the message names it.
        """
        self.written += 1
        stage = re.sub(r"[^\w.,()-]+", "_", stage)
        path = self.folder / f"{next(_numbers):04d}.{self.name}.{stage}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            reason = f"srjit cannot dump to {self.folder} (dump_to or {VARIABLE}): {error.strerror}"
            raise type(error)(error.errno, reason, str(path)) from error
