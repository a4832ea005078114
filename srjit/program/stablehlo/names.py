"""MLIR locations as JAX writes them: name stacks, and lines of the user's code."""

from __future__ import annotations

import dataclasses
import functools
import re

from srjit._mlir import ir

_ESCAPE = re.compile(rb"\\([0-9A-F]{2})")  # so MLIR prints bytes that are no printable ASCII
_WRAPPED = re.compile(r"(\w+)\((.*)\)$", re.DOTALL)
_TRANSFORMS = ("jvp", "transpose", "vmap")
_CALLS = ("jit", "pjit", "pmap", "xla_call", "core_call")
# What JAX itself adds to a name stack for an operation that holds a program of its own.
STRUCTURE = frozenset(
    {
        "while", "body", "cond", "scan", "closed_call", "core_call", "checkpoint", "remat",
        "remat2",
        "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "shard_map", "eval_jaxpr",
        "custom_lin", "run_state", "pjit", "jit", "composite",
    }
)  # fmt: skip
_REMAT = ("checkpoint", "remat2")
_BRANCH = re.compile(r"branch_\d+_fun$")


@dataclasses.dataclass(frozen=True)
class Names:
    """The name stack of an operation.

    Attributes:
      scopes: names of the scopes that a user (or a framework) opened, outermost first.
      transforms: the JAX transformations around the operation, outermost first.
    """

    scopes: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()

    def within(self, around: Names) -> Names:
        """The rest of a name stack that may begin with that of an operation around."""
        n, m = len(around.scopes), len(around.transforms)
        return Names(
            self.scopes[n if self.scopes[:n] == around.scopes else 0 :],
            self.transforms[m if self.transforms[:m] == around.transforms else 0 :],
        )


class Locations:
    """Reads locations of one module; the same part of many is looked at once.

    Args:
      module: one of which most locations will be read: they are looked at together.
    """

    def __init__(self, module: ir.Operation | None = None) -> None:
        self._checked: dict[ir.Location, bool] = {}
        self._are_utf8 = module is not None and _is_utf8(
            str(module.get_asm(enable_debug_info=True, large_elements_limit=0))
        )

    def name_of(self, location: object) -> str:
        """The name that JAX gave an operation; of inlined code, the innermost one."""
        match location:
            case ir.NameLoc():
                if not self._is_utf8(location):
                    return ""
                name, inner = location.name_str, location.child_loc
                # JAX writes names around what it has inlined: an empty one, or one with a colon.
                if name.endswith(":") and isinstance(inner, ir.NameLoc):
                    return self.name_of(inner)
                return name or self.name_of(inner)
            case ir.CallSiteLoc():
                return self.name_of(location.callee)
            case ir.FusedLoc():
                return next((n for inner in location.locations if (n := self.name_of(inner))), "")
            case _:
                return ""

    def place_of(self, location: object) -> tuple[str, int, int] | None:
        """File, line and column of the innermost line of code that a location has."""
        match location:
            case ir.FileLineColLoc():
                if not self._is_utf8(location):
                    return None
                return location.filename, location.start_line, location.start_col
            case ir.NameLoc():
                return self.place_of(location.child_loc)
            case ir.CallSiteLoc():
                return self.place_of(location.callee) or self.place_of(location.caller)
            case ir.FusedLoc():
                return next((p for each in location.locations if (p := self.place_of(each))), None)
            case _:
                return None

    def line_of(self, location: object) -> str:
        """``file:line`` of the innermost line of code, or nothing."""
        place = self.place_of(location)
        return f"{place[0]}:{place[1]}" if place else ""

    def _is_utf8(self, location: ir.Location) -> bool:
        """True if a location's strings are UTF-8: the bindings abort the process at others.

        Only printing it tells; the bindings give no bytes.
        """
        if self._are_utf8:
            return True
        known = self._checked.get(location)
        if known is None:
            known = self._checked[location] = _is_utf8(str(location))
        return known


def _is_utf8(printed: str) -> bool:
    if "\\" not in printed:
        return True
    try:
        _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), printed.encode()).decode()
    except UnicodeDecodeError:
        return False
    return True


@functools.lru_cache(maxsize=65536)
def read(name: str, is_leaf: bool) -> Names:
    """The name stack that a name spells.

    Args:
      name: that of an operation's location.
      is_leaf: whether its last part is the operation's own, as on all but calls and regions.
    """
    parts = _split(name)
    if is_leaf or (parts and _is_structure(parts[-1])):
        parts = parts[:-1]
    typed: list[tuple[bool, str]] = []  # (whether it is a transformation, name), outermost first
    for part in parts:
        if part in _REMAT:
            typed = _without_repetition(typed)
        while (wrapped := _WRAPPED.match(part)) and wrapped[1] in _TRANSFORMS:
            typed.append((True, wrapped[1]))
            part = wrapped[2]
        if part and not _is_structure(part):
            typed.append((False, part))
    return Names(
        tuple(n for is_transform, n in typed if not is_transform),
        tuple(n for is_transform, n in typed if is_transform),
    )


def _without_repetition(typed: list[tuple[bool, str]]) -> list[tuple[bool, str]]:
    """A stack whose end is not there twice, as JAX writes it on the transpose of a remat."""
    for n in range(len(typed) // 2, 0, -1):
        if typed[-n:] == typed[-2 * n : -n]:
            return typed[:-n]
    return typed


def _is_structure(part: str) -> bool:
    part = part.removesuffix(":")  # so JAX calls what it has inlined
    wrapped = _WRAPPED.match(part)
    return (
        part in STRUCTURE
        or _BRANCH.match(part) is not None
        or (wrapped is not None and wrapped[1] in _CALLS)
    )


def _split(name: str) -> list[str]:
    """The parts of a name between slashes that are in no parentheses."""
    parts, depth, start = list[str](), 0, 0
    for i, c in enumerate(name):
        depth += (c == "(") - (c == ")")
        if c == "/" and depth <= 0:
            parts.append(name[start:i])
            start = i + 1
    return [*parts, name[start:]]
