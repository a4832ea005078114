"""Files of watched runs: resumed, torn, locked, removed, long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import pytest

from diagnostics.test_watch import record
from srjit import srjit
from srjit.diagnostics.watch import sinks
from srjit.tools import watch as command
from steps import W, X, step


def run(path: Path, keys: list[Any], **options: Any) -> Any:
    """Watches a call for each key; None is a call without ``sr_key``."""
    function: Any = srjit(step, recipe="int8", watch=path, **options)
    for key in keys:
        function(W, X, **({} if key is None else {"sr_key": key}))
    function.watch.wait()
    return function


def steps_in(path: Path) -> list[int]:
    return [r.step for r in sinks.read(path)]


TYPED = [jax.random.key(i) for i in range(5)]


def test_a_step_is_the_calls_key_or_number_and_a_resumed_run_goes_on(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    run(path, [0, 1, 2])
    run(path, [3, jax.numpy.int32(4)])
    assert steps_in(path) == [0, 1, 2, 3, 4]
    run(path, TYPED[:2])  # which have no numbers: the file is gone on with
    assert steps_in(path)[5:] == [5, 6]
    seen: list[Any] = []
    function: Any = srjit(step, recipe="int8", watch=seen.append, key=0)
    function.calls = 40
    function(W, X)
    with pytest.raises(TypeError):
        function(W)
    function(W, X)
    function(W, X, sr_key=2**40)
    function(W, X, sr_key=-1)
    jitted = jax.jit(lambda w, i: function(w, X, sr_key=i))
    for number in (7, 8):
        jitted(W, number)
    jax.jit(lambda w: function(w, X, sr_key=2**40))(W)
    jax.effects_barrier()
    function.watch.wait()
    assert sorted(r.step for r in seen) == [-1, 7, 8, 40, 41, 2**40, 2**40]


def lines(count: int) -> bytes:
    return b"".join(json.dumps(record(step=i).to_dict()).encode() + b"\n" for i in range(count))


def test_a_run_that_was_killed_anywhere_goes_on_and_is_read(tmp_path: Path):
    """Cut at every byte of its last line: what is torn is taken out, and said."""
    whole = lines(3)
    begin = whole.rfind(b"\n", 0, -1) + 1
    for cut in range(begin, len(whole) + 1):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(whole[:cut])
        is_torn, notes = begin < cut < len(whole) - 1, list[str]()
        assert [r.step for r in sinks.read(path, notes)] == [0, 1, 2][: 2 + (cut == len(whole))]
        assert ("not whole" in "".join(notes)) == (begin < cut < len(whole))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            sink = sinks.JsonLines(path)
            sink(record(step=9))
        assert ["torn" in str(w.message) and path.name in str(w.message) for w in said] == [
            True
        ] * is_torn
        kept = 2 + (cut >= len(whole) - 1)
        assert steps_in(path) == [*range(kept), 9] and sink.next_step() == 10
        assert path.read_bytes().endswith(b"\n")
        assert [r.step for r in sinks.read(path)] == [*range(kept), 9]


def test_torn_lines_inside_are_left_out_and_said(tmp_path: Path, capsys: Any):
    path, (one, two, three) = tmp_path / "run.jsonl", lines(3).splitlines(keepends=True)
    path.write_bytes(one + one[:20] + two + b"\xff\xfe\n" + b"[" * 100_000 + b"\n" + three)
    with pytest.warns(UserWarning, match=r"run\.jsonl: torn lines are left out: 2, 3, 4"):
        assert steps_in(path) == [0, 2]
    assert command.main(["watch", str(path)]) == 0
    assert "torn lines are left out: 2, 3, 4" in " ".join(capsys.readouterr().out.split())
    path.write_bytes(one + two[:9])
    assert command.main(["watch", str(path)]) == 0
    assert "is not whole" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "field", [{"step": "1"}, {"norm": "<b>"}, {"path": 3}, {"where": 5}, {"more": 1}]
)
def test_what_is_no_record_is_an_error_with_the_files_name(tmp_path: Path, field: Any):
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps({**record().to_dict(), **field}) + "\n")
    with pytest.raises(ValueError, match=r"run\.jsonl, line 1: not a record of srjit"):
        list(sinks.read(path))
    path.write_text("some text\nand more\n")
    with pytest.raises(ValueError, match=r"run\.jsonl, line 1: not a record"):
        list(sinks.read(path))


def test_a_file_that_vanished_is_made_anew_and_said(tmp_path: Path):
    path = tmp_path / "runs" / "run.jsonl"
    sink = sinks.JsonLines(path)
    sink(record(step=0))
    path.unlink()
    path.parent.rmdir()
    with pytest.warns(UserWarning, match=r"run\.jsonl: .*vanished; it is made anew"):
        sink(record(step=1))
    assert steps_in(path) == [1]
    os.replace(path, tmp_path / "moved.jsonl")  # as log rotation does
    with pytest.warns(UserWarning, match="vanished"):
        sink(record(step=2))
    assert steps_in(path) == [2]
    path.write_bytes(b"")
    sink(record(step=3))
    assert steps_in(path) == [3]


HOLD = """
import os, sys, time
from pathlib import Path
from srjit.diagnostics.watch.appending import Lines
lines = Lines.of(sys.argv[1])
lines.write("{}")
print("held", flush=True)
sys.stdin.read()
"""


def test_two_runs_do_not_write_one_file(tmp_path: Path):
    path = tmp_path / "run.jsonl"
    command_line = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        sink = sinks.JsonLines(path)
        with pytest.raises(OSError, match=r"run\.jsonl: another process.*a file of its own"):
            sink(record())
        other.stdin.close()
        assert other.wait() == 0
    sink(record())
    sinks.JsonLines(path)(record(step=1))  # another function of the same process
    assert len(path.read_text().splitlines()) == 3


def test_the_first_of_several_processes_writes(tmp_path: Path, monkeypatch: Any):
    path = tmp_path / "run.jsonl"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    sinks.JsonLines(path)(record())
    assert path.read_bytes() == b""
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    sinks.JsonLines(path)(record())
    assert steps_in(path) == [0]


def test_long_files_are_read_and_resumed_in_linear_time(tmp_path: Path):
    line = lines(1)
    seconds: list[float] = []
    for count in (500, 5000):
        path = tmp_path / f"{count}.jsonl"
        path.write_bytes(line * count)
        tries: list[float] = []
        for _ in range(3):
            began = time.process_time()
            assert sum(1 for _ in sinks.read(path)) == count
            tries.append(time.process_time() - began)
        seconds.append(min(tries))
        assert sinks.JsonLines(path).next_step() == 1
    assert seconds[1] < 40 * seconds[0]
    (tmp_path / "no newline").write_bytes(b"x" * 10**6)
    assert sinks.JsonLines(tmp_path / "no newline").next_step() == 0


def test_a_file_that_cannot_be_written_is_an_error_at_once(tmp_path: Path):
    with pytest.raises(OSError, match=str(tmp_path)):
        srjit(step, recipe="int8", watch=tmp_path)
