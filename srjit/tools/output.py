"""Outputs of command lines."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from srjit.passes.mlir.serialization import replace_file


class Failure(Exception):
    """A request that cannot be met; the command line says why and fails."""


class OutputError(Failure):
    """The output cannot be written; the message says where the result is, if there is one."""


class OutputFile:
    """An output: standard output at once, a file only when everything went well.

    A file's old content stays until then, and if it cannot be written after all, the result goes to
    a temporary file.
    """

    def __init__(self, name: str) -> None:
        self.name, self.parts = name, list[bytes]()
        # Before the work rather than after it.
        if self.name != "-":
            path = Path(self.name)
            folder = path.resolve().parent
            if path.is_dir():
                self._refuse("it is a folder")
            if not folder.is_dir():
                self._refuse(f"there is no folder {str(folder)!r}")
            if not os.access(path if path.exists() else folder, os.W_OK):
                self._refuse("permission denied")

    def write(self, data: bytes) -> None:
        """Adds to the output."""
        if self.name == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            self.parts.append(data)

    def keep(self) -> None:
        """Writes the file."""
        if self.name == "-":
            return
        data = b"".join(self.parts)
        path = Path(os.path.realpath(self.name))
        try:
            if path.exists() and not path.is_file():  # a device or a pipe
                path.write_bytes(data)
            else:
                replace_file(path, data)
        except OSError as error:
            with tempfile.NamedTemporaryFile("wb", prefix="srjit-opt-", delete=False) as saved:
                saved.write(data)
            self._refuse(f"{error.strerror}; the result is in {saved.name!r}")

    def _refuse(self, reason: str) -> NoReturn:
        raise OutputError(f"cannot write {self.name!r}: {reason}")
