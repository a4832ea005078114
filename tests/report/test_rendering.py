"""Reports as data look the same everywhere: in narrow and wide terminals, in pipes, on pages."""

import json
import math
import os
import subprocess
import sys

import pytest

from srjit.report.curves import plot, sparkline
from srjit.report.document import Column, Document, Documented, Table, as_json
from srjit.report.text import text

LONG = "a_model/with/a_long/path/that_does_not_fit/and_ends_here"
DOCUMENT = Document(
    title="made up",
    lead="three rows",
    tables=[
        Table(
            [
                Column("path", lambda r: r[0], narrows="middle"),
                Column("number", lambda r: r[1], align="right"),
                Column("told", lambda r: r[2], narrows="lines"),
                Column("terminal's", lambda _: "t", only="terminal"),
                Column("page's", lambda _: "<p>", only="page"),
            ],
            [
                ("params['w']", "1", "short"),
                (LONG, "1234", "words that take several lines in a narrow terminal"),
                ("[red]x[/red]", "12", ":smile:"),
            ],
            group=lambda r: "one" if r[1] == "1" else "",
            legend="what marks mean",
        ),
        Table([Column("nothing", str)], []),
        Table([Column("name", lambda r: r[0]), Column("value", lambda r: r[1])], [("one", "two")]),
    ],
    notes=["note: " + "words " * 40],
)


class Made(Documented):
    def document(self) -> Document:
        return DOCUMENT


def shown(monkeypatch: pytest.MonkeyPatch, columns: int) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    return str(Made()).splitlines()


@pytest.mark.parametrize("columns", [50, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch):
    lines = shown(monkeypatch, columns)
    assert max(map(len, lines)) <= columns
    assert all(line == line.rstrip() for line in lines)


def test_what_cannot_be_narrower_is_whole(monkeypatch: pytest.MonkeyPatch):
    lines = shown(monkeypatch, 10)
    assert any(line.startswith("params['w']") for line in lines)
    assert any("1234" in line and "a_m..ds_here" in line for line in lines)


@pytest.mark.parametrize("columns", range(36, 48))
def test_no_character_of_a_folded_cell_is_cut_off(columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    cells = ("never narrower", "2.7 to 5.4 bits, slope 1.11", "unbiased to 5 bits")
    narrows = ("never", "lines", "lines")
    table = Table([Column(str(i), lambda r, i=i: r[i], narrows[i]) for i in range(3)], [cells])
    lines = text(Document(title="", lead="", tables=[table])).splitlines()[3:]
    assert sorted("".join("".join(lines).split())) == sorted("".join("".join(cells).split()))


def test_a_wide_terminal_has_every_cell_in_one_line(monkeypatch: pytest.MonkeyPatch):
    assert shown(monkeypatch, 200)[:8] == [
        "srjit: made up: three rows",
        "path" + " " * 54 + "number  told" + " " * 48 + "terminal's",
        "-" * 128,
        "params['w']" + " " * 52 + "1  short" + " " * 47 + "t",
        "",
        LONG + "    1234  words that take several lines in a narrow terminal  t",
        "[red]x[/red]" + " " * 50 + "12  :smile:" + " " * 45 + "t",
        "what marks mean",
    ]


def test_a_narrow_terminal_cuts_middles_and_folds_sentences(monkeypatch: pytest.MonkeyPatch):
    lines = shown(monkeypatch, 60)
    cut = next(line for line in lines if line.startswith("a_") and ".." in line)
    assert LONG.endswith(cut.split()[0].split("..")[1]) and "1234" in cut
    folded = " ".join(" ".join(lines).split())
    assert "words that take" in folded and "narrow terminal" in folded


def test_text_is_the_same_in_a_pipe_with_colours_asked_for():
    program = "from tests.report.test_rendering import Made; print(Made())"
    asked = {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
    plain = {"TERM": "dumb", "COLUMNS": "80", "PYTHONIOENCODING": "ascii"}
    outs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **e},
            capture_output=True,
            check=True,
        ).stdout
        for e in (asked, plain)
    ]
    assert outs[0] == outs[1] and outs[0].isascii() and b"\x1b" not in outs[0]


def test_tables_without_rows_are_left_out(monkeypatch: pytest.MonkeyPatch):
    assert "nothing" not in "\n".join(shown(monkeypatch, 80)) + Made().to_html()


def test_pages_have_their_own_columns_and_escape_everything():
    page = Made().to_html()
    assert "<th>page&#x27;s</th>" in page and "terminal" not in page.replace("narrow terminal", "")
    assert "&lt;p&gt;" in page and LONG in page and "what marks mean" in page


def test_json_has_only_finite_numbers():
    found = json.loads(as_json({"a": [math.nan, 1.5], 2: {"b": math.inf}, "c": complex}))
    assert found == {"a": [None, 1.5], "2": {"b": None}, "c": "<class 'complex'>"}


def test_plots_are_of_what_is_finite_and_positive():
    assert sparkline([1, 10, 100]) == "▁▅█"
    assert sparkline([0, math.inf, 1]) == "  ▁"
    assert len(sparkline([1.0] * 100)) == 16
    assert plot([0.0]) == "<p>nothing finite</p>"
    assert plot([1.0, 2.0]).count(",") == 2
