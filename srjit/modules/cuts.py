"""Cuts of a traced program's products by devices, read of the module that it is lowered to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax.extend import core as jex_core
from jax.sharding import NamedSharding

from srjit.passes import annotate_matmuls
from srjit.passes.emit import cuts
from srjit.planning.profit import Cuts, uncut

if TYPE_CHECKING:
    from srjit.planning.roles import Classified


def cuts_of(
    closed: Any, sharded: Sequence[NamedSharding | None], classified: Sequence[Classified]
) -> Cuts | None:
    """The cuts of a program's products; None if nobody knows how it is sharded.

    Args:
      closed: the program.
      sharded: how each of its inputs is, as far as it is known.
      classified: its products.
    """
    if not any(sharded):
        return uncut(classified)
    structs = [
        jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding)
        for aval, sharding in zip(closed.in_avals, sharded, strict=True)
    ]
    lowered = jax.jit(jex_core.jaxpr_as_fun(closed), keep_unused=True).lower(*structs)
    module: Any = lowered.compiler_ir("stablehlo")
    with module.context:
        _, provenance, *_ = annotate_matmuls.provenance_of(module.operation, ("none",))
    # A module has other products than its jaxpr where JAX lowers one to several.
    shapes = [_shapes(o) for o in provenance.occurrences]
    if shapes != [_shapes(c.occurrence) for c in classified]:
        return None
    return cuts.cuts_of(module.operation, provenance.occurrences)


def _shapes(occurrence: Any) -> list[tuple[int, ...]]:
    return [v.aval.shape for v in (*occurrence.eqn.invars[:2], *occurrence.eqn.outvars)]
