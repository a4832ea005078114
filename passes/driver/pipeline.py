"""Pipelines of passes, in the grammar of MLIR's tools.

::

    pipeline ::= list | "builtin.module" "(" list ")"
    list     ::= element ("," element)*
    element  ::= pass options? | operation "(" list ")"
    options  ::= "{" (key ("=" value)?)* "}"
    value    ::= text without spaces | "'" ... "'" | '"' ... '"' | "{" ... "}"

A list of values is written ``a=1,2`` or ``a={1,2}``. Passes of srjit run on the whole module. What
is not a pass of srjit's is MLIR's, and MLIR judges its name and its options.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import string
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, Unpack, overload

from srjit import _mlir
from srjit._mlir import ir
from srjit.passes.driver import diagnostics, registry, running
from srjit.passes.driver.entry import entered
from srjit.passes.driver.options import (
    closing,
    end_of,
    nearest,
    options_of,
    text_of,
    value_of,
)
from srjit.passes.driver.registry import Pass
from srjit.passes.mlir import serialization

_ROOT = "builtin.module"
_PUNCTUATION = re.compile(r"[,(){}\s]")
# MLIR cannot list its passes; these are for suggestions.
_MLIR_PASSES = (
    *("any", "canonicalize", "control-flow-sink", "cse", "inline", "loop-invariant-code-motion"),
    *("mem2reg", "print-ir", "print-op-stats", "remove-dead-values", "sccp", "strip-debuginfo"),
    *("symbol-dce", "symbol-privatize", "topological-sort", "view-op-graph"),
    *("chlo-legalize-to-stablehlo", "shape-legalize-to-stablehlo", "stablehlo-convert-to-signless"),
    *("stablehlo-canonicalize-dynamism", "stablehlo-check-shape-assertions"),
    *("stablehlo-compatibility-expander", "stablehlo-complex-math-expander"),
    *("stablehlo-legalize-composite-to-call", "stablehlo-legalize-deprecated-ops"),
    *("stablehlo-legalize-quant-to-math", "stablehlo-legalize-to-linalg"),
    *("stablehlo-legalize-to-vhlo", "stablehlo-refine-arguments", "stablehlo-refine-shapes"),
    *("stablehlo-wrap-in-composite", "vhlo-legalize-to-stablehlo", "vhlo-to-version"),
    *("sdy-propagation-pipeline", "sdy-lift-inlined-meshes", "sdy-inline-meshes"),
)
# Projects, some of whose passes jaxlib's bindings do not register, and the tools that have them.
_TOOLS = {"stablehlo": "stablehlo-opt", "chlo": "stablehlo-opt", "vhlo": "stablehlo-opt",
          "sdy": "sdy_opt", "mhlo": "mlir-hlo-opt", "hlo": "mlir-hlo-opt"}  # fmt: skip


class PipelineSyntaxError(ValueError):
    """A pipeline's text is wrong; the message points at the character.

    Attributes:
      text: the whole pipeline.
      position: the index of the character.
      reason: what is wrong, in one line.
    """

    def __init__(self, reason: str, text: str, position: int) -> None:
        start = text.rfind("\n", 0, position) + 1
        line = text[start:].partition("\n")[0]
        shown = diagnostics.pointed_at(f"  {line}", position - start + 2)
        super().__init__(f"{reason}\n{shown}")
        self.text, self.position, self.reason = text, position, reason


@dataclasses.dataclass(frozen=True)
class MlirPass:
    """One of MLIR's own passes, with its options as they were written."""

    name: str
    options: tuple[tuple[str, str | None], ...] = ()

    def __str__(self) -> str:
        given = " ".join(k if v is None else f"{k}={v}" for k, v in self.options)
        return self.name + (f"{{{given}}}" if given else "")


@dataclasses.dataclass(frozen=True)
class Nested:
    """MLIR's passes run on every operation of one kind."""

    anchor: str
    elements: tuple[MlirPass | Nested, ...]

    def __str__(self) -> str:
        return f"{self.anchor}({','.join(map(str, self.elements))})"


Element: TypeAlias = Pass | MlirPass | Nested


@dataclasses.dataclass(frozen=True, init=False)
class Pipeline:
    """Passes in the order in which they run on a module.

    ``Pipeline("canonicalize,cse", MyPass(limit=3), "srjit-inline-calls")``: text, passes and other
    pipelines, one after the other. ``str()`` gives text that ``parse`` reads back as an equal
    value, if all its passes are registered.

    Attributes:
      elements: the passes.
    """

    elements: tuple[Element, ...]

    def __init__(self, *parts: str | Element | Pipeline) -> None:
        elements: list[Element] = []
        for part in parts:
            if isinstance(part, str):
                elements += parse(part).elements
            elif isinstance(part, Pipeline):
                elements += part.elements
            elif isinstance(part, (Pass, MlirPass, Nested)):  # pyright: ignore
                elements.append(part)
            else:
                raise TypeError(f"expected a pass or a pipeline's text, got {part!r}")
        object.__setattr__(self, "elements", tuple(elements))

    def __str__(self) -> str:
        elements = (text_of(e) if isinstance(e, Pass) else str(e) for e in self.elements)
        return f"{_ROOT}({','.join(elements)})"

    def __repr__(self) -> str:
        return f"passes.parse({str(self)!r})"

    def __iter__(self) -> Iterator[Element]:
        return iter(self.elements)

    def __len__(self) -> int:
        return len(self.elements)

    @overload
    def run(
        self,
        module: str | bytes,
        *,
        entry: str | None = None,
        **options: Unpack[running.RunOptions],
    ) -> ir.Module: ...
    @overload
    def run(
        self,
        module: running.AnyModule,
        *,
        entry: str | None = None,
        **options: Unpack[running.RunOptions],
    ) -> running.AnyModule: ...
    def run(
        self, module: Any, *, entry: str | None = None, **options: Unpack[running.RunOptions]
    ) -> Any:
        """Runs the passes under MLIR's pass manager.

        Args:
          module: an ``ir.Module`` or the operation of one, which is changed in place; or text,
            bytecode or a portable artifact, from which a module is made.
          entry: the function that the program starts with, if that is not ``@main``: ``"forward"``
            or, in nested modules, ``"inner::forward"``, whose module alone the passes then run on.
          **options: ``verify_each``: verify the module after each pass (true); ``timing``: print
            MLIR's table of times, on standard error; ``printing``: when to print the program;
            ``sink``: called with each diagnostic as it comes, where otherwise warnings are Python
            warnings; ``seen``: called with each stage, where otherwise ``SRJIT_DUMP_TO`` names a
            folder that they are written to.

        Returns:
          The changed module.

        Raises:
          PipelineError: the module cannot be parsed, has no such entry, or a pass failed; a module
            given as an object is then as the failing pass left it.
          TypeError: it is not a module.
          OSError: the program cannot be dumped.
        """
        if isinstance(module, (str, bytes)):
            module = serialization.parse(module)
        is_by_name = options.get("printing", running.NOTHING).is_by_name
        steps = [step for e in self.elements for step in _steps(e, one_by_one=is_by_name)]
        with entered(module.operation, entry) as operation:
            running.run(steps, operation, **options)
        return module


def _steps(
    element: Element, path: tuple[str, ...] = (), *, one_by_one: bool
) -> Iterator[running.Step]:
    """The steps that an element is.

    If one by one, passes under one operation do not see the others of its kind.
    """
    if one_by_one and isinstance(element, Nested):
        for inner in element.elements:
            yield from _steps(inner, (*path, element.anchor), one_by_one=True)
    else:
        yield running.Step(path, element if isinstance(element, Pass) else str(element))


# ------------------------------------------------------------------------------------------ parsing


def parse(text: str) -> Pipeline:
    """The pipeline that ``text`` says, with or without ``builtin.module(...)`` around it.

    Raises:
      PipelineSyntaxError: it is malformed, or has passes or options that do not exist.
    """
    return Pipeline(*_Parser(text).pipeline())


@dataclasses.dataclass(frozen=True)
class _Given:
    """An option as it was written, and where."""

    key: str
    key_at: int
    raw: str | None
    raw_at: int


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.pos = text, 0

    def error(self, reason: str, at: int | None = None) -> PipelineSyntaxError:
        return PipelineSyntaxError(reason, self.text, self.pos if at is None else at)

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while self.pos < len(self.text) and self.text[self.pos].isspace():
            self.pos += 1
        return self.text[self.pos : self.pos + 1]

    def word(self) -> str:
        match = _PUNCTUATION.search(self.text, self.pos)
        start, self.pos = self.pos, match.start() if match else len(self.text)
        return self.text[start : self.pos]

    def pipeline(self) -> Sequence[Element]:
        if not self.peek():
            return ()
        opening = re.compile(rf"\s*{re.escape(_ROOT)}\s*\(").match(self.text)
        if opening is not None and self._is_alone(opening.end() - 1):
            self.pos = opening.end()
            elements = () if self.peek() == ")" else self.elements(())
            self.pos += 1
            return elements
        elements = self.elements(())
        if self.peek():
            raise self.error(f"unmatched {self.peek()!r}")
        return elements

    def _is_alone(self, opened: int) -> bool:
        """True if the text ends where the parenthesis at ``opened`` is closed."""
        closed = closing(self.text, opened, "()")
        if closed < 0:
            raise self.error("this '(' is never closed", opened)
        return not self.text[closed + 1 :].strip()

    def elements(self, path: tuple[str, ...]) -> list[Any]:
        elements = [self.element(path)]
        while self.peek() == ",":
            self.pos += 1
            elements.append(self.element(path))
        return elements

    def element(self, path: tuple[str, ...]) -> Any:
        self.peek()
        at, name = self.pos, self.word()
        if not name:
            what = repr(self.peek()) if self.peek() else "the end"
            raise self.error(f"expected the name of a pass, found {what}", at)
        if self.peek() == "(":
            return self.nested(name, at, path)
        given = self.options() if self.peek() == "{" else []
        if self.peek() not in ("", ",", ")"):
            raise self.error(f"expected ',' after {name!r}")
        if registry.knows(name):
            return self.ours(name, at, given, path)
        mlir_pass = MlirPass(name, tuple((option.key, option.raw) for option in given))
        anchor = self.check_mlir(mlir_pass, {"": at, **{o.key: o.key_at for o in given}}, path)
        return Nested(anchor, (mlir_pass,)) if anchor else mlir_pass

    def nested(self, anchor: str, at: int, path: tuple[str, ...]) -> Nested:
        if registry.knows(anchor):
            reason = f"{anchor!r} is a pass, not an operation: options are written {anchor}{{a=1}}"
            raise self.error(reason, at)
        opened = self.pos
        self.pos += 1
        elements = self.elements((*path, anchor))
        if self.peek() != ")":
            raise self.error("this '(' is never closed", opened)
        self.pos += 1
        return Nested(anchor, tuple(elements))

    def options(self) -> list[_Given]:
        closed = closing(self.text, self.pos, "{}")
        if closed < 0:
            raise self.error("this '{' is never closed")
        self.pos += 1
        given: list[_Given] = []
        while self.peek() and self.pos < closed:
            key_at = self.pos
            match = re.compile(r"[^\s=]+").match(self.text, self.pos, closed)
            if match is None:
                raise self.error("expected the name of an option")
            key, self.pos = match.group(), match.end()
            raw, raw_at = None, self.pos
            if self.peek() == "=":
                self.pos += 1
                raw_at, self.pos = self.pos, end_of(self.text, self.pos, string.whitespace + "}")
                raw = self.text[raw_at : self.pos]
            given.append(_Given(key, key_at, raw, raw_at))
        self.pos = closed + 1
        return given

    def ours(self, name: str, at: int, given: list[_Given], path: tuple[str, ...]) -> Pass:
        if path:
            around = "(".join(path)
            raise self.error(
                f"{name!r} runs on the whole module and cannot be nested under {around!r}: "
                f"write it before or after {path[0]}(...)",
                at,
            )
        try:
            cls = registry.find(name)
        except registry.UnknownPassError as error:
            raise self.error(str(error), at) from error
        known = options_of(cls)
        fields: dict[str, Any] = {}
        for option in given:
            spec = known.get(option.key.replace("_", "-"))
            if spec is None:
                has = f"it has {', '.join(known)}" if known else "it has none"
                near = nearest(option.key, known)
                reason = f"{name} has no option {option.key!r}{near or f'; {has}'}"
                raise self.error(reason, option.key_at)
            if option.raw is None and spec.element is not bool:
                reason = f"option {option.key!r} of {name} needs a value: {option.key}=..."
                raise self.error(reason, option.key_at)
            if spec.field in fields:
                raise self.error(f"option {option.key!r} is given twice", option.key_at)
            try:
                fields[spec.field] = value_of(spec, option.raw)
            except ValueError as error:
                reason = f"option {spec.name!r} of {name} has to be {spec.wants}, not {error}"
                raise self.error(reason, option.raw_at) from None
        try:
            return cls(**fields)
        except (TypeError, ValueError, LookupError) as error:  # what the pass itself refuses
            raise self.error(f"{name}: {error}", at) from error

    def check_mlir(self, mlir_pass: MlirPass, at: dict[str, int], path: tuple[str, ...]) -> str:
        """MLIR's judgement of one of its passes, at its place.

        Not of the whole text at once: MLIR's own errors then do not tell where.

        Returns:
          The operation to nest it under, as the flags of MLIR's tools do it; empty if it need not.
        """
        manager = _mlir.passmanager.PassManager(_ROOT, context=_parsing_context())
        try:
            manager.add(running.Step(path, str(mlir_pass)).text)
        except ValueError as error:
            anchor = re.search(r"restricted to '([\w.]+)' on a PassManager", str(error))
            if anchor and not path:
                return anchor[1]
            if "does not refer to a registered pass" in str(error):
                near = nearest(mlir_pass.name, [*registry.names(), *_MLIR_PASSES])
                if tool := _TOOLS.get(mlir_pass.name.partition("-")[0]):
                    near = f": jaxlib's bindings have no such pass, {tool} may{near}"
                raise self.error(f"unknown pass {mlir_pass.name!r}{near}", at[""]) from None
            said = str(error).strip().splitlines()[0]
            option = re.search(r"no such option (\S+)|'(\S+)' option: ", said)
            named = (option[1] or option[2]) if option else ""
            raise self.error(f"MLIR says: {said}", at.get(named, at[""])) from None
        return ""


@functools.cache
def _parsing_context() -> ir.Context:
    return _mlir.new_context()
