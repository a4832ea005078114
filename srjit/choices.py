"""Options that take one of a few words, and the error for a name that a table lacks.

Passes read them too, which import no JAX.
"""

import difflib
from collections.abc import Iterable
from typing import Literal

Mode = Literal["train", "inference"]
Layer = Literal["jaxpr", "stablehlo"]
Rng = Literal["hash", "threefry"]


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """Returns the error for a name that a table lacks, with the nearest names that it has."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")
