"""Runs passes under MLIR's pass manager."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, TypeVar

from srjit import _mlir
from srjit._mlir import ir
from srjit.passes.driver import diagnostics
from srjit.passes.driver.diagnostics import Diagnostic, PipelineError
from srjit.passes.driver.options import text_of
from srjit.passes.driver.registry import Pass, PassError
from srjit.program.stablehlo import operations
from srjit.report.dump import VARIABLE, Dump

AnyModule = TypeVar("AnyModule", ir.Module, ir.Operation, ir.OpView)
_ROOT = "builtin.module"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Printing:
    """Settings for printing the program to standard error while a pipeline runs.

    Attributes:
      before_all, after_all: print before, after every pass.
      after_change: print after passes only where they changed something.
      after_failure: print only after a pass that failed.
      before, after: names of passes to print before, after.
      module_scope: print the whole module, whatever a pass ran on.
      generic: in MLIR's generic form.
      debuginfo: with locations.
      elide_above: elide constants of more elements than that.
      nameloc: name values after their locations; where MLIR prints around all passes, it does not.
      tree_dir: print to one file for each pass, in this folder, instead.
    """

    before_all: bool = False
    after_all: bool = False
    after_change: bool = False
    after_failure: bool = False
    before: Collection[str] = ()
    after: Collection[str] = ()
    module_scope: bool = False
    generic: bool = False
    debuginfo: bool = False
    elide_above: int | None = None
    nameloc: bool = False
    tree_dir: str = ""

    @property
    def is_by_name(self) -> bool:
        """True if passes have to be told apart."""
        return bool(self.before or self.after)

    @property
    def is_by_mlir(self) -> bool:
        """True if MLIR prints, which can do so only around every pass."""
        after_all = self.after_all or self.after_failure or (self.after_change and not self.after)
        return self.before_all or after_all or bool(self.tree_dir and not self.is_by_name)

    def prints(self, name: str, when: str) -> bool:
        """True if ``before`` or ``after`` names a pass that MLIR does not print at anyway."""
        if when == "before":
            return name in self.before and not self.before_all
        return name in self.after and not (self.after_all or self.after_failure)


NOTHING = Printing()


@dataclasses.dataclass(frozen=True)
class Step:
    """A pass, or MLIR's text, that is added to a pass manager at once.

    Attributes:
      path: the operations that it is nested under, from the outside.
      what: a pass, or the text of MLIR's own.
    """

    path: tuple[str, ...]
    what: Pass | str

    @property
    def name(self) -> str:
        """The pass's name, if it is one pass."""
        return self.what.name if isinstance(self.what, Pass) else self.what.partition("{")[0]

    @property
    def text(self) -> str:
        """The text of the pass with what it is nested under."""
        if isinstance(self.what, Pass):
            return text_of(self.what)
        return "".join(f"{anchor}(" for anchor in self.path) + f"{self.what}{')' * len(self.path)}"


# Called with the name of a stage, the module after it, and the steps that are left.
Seen = Callable[[str, ir.Operation, Sequence[Step]], None]


class RunOptions(TypedDict, total=False):
    """Settings for running a pipeline.

    Attributes:
      verify_each: verify the module after each pass; true if not given.
      timing: print MLIR's table of times, on standard error.
      printing: when to print the program.
      sink: called with each diagnostic as it comes; without one, warnings are Python warnings.
      statistics: print what passes counted, on standard error; those of MLIR count nothing, since
        jaxlib is built without that.
      seen: sees the module before and after every pass; without one, ``SRJIT_DUMP_TO`` names a
        folder for it.
    """

    verify_each: bool
    timing: bool
    printing: Printing
    sink: diagnostics.Sink | None
    statistics: bool
    seen: Seen | None


def run(
    steps: Sequence[Step],
    module: ir.Operation,
    *,
    verify_each: bool = True,
    timing: bool = False,
    printing: Printing = NOTHING,
    sink: diagnostics.Sink | None = None,
    statistics: bool = False,
    seen: Seen | None = None,
) -> None:
    """Runs passes on the operation of a module, in place; keywords as of ``RunOptions``.

    Raises:
      PipelineError: a pass failed.
      TypeError: it is not a module.
      OSError: the program cannot be dumped.
    """
    if module.name != _ROOT:
        raise TypeError(f"passes run on a builtin.module, not on {module.name}")
    said: list[Diagnostic] = []
    raised: list[BaseException] = []
    unseen: list[BaseException] = []
    counted: list[Mapping[str, int]] = []

    def hear(diagnostic: Diagnostic) -> None:
        said.append(diagnostic)
        (sink or diagnostics.warn)(diagnostic)

    seen = seen or _dumping_by_environment(module)
    with module.context, ir.Location.unknown():
        if seen is not nothing_seen:
            seen("lowered", module, steps)
        # MLIR aborts the process when it prints a module while threads work on it, and its
        # threads would wait for the interpreter's lock to tell of a diagnostic.
        module.context.enable_multithreading(False)
        manager = _mlir.passmanager.PassManager(_ROOT)
        manager.enable_verifier(verify_each)
        if timing:
            manager.enable_timing()
        if printing.is_by_mlir:
            _print_by_mlir(manager, printing)
        for number, step in enumerate(steps):
            _add(manager, step, _Printer(number, step, printing), raised, counted)
            if seen is not nothing_seen:
                show = functools.partial(_show, seen, step.name, steps[number + 1 :], unseen)
                manager.add(show, name="Show", argument="srjit-show")
        failure = None
        with diagnostics.going_to(hear, module.context):
            try:
                manager.run(module)
            except ir.MLIRError as error:
                failure = error
    if statistics:
        _print_statistics([s.what for s in steps if isinstance(s.what, Pass)], counted)
    if unseen:
        raise unseen[0]
    if raised and not isinstance(raised[0], Exception):
        raise raised[0]  # KeyboardInterrupt
    if failure is not None:
        raise PipelineError("the pipeline failed", said) from (raised[0] if raised else None)


def _add(
    manager: _mlir.passmanager.PassManager,
    step: Step,
    printer: _Printer,
    raised: list[BaseException],
    counted: list[Mapping[str, int]],
) -> None:
    printing = printer.printing
    if printing.prints(step.name, "before"):
        manager.add(printer.before, name="PrintBefore", argument="print-before")
    elif printing.prints(step.name, "after") and printing.after_change:
        manager.add(printer.remember, name="RememberBefore", argument="remember-before")
    if isinstance(step.what, Pass):
        manager.add(
            _runner(step.what, raised, counted),
            name=type(step.what).__name__,
            argument=step.name,
            description=(type(step.what).__doc__ or "").partition("\n")[0],
        )
    else:
        manager.add(step.text)
    if printing.prints(step.name, "after"):
        manager.add(printer.after, name="PrintAfter", argument="print-after")


def _runner(
    one: Pass, raised: list[BaseException], counted: list[Mapping[str, int]]
) -> Callable[[ir.Operation, _mlir.passmanager.ExternalPass], None]:
    def run_pass(module: ir.Operation, handle: _mlir.passmanager.ExternalPass) -> None:
        try:
            with module.context, ir.Location.unknown():
                counted.append(one.run(module) or {})
        except PassError as error:
            raised.append(error)
            (module if error.op is None else error.op).location.emit_error(error.message)
            handle.signal_pass_failure()
        except BaseException as error:
            # An exception must not travel through MLIR; it is the cause of the one that is raised.
            raised.append(error)
            message = f"{one.name} failed: {type(error).__name__}: {error}"
            module.location.emit_error(message)
            handle.signal_pass_failure()

    return run_pass


# ------------------------------------------------------------------------------------------- seeing


def _print_statistics(passes: Sequence[Pass], counted: Sequence[Mapping[str, int]]) -> None:
    """Prints as MLIR does, of the passes that have run to their end."""
    line = f"===-{'-' * 73}-==="
    shown = [line, f"{'... Pass statistics report ...':^79}".rstrip(), line]
    for one, counts in zip(passes, counted, strict=False):
        shown.append(type(one).__name__)
        width = max(map(len, map(str, counts.values())), default=0)
        shown += [f"  (S) {number:{width}d} {what}" for what, number in counts.items()]
    print("\n".join(shown), file=sys.stderr, flush=True)


def nothing_seen(stage: str, module: ir.Operation, left: Sequence[Step]) -> None:
    """Sees nothing, whatever the environment says."""


def dumping(dump: Dump) -> Seen:
    """Writes every stage with locations, and the pipeline that is left as its first comment."""

    def write(stage: str, module: ir.Operation, left: Sequence[Step]) -> None:
        pipeline = f"{_ROOT}({','.join(step.text for step in left)})"
        comment = "".join(f"// {line}\n" for line in pipeline.splitlines())
        text = module.get_asm(enable_debug_info=True)
        dump.write(f"{stage}.mlir", f"{comment}{str(text).rstrip()}")

    return write


def _dumping_by_environment(module: ir.Operation) -> Seen:
    folder, name = os.environ.get(VARIABLE), operations.text(module, "sym_name")
    return dumping(Dump(folder, name or "module")) if folder else nothing_seen


def _show(
    seen: Seen,
    stage: str,
    left: Sequence[Step],
    unseen: list[BaseException],
    module: ir.Operation,
    handle: _mlir.passmanager.ExternalPass,
) -> None:
    try:
        seen(stage, module, left)
    except BaseException as error:  # which must not travel through MLIR
        unseen.append(error)
        handle.signal_pass_failure()


# ----------------------------------------------------------------------------------------- printing


def _print_by_mlir(manager: _mlir.passmanager.PassManager, printing: Printing) -> None:
    after = printing.after_all or printing.after_change or printing.after_failure
    manager.enable_ir_printing(
        print_before_all=printing.before_all,
        print_after_all=after or not printing.before_all,
        print_module_scope=printing.module_scope,
        print_after_change=printing.after_change,
        print_after_failure=printing.after_failure,
        large_elements_limit=printing.elide_above,
        enable_debug_info=printing.debuginfo,
        print_generic_op_form=printing.generic,
        tree_printing_dir_path=printing.tree_dir or None,
    )


class _Printer:
    """Prints around one pass, which MLIR's bindings cannot."""

    def __init__(self, number: int, step: Step, printing: Printing) -> None:
        self.number, self.step, self.printing = number, step, printing
        self.files = 0
        self.remembered: list[str] = []

    def before(self, module: ir.Operation, _: object) -> None:
        self.remember(module, _)
        for op, text in zip(self._ops(module), self.remembered, strict=True):
            self._write("Before", op, text)

    def remember(self, module: ir.Operation, _: object) -> None:
        self.remembered = [self._text(module, op) for op in self._ops(module)]

    def after(self, module: ir.Operation, _: object) -> None:
        for number, op in enumerate(self._ops(module)):
            text = self._text(module, op)
            if not (self.printing.after_change and text == self.remembered[number]):
                self._write("After", op, text)

    def _ops(self, module: ir.Operation) -> list[ir.Operation]:
        ops = [module]
        for anchor in self.step.path:
            inside = (o for op in ops for region in op.regions for block in region for o in block)
            ops = [o.operation for o in inside if anchor in ("any", o.operation.name)]
        return ops

    def _text(self, module: ir.Operation, op: ir.Operation) -> str:
        printing = self.printing
        return str(
            (module if printing.module_scope else op).get_asm(
                enable_debug_info=printing.debuginfo,
                print_generic_op_form=printing.generic,
                large_elements_limit=printing.elide_above,
                use_name_loc_as_prefix=printing.nameloc,
                use_local_scope=not printing.module_scope and op.name != _ROOT,
            )
        )

    def _write(self, when: str, op: ir.Operation, text: str) -> None:
        name = "sym_name" in op.attributes and f" @{ir.StringAttr(op.attributes['sym_name']).value}"
        what = f" ('{op.name}' operation:{name})" if name else ""
        header = f"// -----// IR Dump {when} {self.step.name}{what} //----- //"
        if self.printing.tree_dir:
            self.files += 1
            path = Path(self.printing.tree_dir, f"{self.number}_{self.files}_{self.step.name}.mlir")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{header}\n{text.rstrip()}\n", encoding="utf-8")
        else:
            print(f"{header}\n{text.rstrip()}\n", file=sys.stderr, flush=True)
