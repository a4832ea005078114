"""Sinks for the records of a watched program: files, and TensorBoard."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srjit.report.document import finite

if TYPE_CHECKING:
    from srjit.diagnostics.watch.stream import Record


class JsonLines:
    """Appends records to a file, a JSON object a line; what is not finite is null."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8", buffering=1)

    def __call__(self, record: Record) -> None:
        """Writes one."""
        fields = finite(record.to_dict())
        self._file.write(json.dumps(fields, allow_nan=False) + "\n")


def read(path: str | os.PathLike[str]) -> Iterator[Record]:
    """The records of a JSON-lines file; a last line that is still being written is left out.

    A figure that was not finite is NaN.

    Raises:
      ValueError: a line is no record.
    """
    from srjit.diagnostics.watch.stream import Record

    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                fields: dict[str, Any] = dict(json.loads(line))
                fields |= {k: math.nan for k, v in fields.items() if v is None}
                fields["where"] = tuple(fields["where"])
                yield Record.from_dict(fields)
            except (TypeError, ValueError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: not a record of srjit: {error}") from None


class TensorBoard:
    """Writes the figures of records as scalars that TensorBoard shows: ``srjit/<site>/<figure>``.

    Raises:
      ImportError: tensorboardX, which writes the files, is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from tensorboardX import SummaryWriter  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError(
                "watching with TensorBoard needs: pip install tensorboardX"
            ) from error
        self._writer: Any = SummaryWriter(str(folder), flush_secs=10)

    def __call__(self, record: Record) -> None:
        """Writes one."""
        for figure in (*record.figures, "ratio"):
            tag = f"srjit/{record.name}/{figure}"
            self._writer.add_scalar(tag, getattr(record, figure), record.step)

    def close(self) -> None:
        """Writes what is not written yet; that happens by itself every 10 seconds."""
        self._writer.close()
