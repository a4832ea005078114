"""``srjit.report``, on a quantized module: what a report says beside its sites."""

from __future__ import annotations

import dataclasses
from typing import Any

from srjit.passes.driver.registry import PassError
from srjit.passes.mlir import attributes
from srjit.passes.mlir.annotation import REPORT
from srjit.planning.site import SitePlan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """The choices that a module was quantized with, and notes.

    ``left_alone``: entries of what may multiply where srjit does not look.
    """

    recipe: str
    target: str
    mode: str
    notes: tuple[str, ...] = ()
    left_alone: tuple[SitePlan, ...] = ()


def header_of(module: Any) -> Header | None:
    """The header of a quantized module; None of others.

    Raises:
      PassError: it is not what srjit writes.
    """
    if REPORT not in module.attributes:
        return None
    try:
        return attributes.decode(Header, module.attributes[REPORT])
    except ValueError as error:
        raise PassError(None, f"malformed {REPORT}: {error}") from None
