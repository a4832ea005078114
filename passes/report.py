"""``srjit-report``: what was done to every multiplication, and why, to a file."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from srjit.passes.driver.registry import Pass, PassError, register
from srjit.passes.mlir import annotation
from srjit.passes.mlir.header import header_of
from srjit.program.stablehlo import operations

if TYPE_CHECKING:
    from srjit._mlir import ir
    from srjit.report.report import Report


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteReport(Pass):
    """Writes the report that ``explain`` gives, of a module that has been quantized.

    Every multiplication with its role, shapes, what its operands become, and why it is kept if it
    is. The module stays as it is.

    Attributes:
      output: a file, or `-` for standard error.
      format: `text` (a table), `json` or `html`.

    Before ==> after:
        %0 = stablehlo.composite "srjit.scaled_dot" %q#0, %q#1, %r#0, %r#1 {srjit.sites = [...]}
        ==>
        the same; and a table
    """

    name: ClassVar[str] = "srjit-report"
    output: str = "-"
    format: Literal["text", "json", "html"] = "text"

    def run(self, module: ir.Operation) -> dict[str, int]:
        """Writes."""
        report = report_of(module)
        text = {"text": report.__str__, "json": report.to_json, "html": report.to_html}
        written = text[self.format]() + "\n"
        if self.output == "-":
            sys.stderr.write(written)
            return {"sites reported": len(report.sites)}
        try:
            Path(self.output).write_text(written, encoding="utf-8")
        except OSError as error:
            raise PassError(None, f"cannot write {self.output}: {error.strerror}") from None
        return {"sites reported": len(report.sites)}


def report_of(module: Any) -> Report:
    """The report of a quantized module.

    Raises:
      PassError: the module has not been quantized.
    """
    from srjit.planning.site import SitePlan
    from srjit.report.report import Report

    header = header_of(module)
    if header is None:
        raise PassError(None, "nothing to report: run srjit-insert-quantize before srjit-report")
    sites = [
        site
        for op in operations.inside(module)
        if annotation.SITES in op.attributes
        for site in annotation.read(op, SitePlan)
    ]
    return Report(
        sites=(*sorted(sites, key=lambda s: s.site.number), *header.left_alone),
        recipe=header.recipe,
        target=header.target,
        mode=header.mode,
        notes=header.notes,
    )
