"""Python programs in fresh processes, forked from one that has imported JAX and srjit."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(code: str, *argv: str, cwd: str | Path = ROOT, **variables: str) -> bytes:
    """The output of ``python -c code argv...``, with some environment variables more.

    JAX has been imported, with the environment of the tests, but has not looked for devices.
    ``PYTHONHASHSEED`` is that of the tests.

    Raises:
      AssertionError: it failed; with what it wrote to standard error.
    """
    if not hasattr(os, "fork"):
        command = [sys.executable, "-c", code, *argv]
        done = subprocess.run(command, cwd=cwd, env=os.environ | variables, capture_output=True)
        assert not done.returncode, done.stderr.decode()
        return done.stdout
    given = [f"{name}={value}" for name, value in variables.items()]
    request = "\0".join([str(cwd), str(len(given)), *given, "python", "-c", code, *argv]).encode()
    with (
        open(os.devnull, "rb") as nothing,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        socket.socket(socket.AF_UNIX) as connection,
    ):
        connection.connect(_server())
        socket.send_fds(connection, [request], [f.fileno() for f in (nothing, out, err)])
        status = connection.recv(1)
        out.seek(0)
        err.seek(0)
        assert status == b"\0", err.read().decode()
        return out.read()


@functools.cache
def _server() -> str:
    """The address of a server that ends when this process does."""
    folder = tempfile.TemporaryDirectory(prefix="srjit-fresh-")
    address = os.path.join(folder.name, "socket")
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "fork_server.py"), address],
        stdin=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
    )
    _running.append((folder, server))
    while not os.path.exists(address):
        assert server.poll() is None, "the server did not start"
        time.sleep(0.005)
    return address


# As long as this lives, its standard input is open, and its folder is there.
_running: list[tuple[tempfile.TemporaryDirectory[str], subprocess.Popen[bytes]]] = []
