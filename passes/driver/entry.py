"""The function that a program starts with, where that is not ``@main``.

While passes run, the module that holds it says so: ``srjit.entry = @forward``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from srjit._mlir import ir
from srjit.passes.driver.diagnostics import PipelineError
from srjit.passes.mlir import editing
from srjit.program.stablehlo import operations


def located(module: ir.Operation, entry: str) -> ir.Operation:
    """The function called ``entry``, in a module or in one that is nested in it.

    Args:
      module: the outermost.
      entry: a name (``forward``), or the end of a path through modules (``inner::forward``).

    Raises:
      PipelineError: there is none, or more than one.
    """
    known = operations.functions_within(module)
    wanted = entry.replace("@", "")
    ends = [path for path in known if f"::{path}".endswith(f"::{wanted}")]
    found = [wanted] if wanted in known else ends
    if len(found) != 1:
        why = f"more than one function {entry!r}: {', '.join(found)}" if found else (
            f"no function {entry!r}; {operations.listed(module) or 'it has none at all'}"
        )  # fmt: skip
        raise PipelineError(f"the module has {why}")
    return known[found[0]]


def module_around(function: ir.Operation) -> ir.Operation:
    """The innermost module in which a function stands."""
    parent = function.parent
    assert parent is not None
    return parent.operation


@contextlib.contextmanager
def entered(module: ir.Operation, entry: str | None) -> Generator[ir.Operation]:
    """The module that holds the entry, and says so for as long as the context lasts.

    Raises:
      PipelineError: there is no such function.
    """
    if entry is None:
        yield module
        return
    function = located(module, entry)
    inner = module_around(function)
    mark(function)
    try:
        yield inner
    finally:
        if operations.ENTRY in inner.attributes:
            del inner.attributes[operations.ENTRY]


def mark(function: ir.Operation) -> None:
    """Makes a function the entry of its module."""
    name = operations.text(function, "sym_name")
    symbol = ir.FlatSymbolRefAttr.get(name, function.context)
    module_around(function).attributes[operations.ENTRY] = symbol


def make_main(module: ir.Operation) -> None:
    """Calls the entry of a module ``@main``, as JAX and XLA want it, and hides all other functions.

    A function that was called so gets another name.
    """
    known, entry = operations.functions(module), operations.entry_of(module)
    if entry == "main":
        return
    del module.attributes[operations.ENTRY]
    symbols = ir.SymbolTable(module)
    for name, op in known.items():
        visibility = "public" if name == entry else "private"
        op.attributes["sym_visibility"] = ir.StringAttr.get(visibility, module.context)
    renamed = {"main": editing.free_symbol("main", set(known))} if "main" in known else {}
    for old, new in (*renamed.items(), (entry, "main")):
        ir.SymbolTable.replace_all_symbol_uses(old, new, module)
        symbols.set_symbol_name(known[old], new)
