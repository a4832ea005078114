"""srjit: low-precision matrix multiplications with stochastic rounding, for any JAX function."""

import ast as _ast
import importlib as _importlib
import sys as _sys
import types as _types

# __init__.pyi says where each public name is from. Names are imported when they are first used:
# srjit-opt needs none of them, and they need all of JAX, which would be most of its time.
with open(f"{__file__}i", encoding="utf-8") as _stub:
    _HOME = {
        alias.name: str(node.module)
        for node in _ast.parse(_stub.read()).body
        if isinstance(node, _ast.ImportFrom)
        for alias in node.names
    }

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _HOME and _HOME[name] == __name__:
        value = _importlib.import_module(f"{__name__}.{name}")
    elif name in _HOME:
        value = getattr(_importlib.import_module(_HOME[name]), name)
    elif name == "__version__":
        from importlib import metadata

        value = metadata.version(__name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


class _Module(_types.ModuleType):
    def __call__(self, *args: object, **kwargs: object) -> object:
        raise TypeError(
            "srjit is a module here, whose decorator has the same name: write srjit.srjit(...), "
            "or import it with `from srjit import srjit`"
        )


_sys.modules[__name__].__class__ = _Module
