"""Optimized HLO as its compiler prints it: computations, their instructions, what those cost.

It reads what ``jax.stages.Compiled.as_text()`` returns, for any platform, without checking it; what
an instruction costs is there on platforms whose compiler writes its estimate down.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Generator, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array.

    Attributes:
      dtype: as HLO calls it: ``bf16``, ``s8``, ``f8e4m3fn``, ``pred``.
      dims: sizes.
      layout: what follows, in braces: order, tiles, memory space; empty if nothing does.
    """

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: without the percent sign.
      opcode: ``fusion``, ``convolution``, ``custom-call``, ``while``, ...
      shapes: of its result; a tuple's leaves.
      operands: names of instructions of the same computation.
      literal: what stands between its parentheses: a constant's value, a parameter's number.
      rest: its attributes, as text.
      is_root: whether its computation returns it.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    rest: str
    is_root: bool = False

    @functools.cached_property
    def attributes(self) -> dict[str, str]:
        """Its attributes by name, as text: ``{"kind": "kLoop", "calls": "%fused", ...}``."""
        parts = (part.partition("=") for part in _parts(self.rest))
        return {name: value for name, equals, value in parts if equals}

    @functools.cached_property
    def op_name(self) -> str:
        """The name stack of what it was lowered from; empty if the compiler made it up."""
        found = _OP_NAME.search(self.attributes.get("metadata", ""))
        return found.group(1).replace('\\"', '"') if found else ""

    @functools.cached_property
    def calls(self) -> tuple[str, ...]:
        """Names of the computations that it calls, in the order in which they stand."""
        texts = [self.attributes[name] for name in _CALLS if name in self.attributes]
        return tuple(name for text in texts for name in _REFERENCE.findall(text))

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """Its backend_config, if that is an object."""
        text = self.attributes.get("backend_config", "")
        try:
            config = json.loads(text)
        except ValueError:
            return {}
        return config if isinstance(config, dict) else {}

    @property
    def target(self) -> str:
        """The function that a custom call calls; empty for other instructions."""
        return self.attributes.get("custom_call_target", "").strip('"')

    @property
    def kernel(self) -> str:
        """The name of the kernel that a custom call has XLA compile; empty for others."""
        found = _KERNEL.search(self.attributes.get("backend_config", ""))
        return found.group(1) if found else ""

    @property
    def kernel_body(self) -> str:
        """The program of a TPU's kernel, as its custom call has it; empty for others."""
        config = self.config.get("custom_call_config")
        return str(config.get("body", "")) if isinstance(config, dict) else ""

    @property
    def cycles(self) -> int | None:
        """The compiler's estimate of one execution, in cycles; None if it made none to use."""
        return None if self.is_unusable else self._estimated

    @property
    def is_unusable(self) -> bool:
        """True if the compiler's estimate is none: int64's maximum, or a sum that went beyond."""
        return self._estimated is not None and not _is_usable(self._estimated)

    @property
    def _estimated(self) -> int | None:
        return _integer(self.config.get("window_config"), "estimated_cycles")

    @property
    def profiled_cycles(self) -> int | None:
        """A kernel's estimate from its own schedule, in cycles; None if the compiler made none.

        It is of another model than ``cycles``, and leaves out what waits for memory.
        """
        found = _integer(self.config.get("bundle_analysis_data"), "estimated_cycles")
        return found if found is not None and _is_usable(found) else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation: its instructions by name, in the order in which they run if scheduled."""

    name: str
    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result it returns."""
        instructions = list(self.instructions.values())
        return next((i for i in instructions if i.is_root), instructions[-1])

    def operands(self, instruction: Instruction) -> list[Instruction]:
        """Returns the instructions that one of this computation reads."""
        return [self.instructions[name] for name in instruction.operands]

    def __iter__(self) -> Generator[Instruction]:
        yield from self.instructions.values()


@dataclasses.dataclass(frozen=True)
class Executed:
    """An instruction, and how often a run of the program executes it.

    Attributes:
      instruction, computation: which, and where it stands.
      times: product of the trip counts of the loops around it; an unknown one counts once.
      is_beside: whether it runs beside the rest, on another unit: inside of an ``async-start``.
    """

    instruction: Instruction
    computation: Computation
    times: int = 1
    is_beside: bool = False


@dataclasses.dataclass(frozen=True)
class Module:
    """A module: its computations by name, and which of them is the program.

    Beside them ``devices``, how many run it, and, where a GPU's compiler writes it down,
    ``assembly``: the instructions in its kernels that round, by the name of a kernel.
    """

    computations: Mapping[str, Computation]
    entry: Computation
    devices: int = 1
    assembly: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def executed(self) -> Generator[Executed]:
        """Every instruction that runs on its own, loops, branches and calls gone into.

        What a fusion, a reduction or a sort calls runs as one with it: see ``inside``. Of a
        conditional, all branches are counted.
        """
        yield from self._executed(Executed(self.entry.root, self.entry))

    def _executed(self, place: Executed) -> Generator[Executed]:
        for instruction in place.computation:
            here = dataclasses.replace(place, instruction=instruction)
            yield here
            if instruction.opcode not in _SEQUENTIAL:
                continue
            trips = self.trips(instruction, place.computation)
            inner = dataclasses.replace(
                here,
                times=place.times * (trips or 1),
                is_beside=place.is_beside or instruction.opcode == "async-start",
            )
            for name in instruction.calls:
                yield from self._executed(
                    dataclasses.replace(inner, computation=self.computations[name])
                )

    def inside(self, instruction: Instruction) -> Generator[tuple[Computation, Instruction]]:
        """Every instruction that runs as one with ``instruction``, with where it stands."""
        for name in () if instruction.opcode in (_SEQUENTIAL | _STARTED) else instruction.calls:
            computation = self.computations[name]
            for inner in computation:
                yield computation, inner
                yield from self.inside(inner)

    def trips(self, instruction: Instruction, where: Computation) -> int | None:
        """The trips of a ``while`` of the computation ``where``; None if not known.

        Known is what the compiler wrote down, and a loop that counts from a constant to a constant
        by a constant. Other instructions run what they call once.
        """
        if instruction.opcode != "while":
            return 1
        known = _integer(instruction.config.get("known_trip_count"), "n")
        return known if known is not None else self._counted(instruction, where)

    def _counted(self, loop: Instruction, where: Computation) -> int | None:
        cond = self.computations[loop.attributes["condition"].lstrip("%")]
        body = self.computations[loop.attributes["body"].lstrip("%")]
        start, step = where.operands(loop)[0], body.root
        test = cond.root
        if (start.opcode, step.opcode, test.opcode) != ("tuple", "tuple", "compare"):
            return None

        def constant(scope: Computation, value: Instruction) -> int | None:
            """An integer constant, also one that the loop is given and does not change."""
            value = _through_copies(scope, value)
            index = _element(scope, value)
            if index is None or scope is where:
                is_integer = value.opcode == "constant" and _INTEGER.fullmatch(value.literal)
                return int(value.literal) if is_integer else None
            if _element(body, _through_copies(body, body.operands(step)[index])) != index:
                return None
            return constant(where, where.operands(start)[index])

        counter, limit = (_through_copies(cond, o) for o in cond.operands(test))
        index, last = _element(cond, counter), constant(cond, limit)
        if test.attributes.get("direction") != "LT" or index is None or last is None:
            return None
        first = constant(where, where.operands(start)[index])
        increment = _through_copies(body, body.operands(step)[index])
        if increment.opcode != "add" or first is None:
            return None
        one, other = (_through_copies(body, o) for o in body.operands(increment))
        if _element(body, one) != index:
            one, other = other, one
        by = constant(body, other)
        if _element(body, one) != index or by is None or by <= 0:
            return None
        return max(0, -(-(last - first) // by))


def read(text: str) -> Module:
    """Reads a module.

    Args:
      text: optimized HLO, as ``jax.stages.Compiled.as_text()`` returns it.

    Raises:
      ValueError: there is no ENTRY computation in it, or a line cannot be read.
    """
    entry = None
    computations: dict[str, Computation] = {}
    current: dict[str, Instruction] = {}
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = {}
            computations[header["name"]] = Computation(header["name"], current)
            entry = header["name"] if header["entry"] else entry
        elif line.startswith("  ") and computations:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("this is not a module of HLO: no computation in it is the ENTRY")
    header = text.partition("\n")[0]
    return Module(computations, computations[entry], math.prod(map(int, _DEVICES.findall(header))))


# ------------------------------------------------------------------------------------------ reading

_HEADER = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[^\s(]+) (\(.*)?\{$")
_INSTRUCTION = re.compile(r"\s+(?P<root>ROOT )?%?(?P<name>\S+) = ")
_OPCODE = re.compile(r" ?(?P<opcode>[\w-]+)\(")
_SHAPE = re.compile(r"(?P<dtype>[a-z]\w*)\[(?P<dims>[^\]]*)\](?P<layout>\{[^}]*\})?")
_REFERENCE = re.compile(r"%([^\s,(){}]+)")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_KERNEL = re.compile(r'\bname = "([^"]*)"')
_UNUSABLE = 2**50  # cycles: a week
_DEVICES = re.compile(r"(?:num_partitions|replica_count)=(\d+)")
_INTEGER = re.compile(r"-?\d+")
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[(){}\[\],]')
_CALLS = (
    "calls",
    "to_apply",
    "condition",
    "body",
    "branch_computations",
    "true_computation",
    "false_computation",
    "called_computations",
    "async_computation",
)
_SEQUENTIAL = frozenset({"while", "call", "conditional", "async-start"})
_STARTED = frozenset({"async-update", "async-done"})
_COPIES = frozenset({"copy", "bitcast", "copy-done", "copy-start"})


def _instruction(line: str) -> Instruction:
    start = _INSTRUCTION.match(line)
    if start is None:
        raise ValueError(f"cannot read this line of HLO: {line.strip()[:200]}")
    is_tuple = line.startswith("(", start.end())
    end = _closing(line, start.end()) if is_tuple else line.index(" ", start.end())
    opcode = _OPCODE.match(line, end)
    if opcode is None:
        raise ValueError(f"no opcode in this line of HLO: {line.strip()[:200]}")
    close = _closing(line, opcode.end() - 1)
    inside = line[opcode.end() : close - 1]
    given = () if opcode["opcode"] == "constant" else tuple(_REFERENCE.findall(inside))
    return Instruction(
        name=start["name"],
        opcode=opcode["opcode"],
        shapes=tuple(map(_shape, _SHAPE.finditer(line, start.end(), end))),
        operands=given,
        literal=inside,
        rest=line[close:].lstrip(", "),
        is_root=start["root"] is not None,
    )


def _shape(found: re.Match[str]) -> Shape:
    # A dimension of dynamic size is written as its bound, after "<=".
    dims = tuple(int(d.strip().lstrip("<=")) for d in found["dims"].split(",") if d.strip())
    return Shape(found["dtype"], dims, found["layout"] or "")


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at ``start``."""
    depth = 0
    for mark in _BRACKETS.finditer(text, start):
        depth += (mark[0] in "({[") - (mark[0] in ")}]")
        if depth == 0:
            return mark.end()
    raise ValueError(f"brackets do not match in this line of HLO: {text.strip()[:200]}")


def _parts(text: str) -> Generator[str]:
    """Yields parts that commas outside of brackets and strings separate."""
    depth = start = 0
    for mark in _BRACKETS.finditer(text):
        depth += (mark[0] in "({[") - (mark[0] in ")}]")
        if mark[0] == "," and depth == 0:
            yield text[start : mark.start()].strip()
            start = mark.end()
    yield text[start:].strip()


def _is_usable(cycles: int) -> bool:
    return 0 <= cycles < _UNUSABLE


def _integer(config: Any, name: str) -> int | None:
    found = config.get(name) if isinstance(config, dict) else None
    return None if found is None else int(found)


def _through_copies(scope: Computation, value: Instruction) -> Instruction:
    while value.opcode in _COPIES:
        value = scope.operands(value)[0]
    return value


def _element(scope: Computation, value: Instruction) -> int | None:
    """The element of the computation's argument that a value is; None if it is none."""
    if value.opcode != "get-tuple-element" or scope.operands(value)[0].opcode != "parameter":
        return None
    return int(value.attributes["index"])
