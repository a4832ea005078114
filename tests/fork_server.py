"""One process that has imported everything, and forks for each command of the tests.

Importing JAX takes most of the time of a command that needs it. A test still gets a process for
each command, with its own arguments, environment, streams and exit status: ``forked.py`` sends them
here. What Python and JAX read of the environment when they start is the server's.
"""

import importlib
import os
import runpy
import select
import signal
import socket
import sys
import traceback
import warnings

MODULES = {"srjit-opt": "srjit.tools.opt", "filecheck": "filecheck.main"}
PYTHON = "python"  # of its arguments, the first is -c


def preload() -> None:
    """Imports what commands import; they fail by themselves if this cannot."""
    # Libraries have threads, but children run nothing that waits for those.
    warnings.filterwarnings("ignore", message="os.fork|This process .* is multi-threaded")
    try:
        for module in (*MODULES.values(), "srjit.api.jitted"):  # passes import jax when they run
            importlib.import_module(module)
        registry = importlib.import_module("srjit.passes.driver.registry")
        for name in registry.builtin_names():
            registry.find(name)
    except Exception:
        traceback.print_exc()


def run(argv: list[str]) -> int:
    """Runs a command in this process."""
    sys.argv = argv
    try:
        if argv[0] == PYTHON:
            sys.argv = argv[1:2] + argv[3:]
            sys.path.insert(0, "")
            exec(compile(argv[2], "<string>", "exec"), {"__name__": "__main__"})
            return 0
        module = sys.modules.get(MODULES[argv[0]])
        if module is None:
            runpy.run_module(MODULES[argv[0]], run_name="__main__")
            return 0
        return module.main() or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
        return 1


def serve(connection: socket.socket) -> None:
    """Runs the command that a client sends, in a child process that answers with its status."""
    data, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    folder, variables, *rest = data.decode().split("\0")
    argv = rest[int(variables) :]
    os.environ.update(entry.split("=", 1) for entry in rest[: int(variables)])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # The old ones remember what could be done with the server's own.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.chdir(folder)
    status = run(argv)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            status = status or 1
    connection.sendall(bytes([status & 255]))
    os._exit(0)


def main(address: str) -> None:
    """Serves until standard input ends, which is when whoever started it does."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{address}.new")
    listener.listen(128)
    os.rename(f"{address}.new", address)  # clients may come now, and wait
    preload()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    while 0 not in select.select([listener, 0], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            serve(connection)
        connection.close()


if __name__ == "__main__":
    main(sys.argv[1])
