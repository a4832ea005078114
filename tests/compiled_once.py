"""One cache of compiled programs for all the processes of a run of the tests."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile


def share_compiled_programs() -> None:
    """Makes this process, and those it starts, compile each program once; before it imports JAX.

    The folder is new for every run, so that nothing hides behind what an earlier version compiled.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder, owner = tempfile.mkdtemp(prefix="srjit-tests-"), os.getpid()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
