"""Equations of jaxprs, evaluated as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def bind(eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
    """The outputs of an equation as it is."""
    out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return out if eqn.primitive.multiple_results else [out]
