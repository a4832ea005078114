"""Codes of what devices gather inside of manual regions: each quantizes its shard before."""

from __future__ import annotations

import dataclasses
from typing import Any

from srjit._mlir import ir
from srjit.passes.emit.composites import Quantizer, composite
from srjit.passes.emit.lowering import Library
from srjit.passes.emit.seen import fresh_channel, largest_of_shards
from srjit.passes.mlir import editing
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.meshes import Meshes, axes_of_collective


def gathered(x: Any, quantizer: Quantizer, library: Library, meshes: Meshes) -> list[Any] | None:
    """The codes, gathered, of a value that is gathered, and their scale.

    Args:
      x: what a collective gives, which may be cast.
      quantizer: to nearest, by a dynamic scale or one that is given.
      library: the functions that the module calls.
      meshes: sizes of the axes of every mesh.

    Returns:
      Values at the insertion point; None where nobody can tell which devices gather.
    """
    op = operations.owner(x)
    gather = operations.owner(op.operands[0]) if op and op.name == "stablehlo.convert" else op
    if gather is None or gather.name != "stablehlo.all_gather":
        return None
    axes = axes_of_collective(gather, meshes)
    if not axes:
        return None
    shard = _with_element(gather.operands[0], x.type)
    given = [shard]
    if quantizer.spec.scaling == "dynamic":
        word = library.call("srjit.amax_word", _word, shard)
        word = largest_of_shards(word, meshes, axes)
        given.append(library.call("srjit.amax_of_word", _amax, word))
        quantizer = dataclasses.replace(quantizer, remembers=True)
    codes, *scale = composite(library, quantizer, given, quantizer.described()).results
    whole = ir.RankedTensorType(x.type)
    kind = ir.RankedTensorType.get(whole.shape, ir.RankedTensorType(codes.type).element_type)
    said = editing.attributes_of(gather)
    if "channel_handle" in said:
        said["channel_handle"] = fresh_channel()
    return [*editing.create(gather.name, [kind], [codes], said), *scale]


def _with_element(shard: Any, like: ir.Type) -> Any:
    """A shard in the element type of another."""
    given, element = ir.RankedTensorType(shard.type), ir.RankedTensorType(like).element_type
    if given.element_type == element:
        return shard
    kind = ir.RankedTensorType.get(given.shape, element)
    return editing.create("stablehlo.convert", [kind], [shard])[0]


# As words, of which NaN's is the largest.
def _word(x: Any) -> Any:
    import jax.numpy as jnp
    from jax import lax

    from srjit.numerics.scaling import tensor_amax

    return lax.bitcast_convert_type(tensor_amax(x), jnp.int32)


def _amax(word: Any) -> Any:
    import jax.numpy as jnp
    from jax import lax

    return lax.bitcast_convert_type(word, jnp.float32)[None]  # as a history of one step
