"""Diagnostics of MLIR and of the passes, kept after MLIR has forgotten them."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

from srjit._mlir import ir
from srjit.program.stablehlo.names import Locations

Severity = Literal["error", "warning", "remark", "note"]


@dataclasses.dataclass(frozen=True)
class Diagnostic:
    """One message about one place.

    Attributes:
      severity: what it is.
      message: its text.
      file, line, column: the place, counted from 1; an empty name and zeros if nothing tells.
      location: the whole location, as MLIR prints it.
      notes: what belongs to it.
    """

    severity: Severity
    message: str
    file: str
    line: int
    column: int
    location: str
    notes: tuple[Diagnostic, ...] = ()

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.file else "<unknown>:0"
        return "\n".join([f"{place}: {self.severity}: {self.message}", *map(str, self.notes)])


def pointed_at(line: str, index: int) -> str:
    """A line, and below it a caret at a character."""
    before = "".join("\t" if c == "\t" else " " for c in line[:index])
    return f"{line}\n{before}^"


class PipelineError(RuntimeError):
    """A module cannot be parsed, or a pass failed on it.

    Attributes:
      diagnostics: what MLIR and the passes said.
    """

    def __init__(self, message: str, said: Sequence[Diagnostic] = ()) -> None:
        super().__init__("\n".join([message, *map(str, said)]))
        self.diagnostics = tuple(said)


Sink = Callable[[Diagnostic], None]


class PassWarning(UserWarning):
    """A warning that MLIR or a pass gave about a program, outside of srjit-opt."""


_sink: contextvars.ContextVar[Sink | None] = contextvars.ContextVar("sink", default=None)


def emit_warning(op: ir.Operation | ir.OpView, message: str) -> None:
    """Warns about an operation; what passes call, because MLIR's bindings emit only errors."""
    _emit("warning", op, message)


def emit_remark(op: ir.Operation | ir.OpView, message: str) -> None:
    """Remarks on an operation: ``srjit-opt`` prints it, and nothing else does."""
    _emit("remark", op, message)


def _emit(severity: Severity, op: ir.Operation | ir.OpView, message: str) -> None:
    sink = _sink.get() or warn
    sink(_diagnostic(severity, message, op.location))


def warn(diagnostic: Diagnostic) -> None:
    """Makes a Python warning of a warning."""
    if diagnostic.severity == "warning":
        warnings.warn(str(diagnostic), PassWarning, stacklevel=2)


@contextlib.contextmanager
def going_to(sink: Sink, context: ir.Context) -> Generator[None]:
    """A context in which all diagnostics of MLIR and of the passes go to ``sink``."""

    def handle(diagnostic: ir.Diagnostic) -> bool:
        sink(_from_mlir(diagnostic))
        return True

    captured = context.emit_error_diagnostics
    context.emit_error_diagnostics = True  # or the bindings keep errors for their exceptions
    handler: Any = context.attach_diagnostic_handler(handle)
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)
        handler.detach()
        context.emit_error_diagnostics = captured


def _from_mlir(diagnostic: ir.Diagnostic) -> Diagnostic:
    severity: Any = diagnostic.severity.name.lower()
    made = _diagnostic(severity, diagnostic.message, diagnostic.location)
    return dataclasses.replace(made, notes=tuple(map(_from_mlir, diagnostic.notes)))


def _diagnostic(severity: Severity, message: str, location: ir.Location) -> Diagnostic:
    file, line, column = Locations().place_of(location) or ("", 0, 0)
    return Diagnostic(severity, message, file, line, column, str(location))
