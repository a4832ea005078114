"""A program's functions with the calls that reach them, in groups that can stay one function.

A frame is a function, or a manual computation, which takes values from outside no more than a
function does. It is reached once by every chain of calls from @main. Chains along which the same is
to be done everywhere in it form a group, and each group is one function of the rewritten module:
what differs along them, such as the numbers that noise comes from, becomes arguments.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Any

from srjit.program.control_flow import flow_of, programs_of
from srjit.program.stablehlo import operations
from srjit.program.stablehlo.program import Equation, Program, read_program
from srjit.program.values import Path

# What holds a program that is not in the frame itself.
_FRAMES = ("func.call", "stablehlo.composite", "sdy.manual_computation")
Local = tuple[Equation, Any]  # a loop, and which of its regions: "body" or "cond"


@dataclasses.dataclass(eq=False)
class Item:
    """A multiplication or a call in a frame.

    Attributes:
      path: inside the frame.
      eqn: the equation.
      loops: the loops of the frame around it, outermost first.
      callee: what it calls; None for a multiplication.
    """

    path: Path
    eqn: Equation
    loops: tuple[Local, ...]
    callee: Frame | None = None


@dataclasses.dataclass(eq=False)
class Frame:
    """A function, or a manual computation.

    Attributes:
      op: the operation.
      program: what it computes.
      items: its multiplications and calls, in order.
      chains: of every chain of calls that reaches it, the path and the number of loops around it.
      within: of a manual computation, the frame and the item that it is.
    """

    op: Any
    program: Program
    items: list[Item] = dataclasses.field(default_factory=list[Item])
    chains: dict[Path, int] = dataclasses.field(default_factory=dict[Path, int])
    within: tuple[Frame, Item] | None = None


@dataclasses.dataclass(eq=False)
class Group:
    """A frame as some of the chains that reach it see it.

    Attributes:
      frame: the frame.
      chains: their paths, in execution order.
      op: the operation, or a clone of it.
      calls: for each call, the group that it reaches.
      counters: for loops, the position of the trip count.
      replaced: operations in place of equations' own.
    """

    frame: Frame
    chains: list[Path]
    op: Any
    calls: dict[Item, Group] = dataclasses.field(default_factory=dict[Item, "Group"])
    counters: dict[Equation, int] = dataclasses.field(default_factory=dict[Equation, int])
    replaced: dict[Equation, Any] = dataclasses.field(default_factory=dict[Equation, Any])

    @property
    def outside(self) -> int:
        """The number of loops around it, the same along all chains."""
        return self.frame.chains[self.chains[0]]

    @property
    def is_main(self) -> bool:
        """True if it is the function that the module starts with."""
        return self.chains == [()]

    def __post_init__(self) -> None:
        # A copy; now, while both are alike, and by equation: an operation's hash is that of its
        # attributes and operands, and changes with them.
        if self.op is not self.frame.op:
            copies = dict(
                zip(operations.walk(self.frame.op), operations.walk(self.op), strict=True)
            )
            self.replaced = {e: copies[e.op] for e in _equations(self.frame.program)}

    def op_of(self, eqn: Equation) -> Any:
        """The operation of an equation, in ``op``."""
        return self.replaced.get(eqn) or eqn.op


def _equations(program: Program) -> Iterator[Equation]:
    """The equations of a frame, also those in loops and branches."""
    for eqn in program.eqns:
        yield eqn
        if eqn.op.name not in _FRAMES:
            for inner in programs_of(eqn):
                yield from _equations(read_program(inner))


def frames_of(main: Program, op: Any, functions: dict[str, Any]) -> list[Frame]:
    """The frames of a program that calls reach, callers first."""
    known: dict[Program, Frame] = {}
    order: list[Frame] = []

    def frame_of(program: Program, op: Any) -> Frame:
        if program not in known:
            frame = known[program] = Frame(op, program)
            frame.items = list(items(program, (), ()))
            order.append(frame)  # callees first; turned below
        return known[program]

    def items(program: Program, path: Path, loops: tuple[Local, ...]) -> Iterator[Item]:
        for index, eqn in enumerate(program.eqns):
            here, flow = (*path, index), flow_of(eqn)
            if flow is None or eqn.op.name == "stablehlo.composite":
                yield Item(here, eqn, loops)
            elif eqn.op.name in _FRAMES:
                callee = operations.callee_of(eqn.op)
                op = eqn.op if callee is None else functions[callee]
                yield Item(here, eqn, loops, frame_of(read_program(flow.body.program), op))
            else:
                for region in flow.regions:
                    part = "cond" if region.is_condition else "body"
                    around = (*loops, (eqn, part)) if flow.trips else loops
                    yield from items(read_program(region.program), (*here, *region.step), around)

    root = frame_of(main, op)
    order.reverse()
    root.chains[()] = 0
    for frame in order:
        for chain, outside in frame.chains.items():
            for item in frame.items:
                if item.callee:
                    item.callee.chains[(*chain, *item.path)] = outside + len(item.loops)
                    if item.callee.op is item.eqn.op:
                        item.callee.within = frame, item
    return order


def groups_of(
    frames: list[Frame],
    what: Callable[[Frame, Path, Item], Hashable],
    copy: Callable[[Frame], Any],
    fixed: Collection[Frame] = (),
) -> dict[Frame, list[Group]]:
    """The groups of all frames.

    Args:
      frames: callers first.
      what: what is to be done to a multiplication, along one chain; chains along which that is the
        same form a group. None where nothing is.
      copy: makes another function of a frame that has several groups.
      fixed: functions that have to stay as they are, for others than the frames.
    """
    signatures: dict[tuple[Frame, Path], Hashable] = {}
    numbers: dict[Hashable, int] = {}
    for frame in reversed(frames):
        for chain in frame.chains:
            parts = tuple(
                signatures[item.callee, (*chain, *item.path)]
                if item.callee
                else what(frame, chain, item)
                for item in frame.items
            )
            # A number, since signatures of signatures would grow with the depth of calls.
            nothing = all(p is None for p in parts)
            signature = None if nothing else numbers.setdefault((frame, parts), len(numbers))
            signatures[frame, chain] = signature
    groups: dict[Frame, list[Group]] = {}
    group_at: dict[tuple[Frame, Path], Group] = {}
    for frame in frames:
        outer, item = frame.within or (None, None)
        alike: dict[tuple[Hashable, Group | None], list[Path]] = collections.defaultdict(list)
        for chain in sorted(frame.chains, key=_order):
            # A manual computation is one operation in each copy of what it stands in.
            around = outer and item and group_at[outer, chain[: len(chain) - len(item.path)]]
            alike[signatures[frame, chain], around].append(chain)
        groups[frame] = []
        for (signature, around), chains in alike.items():
            if around and item:
                op = around.op_of(item.eqn)
            else:
                is_copied = groups[frame] or (frame in fixed and signature is not None)
                op = copy(frame) if is_copied else frame.op
            group = Group(frame, chains, op)
            groups[frame].append(group)
            group_at |= {(frame, chain): group for chain in chains}
    for found in groups.values():
        for group in found:
            for item in group.frame.items:
                if item.callee:
                    group.calls[item] = group_at[item.callee, (*group.chains[0], *item.path)]
    return groups


def _order(path: Path) -> tuple[tuple[int, str], ...]:
    """Execution order: indices as numbers; a loop's condition before its body."""
    return tuple(
        (step, "") if isinstance(step, int) else (int(step == "body"), str(step)) for step in path
    )
