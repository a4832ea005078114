"""``docs/passes.md``, from the docstrings of the passes: ``python -m srjit.tools.pass_docs``."""

from __future__ import annotations

import inspect
import re
import textwrap

from srjit.passes.driver import registry
from srjit.passes.driver.options import options_of, text_of_value

_HEAD = """\
<!-- Generated from the passes by `make docs`; a test fails when it is stale. -->

# Passes

Each runs on a whole module, by name, among MLIR's own (`canonicalize`, `cse`, `symbol-dce`, ...):
`srjit-opt module.mlir -p 'srjit-inline-calls,canonicalize'`, or
`srjit.passes.parse("srjit-inline-calls,canonicalize").run(module)`.
"""
_SNIPPET = "Before ==> after:"
_OPTIONS = "Attributes:"
_SECTION = re.compile(rf"^({re.escape(_SNIPPET)}|{_OPTIONS})\n", re.MULTILINE)


def document() -> str:
    """The page of all of srjit's own passes."""
    return "\n".join([_HEAD, *(_section(registry.find(n)) for n in registry.builtin_names())])


def _section(cls: type[registry.Pass]) -> str:
    named = _sections(cls)
    lines = [f"## {cls.name}\n", f"{_markdown(named[''].strip())}\n"]
    if _SNIPPET in named:
        lines.append(f"```mlir\n{textwrap.dedent(named[_SNIPPET]).strip()}\n```\n")
    options = options_of(cls)
    if options:
        described = {k: v for base in cls.__mro__ for k, v in _described(base).items()}
        lines += ["| option | default | value | |", "| --- | --- | --- | --- |"]
        for option in options.values():
            default = text_of_value(option, option.default)
            meaning = _markdown(described.get(option.field, "")).replace("|", "\\|")
            lines.append(f"| `{option.name}` | `{default}` | {option.wants} | {meaning} |")
        lines.append("")
    return "\n".join(lines)


def _sections(cls: type) -> dict[str, str]:
    prose, *sections = _SECTION.split(inspect.cleandoc(cls.__doc__ or ""))
    return {"": prose, **dict(zip(sections[::2], sections[1::2], strict=True))}


def _described(cls: type) -> dict[str, str]:
    text = textwrap.dedent(_sections(cls).get(_OPTIONS, ""))
    entries = re.split(r"^(\w+): ", text, flags=re.MULTILINE)[1:]
    pairs = zip(entries[::2], entries[1::2], strict=True)
    return {field: " ".join(meaning.split()) for field, meaning in pairs}


def _markdown(text: str) -> str:
    return text.replace("``", "`")


if __name__ == "__main__":
    print(document(), end="")
