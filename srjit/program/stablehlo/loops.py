"""Loops of a module: which of them JAX lowered from a scan, and what they read and write."""

from __future__ import annotations

from typing import Any

from srjit._mlir import ir, stablehlo
from srjit.program.stablehlo.operations import (
    body_of,
    callee,
    callee_of,
    constant_integer,
    owner,
    terminator,
)


class Loop:
    """A ``stablehlo.while``, and the scan that JAX lowered to it, if it did.

    Attributes:
      body: the body's block.
      carried: positions of what an iteration hands to the next.
      length: how many iterations there are; None where that is not known.
      counter: position of the trip count, if it counts from 0.
      reverse: whether slices are read from the last to the first.
      slices: by (position of the stack, number), the value that an iteration reads of it.
      stacks: by position, the value that an iteration adds to the stack.
      skipped: operations of the body that only read and write stacks.
      returned: what the body returns.
    """

    def __init__(self, op: Any, known: dict[str, Any]) -> None:
        self.op, self._functions = op, known
        self.body = op.regions[1].blocks[0]
        self.arguments = list(self.body.arguments)
        self.returned = list(terminator(self.body).operands)
        self.counter, self.length = self._count()
        self.reverse = False
        self.slices: dict[tuple[int, int], Any] = {}
        self.stacks: dict[int, Any] = {}
        self.skipped: list[Any] = []
        same = {
            i for i, (a, r) in enumerate(zip(self.arguments, self.returned, strict=True)) if a == r
        }
        self.carried = set(range(len(self.arguments))) - same
        if self.length is not None:
            self._find_stacks(same)
            if not self._uses_counter():
                self.carried.discard(self.counter or 0)
                self.skipped.append(owner(self.returned[self.counter or 0]))

    def _count(self) -> tuple[int, int] | tuple[None, None]:
        condition = self.op.regions[0].blocks[0]
        compare = owner(terminator(condition).operands[0])
        if compare is None or compare.name != "stablehlo.compare":
            return None, None
        left, right = compare.operands
        limit = constant_integer(right)
        direction = stablehlo.ComparisonDirectionAttr(compare.attributes["comparison_direction"])
        if limit is None or direction.value != "LT" or left.owner != condition:
            return None, None
        assert isinstance(left, ir.BlockArgument)
        position = left.arg_number
        start, step = constant_integer(self.op.operands[position]), owner(self.returned[position])
        if start != 0 or step is None or step.name != "stablehlo.add":
            return None, None
        others = [constant_integer(v) for v in step.operands if v != self.arguments[position]]
        return (position, max(limit, 0)) if others == [1] else (None, None)

    def _uses_counter(self) -> bool:
        """True if the body computes with the trip count, apart from counting and slicing."""
        counter = self.arguments[self.counter or 0]
        step: Any = owner(self.returned[self.counter or 0])
        if len(list(step.results[0].uses)) > 1:
            return True  # it computes with the next trip count
        ignored = {*self.skipped, step}
        seen: set[Any] = set()
        todo = [counter]
        while todo:
            value = todo.pop()
            for use in value.uses:
                op = use.owner.operation
                if op in ignored or op in seen:
                    continue
                seen.add(op)
                if op.parent != self.op or op.name != "stablehlo.subtract":
                    return True
                todo += list(op.results)
        self.skipped += [op for op in seen if op not in self.skipped]
        return False

    def _find_stacks(self, same: set[int]) -> None:
        reads: list[tuple[int, Any, bool]] = []
        writes: list[tuple[int, Any, Any, bool]] = []
        for i in sorted(same):
            for use in self.arguments[i].uses:
                op = use.owner.operation
                index = self._read_index(op, self.arguments[i])
                backwards = None if index is None else self._direction(index)
                if backwards is not None and op.parent == self.op:
                    reads.append((i, op, backwards))
        for i in sorted(self.carried - {self.counter}):
            found = self._write(i)
            if found is not None:
                writes.append((i, *found))
        directions = {d for *_, d in reads} | {d for *_, d in writes}
        if len(directions) != 1:
            return
        self.reverse = directions.pop()
        for number, (i, op, _) in enumerate(reads):
            self.slices[i, number] = op.results[0]
            self.skipped.append(op)
        for i, op, value, _ in writes:
            self.stacks[i] = value
            self.carried.discard(i)
            self.skipped.append(op)

    def _direction(self, index: Any) -> bool | None:
        """True if an index counts down from the last; None if it is no trip count."""
        slope, offset = self._affine(index) or (0, 0)
        if (slope, offset) == (1, 0):
            return False
        return True if (slope, offset) == (-1, (self.length or 0) - 1) else None

    def _affine(self, value: Any) -> tuple[int, int] | None:
        """(a, b) of a * trip + b."""
        if value == self.arguments[self.counter or 0]:
            return 1, 0
        if (constant := constant_integer(value)) is not None:
            return 0, constant
        op = owner(value)
        if op is None or op.name not in ("stablehlo.add", "stablehlo.subtract"):
            return None
        left, right = (self._affine(v) for v in op.operands)
        if left is None or right is None:
            return None
        sign = 1 if op.name == "stablehlo.add" else -1
        return left[0] + sign * right[0], left[1] + sign * right[1]

    def _read_index(self, op: ir.Operation, stack: ir.Value[Any]) -> ir.Value[Any] | None:
        """The index of the slice that an operation reads of a stack, or None."""
        if callee_of(op) is None or len(op.operands) != 2 or op.operands[0] != stack:
            return None
        is_read = self._is_one(op.results[0], stack) and self._form(op) == _READ
        return op.operands[1] if is_read else None

    def _write(self, position: int) -> tuple[ir.Operation, ir.Value[Any], bool] | None:
        """(operation, slice, backwards) of what an iteration writes to a stack, or None."""
        stack, op = self.arguments[position], owner(self.returned[position])
        if op is None or callee_of(op) is None or len(op.operands) != 3 or op.operands[0] != stack:
            return None
        if any(len(list(value.uses)) != 1 for value in (stack, op.results[0])):
            return None
        if not self._is_one(op.operands[1], stack) or self._form(op) not in _WRITES:
            return None
        backwards = self._direction(op.operands[2])
        return None if backwards is None else (op, op.operands[1], backwards)

    def _is_one(self, value: ir.Value[Any], stack: ir.Value[Any]) -> bool:
        """True if a value is, by its type, one of as many as there are iterations."""
        kinds = (value.type, stack.type)
        if not all(isinstance(k, ir.RankedTensorType) and k.has_static_shape for k in kinds):
            return False
        return [self.length, *kinds[0].shape] == list(kinds[1].shape)

    def _form(self, call: ir.Operation) -> tuple[tuple[Any, ...], ...]:
        """The form of what is called, as in ``_READ``; empty if that is of no one slice."""
        function = self._functions.get(callee(call))
        if function is None or len(function.regions[0].blocks) != 1:
            return ()
        block = body_of(function)
        ops = [op.operation for op in block.operations]
        ops = [op for op in ops if op.name != "stablehlo.constant"]
        if not len(ops[0].results) or ops[0].results[0].type.shape[:1] != [1]:
            return ()
        names: dict[Any, str] = {a: f"argument {i}" for i, a in enumerate(block.arguments)}
        form: list[tuple[Any, ...]] = []
        for op in ops:
            operands = [names.get(v, constant_integer(v)) for v in op.operands]
            while operands and operands[-1] == 0:  # indices of the other dimensions
                operands.pop()
            names |= {result: f"result {len(form)}" for result in op.results}
            form.append((op.name, *operands))
        return tuple(form)


# Operations, but constants, of ``lax.dynamic_index_in_dim(x, i, keepdims=False)`` and of
# ``lax.dynamic_update_index_in_dim(x, y, i)``, each with its operands.
_READ = (
    ("stablehlo.dynamic_slice", "argument 0", "argument 1"),
    ("stablehlo.reshape", "result 0"),
    ("func.return", "result 1"),
)
_WRITES = tuple(
    (
        (widening, "argument 1"),
        ("stablehlo.dynamic_update_slice", "argument 0", "result 0", "argument 2"),
        ("func.return", "result 1"),
    )
    for widening in ("stablehlo.broadcast_in_dim", "stablehlo.reshape")
)
