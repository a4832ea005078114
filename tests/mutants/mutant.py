"""One planted mistake."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
    """A mistake.

    Attributes:
      module: where it is planted.
      old: what the source says.
      new: what the mutant says.
      killed_by: tests under ``tests/``, with parameters, that must fail.
    """

    module: str
    old: str
    new: str
    killed_by: tuple[str, ...]
