"""Names that are markup, escape codes or tags: pages and tables show them, and obey none."""

from __future__ import annotations

import dataclasses
import html.parser
from typing import Any

import jax
import pytest

from srjit import recipes, recommend, srjit
from srjit.diagnostics.watch.diagnosis import diagnosed
from srjit.report.document import Column, Document, Documented, Table
from steps import W, X, step

NAMES = {
    "tag": "<script>alert(1)</script>",
    "end of style": "</style></title><b>",
    "quotes": "\"' onload='x'",
    "entity": "&lt;&#60;",
    "escape codes": "\x1b[31mred\x1b]0;title\x07\x9b2J\r\b",
    "markup": "[bold]x[/bold][/x][link=y]",
    "lines": "one\ntwo\tthree\u2028four",
    "directions": "\u202egnp.exe\u2066",
}


class Seen(html.parser.HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


KNOWN = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "h1",
    "h3",
    "p",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "ul",
    "li",
    "svg",
    "text",
    "polyline",
}
ATTRIBUTES = {
    "lang",
    "charset",
    "class",
    "width",
    "height",
    "role",
    "x",
    "y",
    "font-size",
    "fill",
    "stroke",
    "points",
}


def check(shown: Documented, name: str) -> None:
    """Whether the name is on the page as it is, and nothing of it is obeyed."""
    page = Seen(shown.to_html())
    assert page.tags <= KNOWN and page.attributes <= ATTRIBUTES
    assert name.split()[0] in page.text.replace("\r", "") or "\x1b" in name
    text = str(shown)
    assert all(c == "\n" or c.isprintable() for c in text), ascii(text)


@pytest.mark.parametrize("what", NAMES)
def test_whatever_is_in_a_document_is_shown_and_not_obeyed(what: str):
    name = NAMES[what]

    class Made(Documented):
        def document(self) -> Document:
            columns = [Column(name, str, narrows=n) for n in ("never", "middle", "lines")]
            table = Table(columns, [name, 3 * name], lambda _: name, lambda _: name, name)
            given: dict[str, Any] = {"title": name, "lead": name, "notes": [name]}
            return Document(tables=[table], curves=[(name, [1.0, 2.0])], **given)

    check(Made(), name)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("what", NAMES)
def test_names_of_a_users_program_are_shown_and_not_obeyed(what: str):
    name = NAMES[what]

    def hostile(w: jax.Array, x: jax.Array) -> jax.Array:
        with jax.named_scope(name):
            return step(w, x)

    hostile.__name__ = name
    recipe = dataclasses.replace(recipes.get("int8"), name=name)
    function = srjit(hostile, recipe=recipe)
    report = function.explain(W, X)
    assert Seen(report.to_html()).tags <= KNOWN
    assert all(c == "\n" or c.isprintable() for c in str(report))
    if what in ("tag", "escape codes", "markup"):
        for shown in (
            function.diagnose(W, X),
            function.verify(W, X, draws=4),
            function.aot(W, X, target="cpu"),
            recommend(lambda w, x: (step(w, x), x.sum()), W, X, recipes=recipe, budget=1),
        ):
            assert Seen(shown.to_html()).tags <= KNOWN
            assert all(c == "\n" or c.isprintable() for c in str(shown))


def test_records_of_a_file_are_names_too():
    from diagnostics.test_watch import record

    for name in NAMES.values():
        check(diagnosed([record(path=name, format=name, role=name)], [name]), name)
