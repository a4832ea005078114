"""Sinks for the records of a watched program: files, and TensorBoard."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from srjit.diagnostics.watch.appending import Lines
from srjit.planning.site import listed
from srjit.report.document import finite

if TYPE_CHECKING:
    from srjit.diagnostics.watch.stream import Record


class JsonLines:
    """Appends records to a file, a JSON object a line; what is not finite is null.

    Of a run of several processes the first one writes. See ``Lines`` for what becomes of a file
    that another run has left.

    Raises:
      OSError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lines = Lines.of(path)
        self.path = self._lines.path

    def __call__(self, record: Record) -> None:
        """Writes one."""
        if jax.process_index() == 0:
            self._lines.write(json.dumps(finite(record.to_dict()), allow_nan=False))

    def next_step(self) -> int:
        """The step after the last one in the file."""
        try:
            return int(json.loads(self._lines.last() or "")["step"]) + 1
        except (TypeError, ValueError, KeyError):
            return 0


def read(path: str | os.PathLike[str], notes: list[str] | None = None) -> Iterator[Record]:
    """The records of a JSON-lines file, without lines that are torn.

    A figure that was not finite is NaN.

    Args:
      path: of the file.
      notes: gets what there is to say of the file; if None, torn lines are warned of, unless it is
        the last one, which may be one that is being written.

    Raises:
      ValueError: a line is no record, or no line is.
    """
    from srjit.diagnostics.watch.stream import Record

    torn: list[int] = []
    found = 0
    last = ""
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                last = f"line {number}, the last one, is not whole: it is being written, or torn"
                break
            try:
                given = json.loads(line)
            except (ValueError, RecursionError):
                torn.append(number)
                continue
            try:
                fields: dict[str, Any] = dict(given)
                fields |= {k: math.nan for k, v in fields.items() if v is None}
                fields["where"] = tuple(fields["where"])
                record = Record.from_dict(fields)
            except (TypeError, ValueError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: not a record of srjit: {error}") from None
            found += 1
            yield record
    if torn and not found:
        raise ValueError(f"{path}, line {torn[0]}: not a record of srjit: it is not JSON")
    lines = listed([str(n) for n in torn], 6)
    said = f"{path}: torn lines are left out: {lines}" if torn else ""
    if notes is not None:
        notes += [s for s in (said, last) if s]
    elif said:
        warnings.warn(said, stacklevel=2)


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
        """Writes one; of a run of several processes, the first one does."""
        if jax.process_index():
            return
        for figure in (*record.figures, "ratio"):
            tag = f"srjit/{record.name}/{figure}"
            self._writer.add_scalar(tag, getattr(record, figure), record.step)

    def close(self) -> None:
        """Writes what is not written yet; that happens by itself every 10 seconds."""
        self._writer.close()
