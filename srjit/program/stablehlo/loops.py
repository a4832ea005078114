"""Loops of a module: which of them JAX lowered from a scan, and what they read and write."""

from __future__ import annotations

from typing import Any

from srjit._mlir import ir, stablehlo
from srjit.program.stablehlo.operations import callee_of, constant_integer, owner, terminator


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

    def _count(self) -> tuple[int | None, int | None]:
        condition = self.op.regions[0].blocks[0]
        compare = owner(terminator(condition).operands[0])
        if compare is None or compare.name != "stablehlo.compare":
            return None, None
        left, right = compare.operands
        limit = constant_integer(right)
        direction = stablehlo.ComparisonDirectionAttr(compare.attributes["comparison_direction"])
        if limit is None or not isinstance(left, ir.BlockArgument) or direction.value != "LT":
            return None, None
        position = left.arg_number
        if left.owner != condition:
            return None, None
        start = constant_integer(self.op.operands[position])
        step = owner(self.returned[position])
        if start != 0 or step is None or step.name != "stablehlo.add":
            return None, None
        others = [constant_integer(v) for v in step.operands if v != self.arguments[position]]
        return (position, max(limit, 0)) if others == [1] else (None, None)

    def _uses_counter(self) -> bool:
        """Whether the body computes with the trip count, apart from counting and slicing."""
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
                if op.parent != self.op or not self._only_indexes(op, ignored):
                    return True
                todo += list(op.results)
        self.skipped += [op for op in seen if op not in self.skipped]
        return False

    def _only_indexes(self, op: Any, ignored: set[Any]) -> bool:
        return op.name == "stablehlo.subtract" and bool(list(op.results[0].uses))

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
        """Whether an index counts down from the last; None if it is no trip count."""
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

    def _read_index(self, op: Any, stack: Any) -> Any:
        """The index of the slice that an operation reads of a stack, or None."""
        if (name := callee_of(op)) is not None:
            inner = self._functions.get(name)
            if inner is None or len(op.operands) != 2 or op.operands[0] != stack:
                return None
            is_one = self._is_one(op.results[0], stack) and _reads_one(inner)
            return op.operands[1] if is_one else None
        return None

    def _is_one(self, value: Any, stack: Any) -> bool:
        """Whether a value is, by its type, one of as many as there are iterations."""
        kinds = (value.type, stack.type)
        if not all(isinstance(k, ir.RankedTensorType) and k.has_static_shape for k in kinds):
            return False
        return [self.length, *kinds[0].shape] == list(kinds[1].shape)

    def _write(self, position: int) -> tuple[Any, Any, bool] | None:
        """(operation, slice, backwards) of what an iteration writes to a stack, or None."""
        stack, op = self.arguments[position], owner(self.returned[position])
        if op is None or len(list(stack.uses)) != 1 or (name := callee_of(op)) is None:
            return None
        inner = self._functions.get(name)
        if inner is None or len(op.operands) != 3 or op.operands[0] != stack:
            return None
        if not self._is_one(op.operands[1], stack) or not _writes_one(inner):
            return None
        if len(list(op.results[0].uses)) != 1:
            return None
        backwards = self._direction(op.operands[2])
        return None if backwards is None else (op, op.operands[1], backwards)


def _reads_one(function: Any) -> bool:
    """Whether a function is ``lax.dynamic_index_in_dim(x, i, keepdims=False)``."""
    ops = _without_constants(function)
    if [op.name for op in ops] != [
        "stablehlo.dynamic_slice", "stablehlo.reshape", "func.return",
    ]:  # fmt: skip
        return False
    stack, index = function.regions[0].blocks[0].arguments
    return (
        ops[0].operands[0] == stack
        and ops[0].results[0].type.shape[0] == 1
        and _first_of(list(ops[0].operands)[1:], index)
        and list(ops[2].operands) == list(ops[1].results)
    )


def _writes_one(function: Any) -> bool:
    """Whether a function is ``lax.dynamic_update_index_in_dim(x, y, i)``."""
    ops = _without_constants(function)
    if len(ops) != 3 or ops[1].name != "stablehlo.dynamic_update_slice":
        return False
    stack, value, index = function.regions[0].blocks[0].arguments
    widened = ops[0].name in ("stablehlo.broadcast_in_dim", "stablehlo.reshape")
    return (
        widened
        and ops[0].operands[0] == value
        and ops[1].operands[0] == stack
        and ops[1].operands[1] == ops[0].results[0]
        and ops[0].results[0].type.shape[0] == 1
        and _first_of(list(ops[1].operands)[2:], index)
        and list(ops[2].operands) == list(ops[1].results)
    )


def _first_of(indices: list[Any], index: Any) -> bool:
    return indices[:1] == [index] and all(constant_integer(v) == 0 for v in indices[1:])


def _without_constants(function: Any) -> list[Any]:
    if len(function.regions[0].blocks) != 1:
        return []
    ops = [op.operation for op in function.regions[0].blocks[0].operations]
    return [op for op in ops if op.name != "stablehlo.constant"]
