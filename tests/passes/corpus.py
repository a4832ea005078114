"""Runs the passes over folders of MLIR that nobody here wrote, and prints what became of it.

    python tests/passes/corpus.py path/to/stablehlo path/to/Enzyme-JAX

Every ``.mlir`` (split at ``// -----``), bytecode or portable artifact below the folders. A module
that starts with @main goes through the pipelines as it is; one that does not, once for each of its
functions, called @main in a copy. Each has to come out valid, whole in a text that parses again,
and unchanged where nothing was multiplied; or as an error that a pass reports. Modules run in
subprocesses, so that one that kills its process is counted, and the others still run.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import queue
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INT8 = (
    "srjit-eliminate-dead-code,srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8},"
    "srjit-share-quantized,srjit-legalize{target=portable}"
)
NVFP4 = (
    "srjit-inline-calls,srjit-eliminate-dead-code,srjit-annotate-matmuls,"
    "srjit-insert-quantize{recipe=nvfp4},srjit-share-quantized,srjit-legalize{target=cpu}"
)
DELAYED = (
    "srjit-annotate-matmuls,srjit-insert-quantize{recipe=fp8-delayed},srjit-share-quantized,"
    "srjit-legalize{target=cpu}"
)
PIPELINES = {"int8": INT8, "nvfp4": NVFP4, "delayed": DELAYED}
SUFFIXES = (".mlir", ".mlirbc", ".bc")
BAD = ("died", "hung", "exception", "invalid", "changed")


@dataclasses.dataclass
class Outcome:
    """What became of one module, or of one function of it.

    Attributes:
      unit: file, part and function.
      status: ``unparsed``, ``rewritten``, ``alone`` (nothing quantized), ``error`` (a pass says why
        it cannot) or one of ``BAD``.
      message: of errors.
      reasons: why multiplications were left alone, with how many were.
      rewritten: how many were not.
    """

    unit: str
    status: str
    message: str = ""
    reasons: dict[str, int] = dataclasses.field(default_factory=dict[str, int])
    rewritten: int = 0


# ----------------------------------------------------------------------------------------- one file


def units(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """The parts of a file."""
    data = path.read_bytes()
    if data.startswith(b"ML\xefR"):
        yield "0", data
        return
    text = data.decode("utf-8", errors="replace")
    for i, part in enumerate(re.split(r"^// -----.*$", text, flags=re.MULTILINE)):
        if part.strip():
            yield str(i), part


def run_file(path: Path, skipped: set[str]) -> Iterator[Outcome | str]:
    """The outcome of every unit of a file, each after its name."""
    for part, source in units(path):
        if f"{path}#{part}" in skipped:
            continue
        yield f"{path}#{part}"
        module = parsed(source)
        if module is None:
            yield Outcome(f"{path}#{part}", "unparsed")
            continue
        names = [""] if "main" in defined(module) else defined(module) or [""]
        for name in names:
            unit = f"{path}#{part}@{name or 'main'}"
            if unit not in skipped:
                yield unit
                yield run_unit(unit, source, name)


def parsed(source: str | bytes) -> Any:
    """A new module, in a context that knows unknown dialects only if it has to."""
    from srjit import _mlir
    from srjit.passes.mlir import serialization

    for unregistered in (False, True):
        context = _mlir.new_context()
        context.allow_unregistered_dialects = unregistered
        module = serialization.parse_in(context, source)
        if module is not None and isinstance(source, bytes) and "vhlo.func_v1" in str(module):
            with context:  # an artifact from before they said what they are
                module = _mlir.stablehlo.deserialize_portable_artifact(context, source)
        if module is not None:
            return module
    return None


def defined(module: Any) -> list[str]:
    """The names of the functions that a module defines."""
    from srjit.program.stablehlo import operations

    functions = operations.functions(module.operation)
    return [n for n, op in functions.items() if op.regions[0].blocks]


def started_at(module: Any, name: str) -> None:
    """Makes a function @main, and removes all that it does not need."""
    from srjit._mlir import ir
    from srjit.program.stablehlo import operations

    functions = operations.functions(module.operation)
    with module.context:
        ir.SymbolTable.replace_all_symbol_uses(name, "main", module.operation)
        for other in functions.values():
            other.attributes["sym_visibility"] = ir.StringAttr.get("private")
        functions[name].attributes["sym_name"] = ir.StringAttr.get("main")
        functions[name].attributes["sym_visibility"] = ir.StringAttr.get("public")
        needed: set[str] = set()
        pending = ["main"]
        functions = operations.functions(module.operation)
        while pending:
            one = pending.pop()
            if one in functions and one not in needed:
                needed.add(one)
                pending += operations.used(functions[one])
        for other in functions.keys() - needed:
            functions[other].erase()


def run_unit(unit: str, source: str | bytes, name: str) -> Outcome:
    """Runs the pipelines."""
    outcome = Outcome(unit, "alone")
    reasons: collections.Counter[str] = collections.Counter()
    for label, pipeline in PIPELINES.items():
        module = parsed(source)
        if name:
            started_at(module, name)
        try:
            found = run_pipeline(module, pipeline)
        except Exception as error:
            found = classified(error)
        if found.status in (*BAD, "error"):
            return dataclasses.replace(found, unit=unit, message=f"{label}: {found.message}")
        reasons.update(found.reasons)
        outcome.rewritten += found.rewritten
    if outcome.rewritten:
        outcome.status = "rewritten"
    outcome.reasons = dict(reasons)
    return outcome


def run_pipeline(module: Any, text: str) -> Outcome:
    """Runs one pipeline, then srjit-report and srjit-strip-annotations, and checks what is left."""
    from srjit import passes
    from srjit.passes.report import report_of

    first, _, others = text.partition("srjit-annotate-matmuls")
    if first:
        passes.parse(first.rstrip(",")).run(module)
        before = generic(module)
        passes.parse("srjit-eliminate-dead-code").run(module)
        if generic(module) != before:
            return Outcome("", "changed", "srjit-eliminate-dead-code changes what it made itself")
    before = generic(module)
    passes.parse(f"srjit-annotate-matmuls{others}").run(module)
    report = report_of(module.operation)
    str(report), report.to_json()
    passes.parse("srjit-report{output=/dev/null},srjit-strip-annotations").run(module)
    after = generic(module)
    if not module.operation.verify():
        return Outcome("", "invalid", "does not verify")
    if parsed_again(module, after) is None:
        return Outcome("", "invalid", "its text does not parse")
    kept = [s for s in report.sites if s.status == "kept"]
    if len(kept) == len(report.sites) and after != before:
        return Outcome("", "changed", "nothing was quantized, yet something changed")
    reasons = collections.Counter([*(s.reason for s in kept), *map(general, report.notes)])
    return Outcome("", "alone", "", dict(reasons), len(report.sites) - len(kept))


def generic(module: Any) -> str:
    """A module's text, byte for byte."""
    return module.operation.get_asm(print_generic_op_form=True, enable_debug_info=True)


def parsed_again(module: Any, text: str) -> Any:
    """What a text is parsed to, in a module's context."""
    from srjit.passes.mlir import serialization

    return serialization.parse_in(module.context, text)


def classified(error: Exception) -> Outcome:
    """Whether a pass said that it cannot, or fell over."""
    from srjit.passes import PassError, PipelineError

    cause = error.__cause__
    if isinstance(error, PipelineError) and isinstance(cause, PassError):
        return Outcome("", "error", cause.message)
    if isinstance(error, PipelineError) and cause is None:
        return Outcome("", "invalid", str(error))
    root = cause or error
    frame = root.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    where = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame else ""
    return Outcome("", "exception", f"{type(root).__name__} at {where}: {root}")


def general(note: str) -> str:
    """A reason without the place."""
    note = re.sub(r" at .* left alone: ", " left alone: ", note)
    return re.sub(r"'[^']*'|\"[^\"]*\"|rule \S+", "…", note)


# ------------------------------------------------------------------------------------- subprocesses


def work() -> None:
    """Reads files and skipped units, one JSON a line; answers with units and outcomes."""
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        path, skipped = json.loads(line)
        for found in run_file(Path(path), set(skipped)):
            answer = {"unit": found} if isinstance(found, str) else dataclasses.asdict(found)
            print("\x1e" + json.dumps(answer), flush=True)
        print("\x1e{}", flush=True)


class Worker:
    """A subprocess that is replaced when it dies."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.process: subprocess.Popen[str] | None = None

    def outcomes(self, path: Path) -> list[Outcome]:
        """Of one file."""
        found: list[Outcome] = []
        while True:
            unit, why = self._attempt(path, found)
            if not why:
                return found
            if not unit:
                return [*found, Outcome(str(path), why, self._last_words())]
            # MLIR's parser dies on some files of dialects that it does not know.
            parsing = why == "died" and "@" not in unit.rpartition("#")[2]
            found.append(Outcome(unit, "unparsed" if parsing else why, self._last_words()))

    def _attempt(self, path: Path, found: list[Outcome]) -> tuple[str, str]:
        """The unit at which the process was lost, and how; nothing if it was not."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            self.errors: collections.deque[str] = collections.deque(maxlen=30)
            threading.Thread(target=self._drain, args=[self.process], daemon=True).start()
        process = self.process
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps([str(path), [o.unit for o in found]]) + "\n")
        process.stdin.flush()
        unit, late = "", False
        while True:
            timer = threading.Timer(self.limit, process.kill)
            timer.start()
            line = process.stdout.readline()
            late = not timer.is_alive()
            timer.cancel()
            if not line:
                process.wait()
                return unit, "hung" if late else "died"
            if not line.startswith("\x1e"):
                continue
            answer = json.loads(line[1:])
            if not answer:
                return "", ""
            if "status" not in answer:
                unit = answer["unit"]
            elif all(o.unit != answer["unit"] for o in found):
                found.append(Outcome(**answer))

    def _drain(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        self.errors.extend(process.stderr)

    def _last_words(self) -> str:
        telling = [e.strip() for e in self.errors if e.strip() and not e.startswith(" ")]
        return " ".join(telling[:1] + telling[1:][-1:])[:300]


def run_all(files: list[Path], jobs: int, limit: float) -> list[Outcome]:
    """The outcomes of all files."""
    todo: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for file in files:
        todo.put(file)
    found: list[Outcome] = []

    def run() -> None:
        worker = Worker(limit)
        while True:
            try:
                file = todo.get_nowait()
            except queue.Empty:
                return
            found.extend(worker.outcomes(file))

    threads = [threading.Thread(target=run) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def table(outcomes: list[Outcome]) -> str:
    """What became of them, as text."""
    parts = {o.unit.partition("@")[0] for o in outcomes}
    unparsed = {o.unit for o in outcomes if o.status == "unparsed"}
    counts = collections.Counter(o.status for o in outcomes)
    lines = [
        f"{len({o.unit.partition('#')[0] for o in outcomes}):7} files",
        f"{len(parts):7} modules, of which {len(parts) - len(unparsed)} parse",
        f"{len(outcomes) - len(unparsed):7} programs that start at one function",
        f"{counts['rewritten']:7}   rewritten",
        f"{counts['alone']:7}   left alone",
        f"{counts['error']:7}   refused, with an error that says why",
        f"{sum(counts[b] for b in BAD):7}   FAILED",
    ]
    errors = collections.Counter(general(o.message) for o in outcomes if o.status == "error")
    lines += ["", "errors:", *(f"{n:7} {e}" for e, n in errors.most_common(30))]
    reasons: collections.Counter[str] = collections.Counter()
    for o in outcomes:
        reasons.update(o.reasons)
    lines += ["", "reasons and notes:", *(f"{n:7} {r}" for r, n in reasons.most_common(60))]
    bad = [o for o in outcomes if o.status in BAD]
    lines += ["", *(f"FAILED ({o.status}) {o.unit}\n        {o.message}" for o in bad)]
    return "\n".join(lines)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="folders, or files")
    parser.add_argument("--jobs", type=int, default=2, help="subprocesses (default 2)")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one program")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work()
        return 0
    files = [
        f
        for path in given.paths
        for f in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if f.is_file() and f.suffix in SUFFIXES
    ]
    outcomes = run_all(files, given.jobs, given.limit)
    print(table(outcomes))
    return int(any(o.status in BAD for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
