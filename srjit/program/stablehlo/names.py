"""MLIR locations as JAX writes them: name stacks, and lines of the user's code."""

from __future__ import annotations

import dataclasses
import functools
import re

_NAME = re.compile(r'"((?:[^"\\]|\\.)*)"(?!:\d)')
_FILE = re.compile(r'"((?:[^"\\]|\\.)*)":(\d+):\d+')
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
    """One location, read.

    Attributes:
      scopes: names of the scopes that a user (or a framework) opened, outermost first.
      transforms: the JAX transformations around the operation, outermost first.
      location: ``file:line`` of the innermost line of code, or nothing.
    """

    scopes: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()
    location: str = ""


@functools.lru_cache(maxsize=65536)
def read(text: str, is_leaf: bool) -> Names:
    """The names in a location's text.

    Args:
      text: ``str(op.location)``.
      is_leaf: whether the last name is the operation's own, as on all but calls and regions.
    """
    file = _FILE.search(text)
    location = f"{file[1]}:{file[2]}" if file else ""
    stacks = [_stack(name, is_leaf and not i) for i, name in enumerate(_names(text))]
    scopes = tuple(s for stack in reversed(stacks) for s in stack[0])
    transforms = tuple(t for stack in reversed(stacks) for t in stack[1])
    return Names(scopes, transforms, location)


def _names(text: str) -> list[str]:
    """The name of a location, innermost first where calls have been inlined into one another."""
    if text.startswith("loc("):
        text = text[4:]
    head = text
    # JAX's inlining writes an empty name around what a call without a name stands for.
    while (wrapper := re.match(r"(?:callsite\(|fused(?:<[^>]*>)?\[|\"\"\()", head)) is not None:
        head = head[wrapper.end() :]
    name = _NAME.match(head)
    # Around what JAX has inlined it writes what that was part of, with a colon.
    while name and name[1].endswith(":") and (inner := _NAME.match(head, name.end() + 1)):
        name = inner
    return [name[1].replace('\\"', '"')] if name else []


def _stack(name: str, is_leaf: bool) -> tuple[list[str], list[str]]:
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
    return [n for is_it, n in typed if not is_it], [n for is_it, n in typed if is_it]


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
