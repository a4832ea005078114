"""Nothing imports against the dependency order, and only two files use private parts of JAX."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each part may import: itself, its own row, and the rows above.
ORDER = [
    ["_stack", "_compat", "_mlir", "choices"],
    ["numerics"],
    ["products", "calling", "optim"],
    ["recipes", "targets"],
    ["program"],
    ["planning"],
    ["report"],
    ["jaxprs", "passes"],
    ["modules", "diagnostics", "aot"],
    ["api"],
    ["tools"],
    ["__init__"],
]
ROW = {part: row for row, parts in enumerate(ORDER) for part in parts}
PRIVATE = ("jax._src", "jaxlib")
# The second is what the first would be, if importing JAX were not most of what srjit-opt costs.
MAY_USE_PRIVATE = {"srjit._compat", "srjit._mlir"}


def sources() -> list[Path]:
    """Each source file once: through the link srjit/passes, passes/ would be there twice."""
    in_srjit = (p for p in (ROOT / "srjit").rglob("*.py") if "passes" not in p.parts)
    return sorted([*in_srjit, *(ROOT / "passes").rglob("*.py")])


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["srjit", *parts] if parts[0] == "passes" else parts)


def part_of(module: str) -> str:
    """``srjit.numerics.rounding`` -> ``numerics``; ``srjit`` itself -> ``__init__``."""
    return [*module.split("."), "__init__"][1]


MODULES = {module_of(path): path for path in sources()}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, also inside functions."""
    package = module_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def imported_parts(path: Path) -> Iterator[tuple[int, str]]:
    for line, name in imported(path):
        if name.split(".")[0] == "srjit":
            part = part_of(name)
            # `from srjit import quantize` names no part but the package itself.
            yield line, part if part in ROW else "__init__"


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_every_file_has_a_place_in_the_dependency_order():
    lost = sorted({part_of(module) for module in MODULES} - set(ROW))
    assert not lost, f"in srjit/, but not in the dependency order (ORDER): {lost}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_against_the_dependency_order(module: str):
    path, own = MODULES[module], ROW[part_of(module)]
    against = [
        f"{where(path, line)} imports {part}"
        for line, part in imported_parts(path)
        if ROW[part] > own
    ]
    assert not against


def test_parts_do_not_import_each_other_in_circles():
    graph: dict[str, set[str]] = {part: set() for part in ROW}
    for module, path in MODULES.items():
        graph[part_of(module)] |= {part for _, part in imported_parts(path)} - {part_of(module)}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def dotted(node: ast.AST) -> str:
    """``jax._src.core`` for an attribute chain on a name, otherwise nothing."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr) if base := dotted(value):
            return f"{base}.{attr}"
        case _:
            return ""


def mentions(path: Path) -> Iterator[tuple[int, str]]:
    """Imports, attribute chains, and strings that ``importlib.import_module`` could be given."""
    yield from imported(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield node.lineno, dotted(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.mark.parametrize("module", sorted(set(MODULES) - MAY_USE_PRIVATE))
def test_only_compat_uses_private_parts_of_jax(module: str):
    path = MODULES[module]
    private = {
        f"{where(path, line)}: {name}"
        for line, name in mentions(path)
        if f"{name}.".startswith(tuple(f"{package}." for package in PRIVATE))
    }
    assert not private, "move it to srjit/_compat.py, with its reason"
