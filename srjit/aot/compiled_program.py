"""Optimized programs: the products and costs of each site, kernels, collectives."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from srjit.aot.hlo import Computation, Executed, Instruction, Module, Shape
from srjit.aot.kernel_operations import entering, multiplied
from srjit.program.site_names import site_of
from srjit.targets.operand import QUANTIZER
from srjit.targets.target import WITHOUT_HISTORY


@dataclasses.dataclass(frozen=True)
class Multiplication:
    """A product that the program computes.

    Attributes:
      lhs, rhs: what is multiplied, as it enters the unit.
      order: for each operand, whether it contracts its last and its first dimension (``NN``), as
        memory holds them, or the other one (``T``). Empty if the program does not tell.
      library: the library's function that is called for it, or ``kernel``; empty if none is.
    """

    lhs: Shape
    rhs: Shape
    order: str
    library: str = ""

    @property
    def kind(self) -> tuple[str, str, str]:
        """Element types and order, on which its rate depends."""
        return self.lhs.dtype, self.rhs.dtype, self.order

    @property
    def is_narrow(self) -> bool:
        """True if both operands have elements of 8 bits at most."""
        return all(
            s.dtype.startswith(("s8", "u8", "s4", "u4", "f8", "f4")) for s in (self.lhs, self.rhs)
        )

    def __str__(self) -> str:
        by = f"{self.library} " if self.library else ""
        return f"{by}{self.lhs.dtype} x {self.rhs.dtype}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteCost:
    """The products and costs of one site.

    Attributes:
      products: those found, at most one an instruction.
      cycles: of the instructions with these products, and what is fused with them; loops counted;
        None if the compiler has no usable estimate of one.
      around: of the site's other instructions: quantization, scales, transposes.
      kernels: of its kernels, by their own estimate.
    """

    products: tuple[Multiplication, ...] = ()
    cycles: int | None = 0
    around: int = 0
    kernels: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel that a program calls.

    Attributes:
      name: what the program calls it.
      site: the site that it is of; None if it is of none.
      times: how often a run executes it.
      cycles: of all executions, by the estimate of its own schedule; None if there is none.
      moved: bytes of its operands and results, of all executions.
      operations: of its matrix products, of all executions; None where that is not known.
      rounds_by: the chip's instructions in it that round, where its compiler shows them.
    """

    name: str
    site: int | None
    times: int
    cycles: int | None
    moved: int
    operations: int | None = None
    rounds_by: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """Collectives of one kind, of a whole run.

    Attributes:
      count: how many; one that is started, stepped and ended by several instructions is one.
      size: bytes that they return, a device.
      sent: bytes that a device sends, if they are made as rings are: each but its own share, once.
      beside: of those, what the compiler has travel while something else runs.
      small: how many return no more than 4 KiB, such as amaxes and losses: they take the time of
        their hops, and none for bytes.
      sent_as: what is sent of larger ones, by element type.
    """

    count: int = 0
    size: int = 0
    sent: int = 0
    beside: int = 0
    small: int = 0
    sent_as: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory that a program needs on one device, in bytes, as the compiler reports it."""

    arguments: int
    outputs: int
    aliased: int
    temporary: int
    peak: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledProgram:
    """A compiled program.

    Attributes:
      cycles: estimates of all instructions added up, loops counted, without kernels, without what
        runs beside the rest, and without what a delayed scale runs only if it has no history; None
        if the compiler makes none.
      sites: by number, those that were found.
      kernels: in the order of the program.
      collectives: by kind.
      memory: of one device.
      unknown_loops: how many loops have a trip count that is not known, and are counted once.
      unusable: how many instructions have an estimate that is none, and are not in ``cycles``.
      relayouts: bytes of operands and results of copies to another layout that another unit makes
        beside the rest, and of which the compiler estimates nothing.
      moved: bytes of the operands and the results of all instructions, loops counted: what memory
        moves where nothing stays in caches.
    """

    cycles: int | None
    sites: Mapping[int, SiteCost]
    kernels: tuple[Kernel, ...]
    collectives: Mapping[str, Collective]
    memory: Memory
    unknown_loops: int
    moved: int = 0
    unusable: int = 0
    relayouts: int = 0

    @property
    def sent(self) -> int:
        """Bytes that a device sends to others."""
        return sum(c.sent for c in self.collectives.values())

    @property
    def added_as(self) -> Mapping[str, int]:
        """Bytes that a device sends to have them added, by the element type that it adds in."""
        found: collections.Counter[str] = collections.Counter()
        for kind in ("all-reduce", "reduce-scatter"):
            if kind in self.collectives:
                found.update(self.collectives[kind].sent_as)
        return found


def program_of(module: Module, analysis: Any) -> CompiledProgram:
    """Reads an optimized module.

    Args:
      module: the module.
      analysis: what ``jax.stages.Compiled.memory_analysis()`` returns.
    """
    executed = [e for e in module.executed() if not _is_rare(module, e.instruction)]
    costs = [c for e in executed if (c := _cycles(e)) is not None]
    loops = [e for e in executed if e.instruction.opcode == "while"]
    return CompiledProgram(
        cycles=sum(costs) if costs else None,
        sites=_sites(module, executed),
        kernels=tuple(_kernel(module, e) for e in executed if e.instruction.target in _KERNELS),
        collectives=_collectives(module, executed),
        memory=Memory(
            arguments=analysis.argument_size_in_bytes,
            outputs=analysis.output_size_in_bytes,
            aliased=analysis.alias_size_in_bytes,
            temporary=analysis.temp_size_in_bytes,
            peak=analysis.peak_memory_in_bytes,
        ),
        unknown_loops=sum(module.trips(e.instruction, e.computation) is None for e in loops),
        moved=sum(_moved(e) for e in executed),
        unusable=sum(e.instruction.is_unusable for e in executed),
        relayouts=sum(_moved(e) for e in executed if _is_relayout(e)),
    )


def _is_rare(module: Module, instruction: Instruction) -> bool:
    """True if next to no step executes it."""
    inside = (inner.op_name for _, inner in module.inside(instruction))
    return WITHOUT_HISTORY in (instruction.op_name or next(filter(None, inside), ""))


def _cycles(e: Executed) -> int | None:
    """Cycles that an instruction adds to the program's."""
    cycles = None if e.is_beside else e.instruction.cycles
    return None if cycles is None else cycles * e.times


_KERNELS = frozenset({"tpu_custom_call", "__gpu$xla.gpu.triton"})
_LIBRARIES = frozenset(
    {"__cublas$gemm", "__cublas$lt$matmul", "__cublas$lt$matmul$f8", "__cudnn$blockScaledDot"}
)
# What names values, or runs other instructions, and moves nothing itself.
_STILL = frozenset(
    {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"}
    | {"conditional", "after-all", "optimization-barrier", "partition-id", "replica-id"}
)


def _moved(e: Executed) -> int:
    """Bytes of an instruction's operands and results, but for a library's workspace."""
    i = e.instruction
    if i.opcode in _STILL:
        return 0
    results = i.shapes[:1] if i.target in _LIBRARIES else i.shapes
    operands = [s for o in e.computation.operands(i) for s in o.shapes]
    return e.times * sum(map(_size, (*operands, *results)))


def _is_relayout(e: Executed) -> bool:
    """True if an instruction without an estimate copies something to another layout, beside."""
    i = e.instruction
    if not e.is_beside or i.opcode not in ("custom-call", "copy", "transpose") or i.cycles:
        return False
    (result, *_), operands = i.shapes, [s for o in e.computation.operands(i) for s in o.shapes[:1]]
    return any(
        o.dtype == result.dtype
        and math.prod(o.dims) == math.prod(result.dims)
        and _order_and_tiles(o) != _order_and_tiles(result)
        for o in operands
    )


def _order_and_tiles(shape: Shape) -> str:
    """A layout without the memory space."""
    return re.sub(r"S\(\d+\)", "", shape.layout)


def products_of(module: Module, executed: Executed) -> list[tuple[Multiplication, int | None]]:
    """The products that an instruction computes, fused ones too, and the sites they are of."""
    instruction = executed.instruction
    candidates = [(executed.computation, instruction), *module.inside(instruction)]
    # A kernel turns what it multiplies as the unit wants it.
    of_kernel = [
        (
            Multiplication(Shape(lhs, ()), Shape(rhs, ()), "NN", "kernel"),
            site_of(instruction.op_name),
        )
        for lhs, rhs in entering(instruction.kernel_body)
    ]
    return of_kernel + [
        (_product(where, i), site_of(i.op_name))
        for where, i in candidates
        # A quantization multiplies too, by the Hadamard matrix.
        if (i.opcode in ("dot", "convolution") or i.target in _LIBRARIES)
        and QUANTIZER not in i.op_name
    ]


def _product(where: Computation, instruction: Instruction) -> Multiplication:
    lhs, rhs = (o.shapes[0] for o in where.operands(instruction)[:2])
    return Multiplication(lhs, rhs, _order(instruction, lhs, rhs), instruction.target)


def _order(instruction: Instruction, lhs: Shape, rhs: Shape) -> str:
    labels = instruction.attributes.get("dim_labels")
    if labels is not None:
        left, right = labels.partition("->")[0].split("_")
        contracting = left.index("f"), right.index("i")
    else:
        sides = ("lhs", "rhs")
        config = instruction.config.get("gemm_backend_config", {})
        numbers = config.get("dot_dimension_numbers", {})
        given = [
            re.findall(r"\d+", instruction.attributes.get(f"{side}_contracting_dims", ""))
            or numbers.get(f"{side}_contracting_dimensions", [])
            for side in sides
        ]
        if not all(given):
            return ""
        contracting = int(given[0][-1]), int(given[1][-1])
    last = [d == _minor(s) for d, s in zip(contracting, (lhs, rhs), strict=True)]
    return ("N" if last[0] else "T") + ("T" if last[1] else "N")


def _minor(shape: Shape) -> int:
    """The dimension whose elements lie side by side in memory."""
    found = re.match(r"\{(\d+)", shape.layout)
    return int(found.group(1)) if found else len(shape.dims) - 1


def _sites(module: Module, executed: Sequence[Executed]) -> dict[int, SiteCost]:
    costs: dict[int, SiteCost] = {}
    for e in executed:
        i, cycles = e.instruction, _cycles(e)
        products = products_of(module, e)
        site = next((s for _, s in products if s is not None), None)
        found = tuple(p for p, s in products if s == site) if site is not None else ()
        if site is None and (cycles or i.profiled_cycles):
            site = site_of(i.op_name) if i.op_name else _site_inside(module, i)
        if site is None:
            continue
        cost = costs.get(site, SiteCost())
        is_kernel = i.target in _KERNELS
        known = cost.cycles is not None and (cycles is not None or not found or is_kernel)
        costs[site] = SiteCost(
            products=cost.products + found,
            cycles=(cost.cycles or 0) + ((cycles or 0) if found else 0) if known else None,
            around=cost.around + (0 if found else cycles or 0),
            kernels=cost.kernels + (i.profiled_cycles or 0) * e.times * (is_kernel or not found),
        )
    return costs


def _site_inside(module: Module, instruction: Instruction) -> int | None:
    """The site of a fusion that has no name: that of the last instruction in it that has one."""
    found = [site_of(inner.op_name) for _, inner in module.inside(instruction)]
    return next((site for site in reversed(found) if site is not None), None)


def _kernel(module: Module, e: Executed) -> Kernel:
    cycles = e.instruction.profiled_cycles
    named = e.instruction.kernel
    return Kernel(
        name=named or _name(e.instruction),
        rounds_by=module.assembly.get(named, ()),
        site=site_of(e.instruction.op_name),
        times=e.times,
        cycles=None if cycles is None else cycles * e.times,
        moved=_moved(e),
        operations=None if (n := multiplied(e.instruction.kernel_body)) is None else n * e.times,
    )


SMALL = 4096  # bytes


def _name(kernel: Instruction) -> str:
    """A kernel's own name; on shards XLA names it after the shard_map, and its scope tells more."""
    scopes = [s for s in _SCOPE.findall(kernel.op_name) if s not in _AROUND]
    return scopes[-1] if scopes and kernel.name.startswith("shard_map") else kernel.name


_SCOPE = re.compile(r"[(/](srjit_\w+)")
_AROUND = ("srjit_formula", "srjit_on_shards")


# What a device sends of the bytes that a collective over n devices returns.
_SENT: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: 1 - 1 / n,
    "all-reduce": lambda n: 2 * (1 - 1 / n),
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: 1 - 1 / n,
    "ragged-all-to-all": lambda n: 1 - 1 / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1 - 1 / n,
}


def _collectives(module: Module, executed: Sequence[Executed]) -> dict[str, Collective]:
    found: dict[str, Collective] = {}
    started: set[object] = set()
    for e in executed:
        for where, i in ((e.computation, e.instruction), *module.inside(e.instruction)):
            kind = i.opcode.removesuffix("-start")
            if kind not in _SENT:
                continue
            # One that is fused with what runs beside it stands in every fusion that it has a part
            # in. They share a channel and shapes; collectives that are combined share channels too.
            identity = kind, i.attributes.get("channel_id"), tuple(s.dims for s in i.shapes)
            starts = any(other.target == "AsyncCollectiveStart" for other in where)
            if starts:
                started.add(identity)
            elif i is not e.instruction and identity in started:
                continue
            shapes, beside = i.shapes, e.is_beside or starts
            if kind != i.opcode:  # it returns its operands first, and may return flags last
                many = len(i.operands)
                shapes, beside = shapes[many : 2 * many] or shapes, True
            if kind == "all-reduce" and i is not e.instruction and (cut := _cut(where, i)):
                kind, shapes = "reduce-scatter", cut
            size = e.times * sum(map(_size, shapes))
            sent = round(size * _SENT[kind](_group(module, i)))
            is_small = sum(map(_size, shapes)) <= SMALL
            before = found.get(kind, Collective())
            sent_as = collections.Counter(before.sent_as)
            for shape in () if is_small else shapes:
                sent_as[shape.dtype] += round(sent * _size(shape) * e.times / size)
            found[kind] = Collective(
                count=before.count + e.times,
                size=before.size + size,
                sent=before.sent + sent,
                beside=before.beside + (sent if beside else 0),
                small=before.small + is_small * e.times,
                sent_as=dict(sent_as),
            )
    return found


def _cut(where: Computation, reduced: Instruction) -> tuple[Shape, ...]:
    """The shapes of the slices that a fusion takes of a sum: together they are a reduce-scatter."""
    names, cut = {reduced.name}, ()
    for i in where:
        if not names.isdisjoint(i.operands):
            if i.opcode == "dynamic-slice":
                cut += i.shapes
            elif i.opcode in ("bitcast", "copy", "get-tuple-element", "reshape"):
                names.add(i.name)
    return cut


_AXIS = re.compile(r"'(\w+)'(?:=(\d+)|:\(\d+\)(\d+))?")


def _group(module: Module, instruction: Instruction) -> int:
    """The number of devices that take part in a collective together."""
    text = instruction.attributes.get("replica_groups", "")
    if found := re.match(r"\[\d+,(\d+)\]", text):
        return int(found[1])
    if text.startswith("mesh"):  # mesh['a'=4,'b'=2] {'a'}; a part of an axis is 'a':(1)2
        mesh, _, axes = text.partition("]")
        sizes = {name: int(size) for name, size, _ in _AXIS.findall(mesh)}
        return math.prod(int(part or sizes[name]) for name, _, part in _AXIS.findall(axes))
    found = re.match(r"\{\{([\d,]+)\}", text)
    return len(found[1].split(",")) if found else module.devices


def _size(shape: Shape) -> int:
    bits = re.search(r"\d+", shape.dtype)
    return math.prod(shape.dims) * (int(bits.group()) if bits else 8) // 8
