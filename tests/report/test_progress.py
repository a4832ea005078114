"""Progress is shown on terminals, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from srjit.report.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "variable", "shown"),
    [(Terminal, "1", True), (Terminal, "0", False), (io.StringIO, "1", False)],
)
def test_progress_is_shown_on_terminals(
    stream: type[io.StringIO], variable: str, shown: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SRJIT_PROGRESS", variable)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream())
    assert list(progress(range(3), "verify")) == [0, 1, 2]
    written = sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert ("verify" in written) is shown
    assert shown or not written


def test_an_interrupted_loop_leaves_the_terminal_as_it_was(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    items = progress(range(3), "verify")
    next(items)
    items.close()  # pyright: ignore[reportAttributeAccessIssue]
    written = sys.stderr.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1  # the cursor
