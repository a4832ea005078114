"""A file that a run appends lines to, and that outlives the run: torn lines, locks, removal."""

from __future__ import annotations

import errno
import json
import os
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None

_BLOCK = 2**16
_OPEN: weakref.WeakValueDictionary[str, Lines] = weakref.WeakValueDictionary()


class Lines:
    """Appends whole lines to a file that one process at a time writes.

    What a run that was killed has left of its last line is taken out. A file that has vanished is
    made anew. Both are warned of. Functions of one process may write the same file: see ``of``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None
        self._writing = threading.Lock()
        os.close(self._descriptor())  # says at once if it cannot be written

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> Lines:
        """The one object of this process for a file.

        Raises:
          OSError: the file cannot be written.
        """
        name = os.path.realpath(path)
        found = _OPEN.get(name)
        if found is None:
            found = _OPEN[name] = cls(Path(name))
        return found

    def write(self, line: str) -> None:
        """Appends a line.

        Raises:
          OSError: it cannot be written, or another process writes the file.
        """
        with self._writing:
            said = self._ready()
            assert self._fd is not None
            data = f"{line}\n".encode()
            try:
                whole = os.write(self._fd, data) == len(data)
            except OSError:
                self.close()
                raise
            if not whole:
                self.close()  # and mended when it is opened again
                raise OSError(
                    errno.ENOSPC, "only a part of a line could be written", str(self.path)
                )
        if said:
            warnings.warn(f"{self.path}: {said}", stacklevel=2)

    def last(self) -> str | None:
        """The last whole line, if there is one."""
        try:
            with self.path.open("rb") as file:
                ends = _newlines_from_the_end(file.fileno())
                end = next(ends, None)
                if end is None:
                    return None
                start = next(ends, -1) + 1
                return os.pread(file.fileno(), end - start, start).decode(errors="replace")
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """Lets other processes write."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    __del__ = close

    def _descriptor(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)

    def _ready(self) -> str:
        """Opens the file unless it is open; returns what there is to say of it."""
        has_vanished = self._fd is not None and not self._is_there(self._fd)
        if has_vanished:
            self.close()
        if self._fd is not None:
            return ""
        fd = self._descriptor()
        try:
            self._lock(fd)
            said = _mended(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        return "the file of a watched run has vanished; it is made anew" if has_vanished else said

    def _is_there(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(fd))
        except FileNotFoundError:
            return False

    def _lock(self, fd: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(
                f"{self.path}: another process is writing the records of its run there: "
                "give each run a file of its own"
            ) from None
        except OSError:
            return  # file systems without locks


def _mended(fd: int) -> str:
    """Takes out what is left of a line that is not whole; returns what there is to say of it."""
    size = os.fstat(fd).st_size
    start = next(_newlines_from_the_end(fd), -1) + 1
    if start == size:
        return ""
    try:
        json.loads(os.pread(fd, size - start, start))
    except (ValueError, RecursionError):
        os.ftruncate(fd, start)
        return "the last line was torn, as that of a run that was killed is; it is taken out"
    os.write(fd, b"\n")
    return ""


def _newlines_from_the_end(fd: int) -> Iterator[int]:
    """Positions of newlines, the last first; reads no more of the file than it has to."""
    end = os.fstat(fd).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        block = os.pread(fd, end - start, start)
        at = block.rfind(b"\n")
        while at >= 0:
            yield start + at
            at = block.rfind(b"\n", 0, at)
        end = start
