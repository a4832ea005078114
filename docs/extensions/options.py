"""For the site: functions that take options by name are shown with those options.

``takes`` of ``srjit/api/options.py`` gives them their signature and their documentation when they
are made, so both are read of the function itself.
"""

import inspect
import pydoc
from typing import Any

import griffe


class Options(griffe.Extension):
    """Gives functions with OPTIONS in their docstring the signature and docs that users see."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Replaces parameters and docstring by those of the function that Python has."""
        if func.docstring is None or "OPTIONS" not in func.docstring.value:
            return
        made: Any = pydoc.locate(func.path)
        func.docstring.value = inspect.getdoc(made) or ""
        func.parameters = griffe.Parameters(*map(_parameter, _parameters(made)))


def _parameters(made: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(made).parameters.values())


def _parameter(given: inspect.Parameter) -> griffe.Parameter:
    default = None if given.default is given.empty else repr(given.default)
    annotation = None
    if given.annotation is not given.empty:
        text = inspect.formatannotation(given.annotation)
        annotation = text.strip("'").replace("typing.", "")
    kind = griffe.ParameterKind[given.kind.name.lower()]
    return griffe.Parameter(given.name, annotation=annotation, kind=kind, default=default)
