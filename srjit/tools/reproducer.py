"""Crash reproducers: a module with the pipeline that failed on it, as MLIR's tools write them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Generator
from pathlib import Path

from srjit._mlir import ir
from srjit.passes.driver.diagnostics import PipelineError
from srjit.passes.mlir import serialization
from srjit.tools.output import Failure

_ENTRY = re.compile(
    r",?\s*external_resources:\s*\{\s*mlir_reproducer:\s*\{(?P<fields>[^{}]*?"
    r'pipeline:\s*"(?P<pipeline>(?:[^"\\]|\\.)*)"[^{}]*)\}\s*\}'
)
_ESCAPED = re.compile(rb"\\([0-9A-Fa-f]{2}|\\)")


@dataclasses.dataclass(frozen=True)
class Reproducer:
    """A pipeline that failed, and how it ran.

    Attributes:
      pipeline: its text.
      verify_each: whether the module was verified after each pass.
    """

    pipeline: str
    verify_each: bool = True

    @contextlib.contextmanager
    def kept_on_failure(self, module: ir.Module, file: str | None) -> Generator[None]:
        """A context after which a file has this if an error ends it, or the process ends in it.

        Raises:
          Failure: the file cannot be written.
        """
        if file is None:
            yield
            return
        path, text = Path(file), serialization.text_of(module, debug_info=True)
        try:
            before = path.read_bytes() if path.exists() else None
            path.write_text(self.beside(text), encoding="utf-8")
        except OSError as error:
            raise Failure(f"cannot write {file!r}: {error.strerror}") from error
        try:
            yield
        except PipelineError:
            print(f"srjit-opt: note: reproducer generated at `{file}`", file=sys.stderr)
            raise
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)

    def beside(self, module: str) -> str:
        """The text of a module, and of this in the resources of the file."""
        return f"""{module.rstrip()}

{{-#
  external_resources: {{
    mlir_reproducer: {{
      pipeline: "{_escaped(self.pipeline)}",
      disable_threading: true,
      verify_each: {str(self.verify_each).lower()}
    }}
  }}
#-}}
"""


def read(source: str | bytes, file: str) -> tuple[str, Reproducer]:
    """The module's text, in which every line keeps its number, and the reproducer beside it.

    Raises:
      Failure: it has none; the message names the file.
    """
    found = None if isinstance(source, bytes) else _ENTRY.search(source)
    if found is None:
        raise Failure(f"{file!r} has no reproducer: --run-reproducer needs one")
    pipeline, fields = _unescaped(found["pipeline"]), found["fields"]
    made = Reproducer(pipeline, not re.search(r"verify_each:\s*false", fields))
    lines = "\n" * found[0].count("\n")
    return f"{found.string[: found.start()]}{lines}{found.string[found.end() :]}", made


def _escaped(text: str) -> str:
    """Text as MLIR's strings have it."""
    return "".join(
        chr(b) if 32 <= b < 127 and b not in b'"\\' else "\\\\" if b == 92 else f"\\{b:02X}"
        for b in text.encode()
    )


def _unescaped(text: str) -> str:
    def character(match: re.Match[bytes]) -> bytes:
        return b"\\" if match[1] == b"\\" else bytes.fromhex(match[1].decode())

    return _ESCAPED.sub(character, text.encode()).decode()
