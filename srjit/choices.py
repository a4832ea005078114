"""Options that ``srjit`` and passes share, and the error for a name that a table lacks.

Passes import no JAX for them.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Literal, get_args

Mode = Literal["train", "inference"]
Layer = Literal["jaxpr", "stablehlo"]
Rng = Literal["hash", "threefry"]
Wire = Literal["bf16", "fp8"]
WIRES: tuple[Wire, ...] = get_args(Wire)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantizing:
    """The options that a pass and the decorator share: recipe, mode, generator, strict.

    Attributes:
      recipe: a name (``srjit.recipes.names()``), a ``.toml`` file, TOML text of more than one line,
        or a Recipe; ``auto`` is the target's, in passes the attached device's.
      mode: ``train``, or ``inference``: nearest everywhere, no key.
      rng: what noise is made by, ``hash`` or ``threefry``.
      strict: whether what the recipe asks for and cannot be had is an error.
    """

    recipe: str | object = "auto"
    mode: Mode = "train"
    rng: Rng = "hash"
    strict: bool = False


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """Returns the error for a name that a table lacks, with the nearest names that it has."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}? " if near else ""
    return ValueError(f"unknown {kind} {name!r}: {hint}known: {', '.join(known)}")
