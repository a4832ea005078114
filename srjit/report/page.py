"""Reports as HTML pages, which need nothing from elsewhere."""

from __future__ import annotations

import html
from typing import Any

from srjit.report.curves import plot
from srjit.report.document import Document, Table

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>srjit: {title}</title><style>
body {{ font: 14px system-ui, sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; margin-bottom: 2em; }}
td, th {{ border-bottom: 1px solid #ddd; padding: 3px 10px; text-align: left; }}
tr.kept td {{ color: #777; }} tr.native td {{ background: #eefaee; }}
</style></head><body>
<h1>srjit</h1>
<p>{title}: {lead}</p>
{body}
<ul>
{notes}</ul>
</body></html>
"""


def page(document: Document) -> str:
    """Returns a report as one page."""
    curves = [f"<h3>{html.escape(name)}</h3>\n{plot(values)}" for name, values in document.curves]
    return _PAGE.format(
        title=html.escape(document.title),
        lead=html.escape(document.lead),
        body="\n".join([*(_table(t) for t in document.tables if t.rows), *curves]),
        notes="".join(f"<li>{html.escape(n)}</li>\n" for n in document.notes),
    )


def _table(table: Table[Any]) -> str:
    columns = table.shown("page")
    head = "".join(f"<th>{html.escape(c.name)}</th>" for c in columns)
    body = "\n".join(
        f'<tr class="{html.escape(table.kind(row))}">'
        + "".join(f"<td>{html.escape(c.cell(row))}</td>" for c in columns)
        + "</tr>"
        for row in table.rows
    )
    legend = f"<p>{html.escape(table.legend)}</p>" if table.legend else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>{legend}"
