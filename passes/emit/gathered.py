"""Codes of what devices gather or exchange inside of manual regions, of shards quantized before."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from srjit._mlir import ir
from srjit.passes.emit.composites import Quantizer, composite
from srjit.passes.emit.lowering import Library
from srjit.passes.emit.seen import fresh_channel, largest_of_shards
from srjit.passes.mlir import editing
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.meshes import Meshes, axes_of_collective


def gathered(x: Any, quantizer: Quantizer, library: Library, meshes: Meshes) -> list[Any] | None:
    """The codes, gathered, of a value that is gathered or exchanged, and their scale.

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
    if gather is None or gather.name not in ("stablehlo.all_gather", "stablehlo.all_to_all"):
        return None
    axes = axes_of_collective(gather, meshes)
    if not axes:
        return None
    shard = _with_element(gather.operands[0], x.type)
    given, is_dynamic = [shard], quantizer.spec.scaling == "dynamic"
    if is_dynamic and gather.name == "stablehlo.all_to_all":
        return _exchanged(gather, shard, quantizer, library)
    if is_dynamic:
        word = library.call("srjit.amax_word", _word, shard)
        word = largest_of_shards(word, meshes, axes)
        given.append(library.call("srjit.amax_of_word", _amax, word))
        quantizer = dataclasses.replace(quantizer, remembers=True)
    codes, *scale = composite(library, quantizer, given, quantizer.described()).results
    return [_again(gather, codes, ir.RankedTensorType(x.type).shape), *scale]


def _again(collective: Any, value: Any, shape: Sequence[int], **changed: Any) -> Any:
    """The result of the same collective of another value."""
    kind = ir.RankedTensorType.get(shape, ir.RankedTensorType(value.type).element_type)
    said = editing.attributes_of(collective) | changed
    if "channel_handle" in said:
        said["channel_handle"] = fresh_channel()
    return editing.create(collective.name, [kind], [value], said)[0]


def _exchanged(exchange: Any, shard: Any, quantizer: Quantizer, library: Library) -> list[Any]:
    """The codes of what an ``all_to_all`` gives, each by the scale of the device that gets it."""
    whole, dims = ir.RankedTensorType(shard.type), editing.attributes_of(exchange)
    dim = ir.IntegerAttr(dims["split_dimension"]).value
    n = ir.IntegerAttr(dims["split_count"]).value
    size = whole.shape[dim] // n
    flat = {name: ir.IntegerAttr.get(dims[name].type, 0) for name in _DIMENSIONS}
    remembers = dataclasses.replace(quantizer, remembers=True)

    def piece(x: Any, i: int) -> Any:
        from jax import lax

        return lax.slice_in_dim(x, i * size, (i + 1) * size, axis=dim)

    def words(x: Any) -> Any:
        import jax.numpy as jnp

        return jnp.stack([_word(piece(x, i)) for i in range(n)])

    def largest(words: Any) -> Any:
        import jax.numpy as jnp

        return _amax(jnp.max(words))

    mine = library.call("srjit.piece_words", words, shard, key=(dim, n))
    own = library.call("srjit.largest_word", largest, _again(exchange, mine, [n], **flat))
    amaxes = _all_of(exchange, own, n)
    made: list[Any] = []
    for i in range(n):
        part = library.call("srjit.piece", lambda x, i=i: piece(x, i), shard, key=(dim, n, i))
        amax = library.call("srjit.amax_at", lambda x, i=i: x[i : i + 1], amaxes, key=i)
        made.append(composite(library, remembers, [part, amax], remembers.described()).results)
    codes = _joined([values[0] for values in made], dim, list(whole.shape))
    result = ir.RankedTensorType(exchange.results[0].type).shape
    # All that send to a device made its codes by its scale.
    scales = _joined([_shaped(values[1], [1]) for values in made], 0, [n])
    scale = library.call("srjit.first", lambda x: x[0], _again(exchange, scales, [n], **flat))
    return [_again(exchange, codes, result), scale]


_DIMENSIONS = "split_dimension", "concat_dimension"


def _all_of(exchange: Any, value: Any, n: int) -> Any:
    """The values, of one element, that all devices of an exchange have."""
    said = editing.attributes_of(exchange)
    kept = {name: said[name] for name in ("replica_groups", "channel_handle") if name in said}
    if "channel_handle" in kept:
        kept |= {"channel_handle": fresh_channel(), "use_global_device_ids": ir.UnitAttr.get()}
    kept["all_gather_dim"] = ir.IntegerAttr.get(said["split_dimension"].type, 0)
    kind = ir.RankedTensorType.get([n], ir.RankedTensorType(value.type).element_type)
    return editing.create("stablehlo.all_gather", [kind], [value], kept)[0]


def _joined(values: Sequence[Any], dim: int, shape: Sequence[int]) -> Any:
    element = ir.RankedTensorType(values[0].type).element_type
    along = ir.IntegerAttr.get(ir.IntegerType.get_signless(64), dim)
    kind = ir.RankedTensorType.get(shape, element)
    return editing.create("stablehlo.concatenate", [kind], values, {"dimension": along})[0]


def _shaped(value: Any, shape: Sequence[int]) -> Any:
    kind = ir.RankedTensorType.get(shape, ir.RankedTensorType(value.type).element_type)
    return editing.create("stablehlo.reshape", [kind], [value])[0]


def _with_element(shard: Any, like: ir.Type) -> Any:
    """A shard in the element type of another."""
    given, element = ir.RankedTensorType(shard.type), ir.RankedTensorType(like).element_type
    if given.element_type == element:
        return shard
    kind = ir.RankedTensorType.get(given.shape, element)
    return editing.create("stablehlo.convert", [kind], [shard])[0]


def _word(x: Any) -> Any:
    from srjit.numerics.scaling import tensor_amax
    from srjit.targets.codes import word_of

    return word_of(tensor_amax(x))


def _amax(word: Any) -> Any:
    from srjit.targets.codes import float_of

    return float_of(word)[None]  # as a history of one step
