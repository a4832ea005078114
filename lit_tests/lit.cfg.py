"""lit: runs the FileCheck tests of the passes against the srjit that the interpreter imports.

RUN lines get `srjit-opt` and `filecheck`, the FileCheck of the Python package index. It has no
--check-prefixes, -D and --implicit-check-not. Both run as forks of one process that has imported
everything (tests/fork_server.py); `lit --param processes=1` starts a process for each instead.
"""

# pyright: basic, reportUndefinedVariable=false
# ruff: noqa: F821

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time

import lit.formats

config.name = "srjit"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir"]
config.excludes = ["Inputs"]
config.test_source_root = os.path.dirname(__file__)
config.test_exec_root = lit_config.params.get("out", config.test_source_root)

# PYTHONPATH, so that a checkout can be tested without being installed.
config.environment["JAX_PLATFORMS"] = "cpu"
if "PYTHONPATH" in os.environ:
    config.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]


TESTS = os.path.join(config.test_source_root, "..", "tests")


def fork_server() -> str:
    """The address of a new server, which ends when lit does."""
    folder = tempfile.mkdtemp(prefix="srjit-lit-")
    address = os.path.join(folder, "socket")
    server = subprocess.Popen(
        [sys.executable, os.path.join(TESTS, "fork_server.py"), address],
        stdin=subprocess.PIPE,
        env={**os.environ, **config.environment},
    )
    # Keeps the pipe open as long as lit lives.
    atexit.register(lambda owner: os.getpid() == owner and end(server, folder), os.getpid())
    while not os.path.exists(address) and server.poll() is None:
        time.sleep(0.005)
    return address


def end(server: subprocess.Popen, folder: str) -> None:
    server.stdin.close()
    server.wait()
    shutil.rmtree(folder)


if "processes" in lit_config.params or not hasattr(os, "fork"):
    opt, filecheck = f"{sys.executable} -m srjit.tools.opt", f"{sys.executable} -m filecheck"
else:
    client = os.path.join(TESTS, "forked.py")
    forked = f"{sys.executable} -I -S {client} {fork_server()}"
    opt, filecheck = f"{forked} srjit-opt", f"{forked} filecheck"
config.substitutions += [(r"\bsrjit-opt\b", opt), (r"\bfilecheck\b", filecheck)]
