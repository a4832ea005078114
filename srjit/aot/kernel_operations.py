"""Counts a TPU kernel's products: runs its program over its grid, integers alone.

The compiler's profile aborts on whole programs, and XLA estimates nothing of a kernel. What it
multiplies is in its program, which stands in the call: matrix products of known shapes, in loops
and branches that mostly depend on where in the grid it is, such as those of a causal mask.
"""

from __future__ import annotations

import base64
import binascii
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from srjit import _mlir
from srjit._mlir import ir

# Integers, one for each step of the grid; None: of data, or not understood.
_Steps = np.ndarray[Any, Any] | None
_LONGEST = 2**20  # steps of a grid that is gone through
_DIALECT = "stable_mosaic."


@functools.lru_cache(maxsize=256)
def multiplied(body: str) -> int | None:
    """Operations of the matrix products of one execution of a kernel, an addition as one.

    A branch that depends on data counts as taken, a loop of unknown length once.

    Args:
      body: the kernel's program as its call has it: a module of Mosaic in base64.

    Returns:
      None if it cannot be read, or has more grid steps than 2^20.
    """
    return _read(body, _of_grid)


@functools.lru_cache(maxsize=256)
def entering(body: str) -> tuple[tuple[str, str], ...]:
    """The element types that a kernel multiplies, each pair once; none if not known.

    Args:
      body: as of ``multiplied``.
    """
    return _read(body, lambda main: tuple(dict.fromkeys(_pairs(main)))) or ()


def _read(body: str, reader: Callable[[Any], Any]) -> Any:
    """The finding of a reader in a kernel's function; None where there is none to be read."""
    try:
        with _mlir.new_kernel_context() as context:
            module = ir.Module.parse(base64.b64decode(body, validate=True), context)
            functions = [op.operation for op in module.body.operations]
            (main,) = (f for f in functions if "iteration_bounds" in f.attributes)
            return reader(main)
    except (ValueError, KeyError, binascii.Error, ir.MLIRError):
        return None


def _pairs(op: Any) -> Iterator[tuple[str, str]]:
    if op.name.removeprefix(_DIALECT) == "tpu.matmul":
        lhs, rhs = (str(ir.VectorType(v.type).element_type) for v in list(op.operands)[:2])
        yield _element(lhs), _element(rhs)
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield from _pairs(inner.operation)


def _element(name: str) -> str:
    """MLIR's name of an element type as HLO's: ``s8`` of ``i8``, ``f8e4m3fn`` of ``f8E4M3FN``."""
    return re.sub(r"^i(?=\d)", "s", name.lower())


def _of_grid(main: Any) -> int | None:
    bounds = [int(n) for n in ir.DenseI64ArrayAttr(main.attributes["iteration_bounds"])]
    if math.prod(bounds) > _LONGEST:
        return None
    (block,) = main.regions[0].blocks
    steps = np.indices(bounds).reshape(len(bounds), -1)
    values: dict[Any, _Steps] = dict(zip(block.arguments, steps, strict=False))
    return int(_of_block(block, values, np.ones(math.prod(bounds), np.int64)))


def _of_block(block: Any, values: dict[Any, _Steps], times: np.ndarray[Any, Any]) -> int:
    """Operations of a block that each step of the grid executes that many times."""
    total = 0
    for op in block.operations:
        op = op.operation
        name = op.name.removeprefix(_DIALECT)
        given = [values.get(operand) for operand in op.operands]
        if name == "tpu.matmul":
            total += _product(op) * int(times.sum())
        elif name == "scf.if":
            taken = given[0]
            for region, is_taken in zip(op.regions, (1, 0), strict=False):
                inner = times if taken is None else times * ((taken != 0) == is_taken)
                total += sum(_of_block(b, values, inner) for b in region.blocks)
        elif name == "scf.for":
            total += _of_block(op.regions[0].blocks[0], values, times * _trips(given))
        elif op.regions:
            total += sum(_of_block(b, values, times) for r in op.regions for b in r.blocks)
        elif len(op.results) == 1:
            values[op.results[0]] = _integer(name, op, given)
    return total


def _product(op: Any) -> int:
    lhs, result = (ir.VectorType(v.type).shape for v in (op.operands[0], op.results[0]))
    numbers = re.search(r"<\[([\d, ]*)\]", str(op.attributes["dimension_numbers"]))
    contracted = [int(d) for d in numbers[1].split(",")] if numbers and numbers[1] else [-1]
    return 2 * math.prod(result) * math.prod(lhs[d] for d in contracted)


def _trips(given: Sequence[_Steps]) -> Any:
    first, last, by = given[:3]
    if first is None or last is None or by is None:
        return 1
    return np.maximum(0, -((first - last) // by))


def _integer(name: str, op: Any, given: Sequence[_Steps]) -> _Steps:
    if name == "arith.constant":
        value = op.attributes["value"]
        return np.asarray(value.value) if isinstance(value, ir.IntegerAttr) else None
    known = [g for g in given if g is not None]
    if len(known) < len(given) or not known:
        return None
    if name == "arith.cmpi":
        return _COMPARED[ir.IntegerAttr(op.attributes["predicate"]).value](*known)
    rule = _INTEGERS.get(name)
    return rule(*known) if rule else None


_LESS: list[Callable[..., Any]] = [np.less, np.less_equal, np.greater, np.greater_equal]
_COMPARED = dict(enumerate([np.equal, np.not_equal, *_LESS, *_LESS]))  # signed, unsigned
_INTEGERS: Mapping[str, Callable[..., Any]] = {
    "arith.addi": np.add,
    "arith.subi": np.subtract,
    "arith.muli": np.multiply,
    "arith.divsi": lambda a, b: np.trunc(a / b).astype(np.int64),
    "arith.remsi": np.fmod,
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.xori": np.bitwise_xor,
    "arith.minsi": np.minimum,
    "arith.maxsi": np.maximum,
    "arith.select": np.where,
    **dict.fromkeys(
        ("arith.index_cast", "arith.extui", "arith.extsi", "arith.trunci"), lambda a: a
    ),
}
