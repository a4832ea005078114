"""TPUs as a table: what they multiply and round natively, and what it costs by a rule of thumb.

Another TPU is one entry. int8 has twice the rate of bfloat16 on v5e and v5p and half as much again
on v6e; FP8 has twice the rate on Ironwood (tpu7x). Rates, orders and copies by
benchmarks/tpu_rates.py, kernels by benchmarks/tpu_kernels.py (the larger of both its models),
starts by small layers of benchmarks/tpu_cycles.py: all of them the compiler's estimates. Peaks as
their vendor publishes them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.products.dot import DotProduct
from srjit.products.product import Product
from srjit.products.ragged_dot import GroupedMatrices, matrices_of
from srjit.targets.layouts import Order, order_of
from srjit.targets.target import Compiler, Shapes, Specs
from srjit.targets.tpu.group_tiles import Rates, Tiles, gone_through, moved, tiles_of

INT8, FP8 = frozenset({"int8"}), frozenset({"float8_e4m3fn", "float8_e5m2"})
_BF16 = frozenset({"bfloat16"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip, and the estimates of ``target.Estimates``.

    Attributes:
      name: what users type.
      kinds: parts of what its driver calls it.
      recipe: what ``recipe="auto"`` is there.
      slices: what its compiler calls a slice of one, four, eight, 16, ... and 256 devices.
      native: element types whose products, with each other, have more than bfloat16's rate.
      converts: element types that it has instructions to round to, stochastically too.
      fuses: what is best left to XLA where another operation makes the operand: quantizing to
        nearest, or with a scale that is given.
      plain: operations a cycle of a bfloat16 product.
      rate: operations a cycle of a native product in the best order.
      orders: cycles of the orders, in units of the best one's.
      turning: cycles for each byte of a transposed copy.
      transposing: of one by a kernel.
      beside: of one by the kernel that quantizes.
      epilogue: cycles for an element of a product's result that something like an activation
        function takes: products of few operations for each element do not gain by being faster.
      start: cycles of a product or a quantization of next to nothing.
      amax: cycles for an element of a tensor in memory whose amax is found.
      codes: cycles for an element that is quantized, by its rounding.
      operations: a second at its peak, in bfloat16.
      bandwidth: bytes a second of its memory, at its peak.
      interconnect: bytes a second that it sends to others over all of its links: half of the
        "bidirectional ICI bandwidth" in its vendor's documentation.
      vector_memory: bytes of it, as JAX's Pallas knows them.
      grouped: operations a cycle of kernels of products with groups, in bfloat16 and of codes, rows
        that are masked among them: by benchmarks/tpu_experts.py.
      group_codes: times as many cycles as ``codes`` that quantizing operands with groups takes: by
        kernels, with what XLA does around them for a factor of each row, and by plain operations;
        the larger of benchmarks/tpu_experts.py's layers.
    """

    name: str
    kinds: tuple[str, ...]
    recipe: str
    slices: tuple[str, ...]
    native: frozenset[str]
    converts: frozenset[str]
    fuses: frozenset[Literal["nearest", "given"]]
    plain: float
    rate: float
    orders: Mapping[Order, float] = dataclasses.field(hash=False)
    turning: float
    transposing: float
    beside: float
    epilogue: float
    start: float
    amax: float
    codes: Mapping[str, float] = dataclasses.field(hash=False)
    operations: float
    bandwidth: float
    interconnect: float
    vector_memory: int
    grouped: tuple[float, float]
    group_codes: tuple[float, float]

    @property
    def compiler(self) -> Compiler:
        """The compiler for it."""
        counts = (1, 4, *(2**n for n in range(3, 9)))
        names = {n: f"{self.name}:{size}" for n, size in zip(counts, self.slices, strict=True)}
        return Compiler(platform="tpu", topologies=names)

    @property
    def clock(self) -> float:
        """See target.Estimates: what makes ``plain`` the vendor's ``operations``."""
        return self.operations / self.plain

    @property
    def cycles_per_byte(self) -> float:
        """See target.Estimates."""
        return self.clock / self.bandwidth

    def has_rate(self, elements: set[str]) -> bool:
        """True if it multiplies such elements faster than bfloat16, in a good order."""
        return elements <= self.native and ("int8" not in elements or len(elements) == 1)

    @property
    def kernel_memory(self) -> int:
        """Bytes of vector memory for a kernel; XLA keeps some of its own there."""
        return self.vector_memory // 2

    def tiles(
        self, known: GroupedMatrices, shapes: Shapes, groups: int, itemsize: int
    ) -> Tiles | None:
        """The tiles of a product with groups, of elements of so many bytes; None: no kernel has."""
        ordered = (shapes[1], shapes[0]) if known.is_swapped else shapes
        rates = Rates(self.grouped[itemsize == 1], 1 / self.cycles_per_byte, self.kernel_memory)
        return tiles_of(known.kind, known.extents(*ordered, groups), itemsize, rates)

    def grouped_product(
        self, product: Product, shapes: Shapes, specs: Specs, groups: int
    ) -> tuple[float, float | None]:
        """See target.GroupEstimates."""
        if (known := matrices_of(product)) is None:
            return 0.0, None
        has_rate = self.has_rate(elements_of(specs))
        cycles = self._grouped(known, shapes, groups, 2, self.grouped[0]) or 0.0
        codes = self._grouped(known, shapes, groups, 1, self.grouped[1]) if has_rate else None
        return cycles, codes

    def product(self, product: Product, shapes: Shapes, specs: Specs) -> tuple[float, float | None]:
        """See target.Estimates."""
        if not isinstance(product, DotProduct):
            return 0.0, None
        operations = product.operations(*shapes)
        # What is fused with a product, on the vector unit, runs beside it: the slower one counts.
        beside = math.prod(product.shape(*shapes)) * self.epilogue
        plain = max(operations / self.plain, beside) + self.start
        if not self.has_rate(elements_of(specs)):
            return plain, None
        cycles = operations / self.rate
        # In its own order, or in the best one with a copy of the larger operand, by a kernel: which
        # one it is depends on what the result is used for.
        copied = cycles + max(map(math.prod, shapes)) * self.transposing
        ordered = min(cycles * self.orders.get(order_of(product) or "TN", 2.0), copied)
        return plain, max(ordered, beside) + self.start

    def _grouped(
        self, known: GroupedMatrices, shapes: Shapes, groups: int, itemsize: int, rate: float
    ) -> float | None:
        """Cycles of a product with groups: of all tiles that are gone through, or of their bytes.

        Groups are expected to share the rows, and none to end with a tile.
        """
        tiles = self.tiles(known, shapes, groups, itemsize)
        if tiles is None:
            return None
        ordered = (shapes[1], shapes[0]) if known.is_swapped else shapes
        extents = known.extents(*ordered, groups)
        cycles = 2 * gone_through(known.kind, extents, tiles) / rate
        read = moved(known.kind, extents, tiles, (itemsize, itemsize, 2)) * self.cycles_per_byte
        return max(cycles, read) + self.start

    def quantization(self, size: int, spec: Quantization, in_memory: bool) -> float:
        """See target.Estimates."""
        amax = self.amax if in_memory and spec.scaling == "dynamic" else 0.0
        times = 1.0
        if spec.group_dim is not None:
            times = self.group_codes[(spec.shared, spec.scaling) != ("tensor", "dynamic")]
        return size * (amax + self.codes[spec.rounding] * times) + self.start


def elements_of(specs: Specs) -> set[str]:
    """Element types of both operands' codes; ``float32`` where one of them is no codes alone."""
    return {
        "float32"
        if q is None or q.is_blocked or q.rounding == "none"
        else get_format(q.format).element.name
        for q in specs
    }


def _orders(nn: float, nt: float, tn: float, tt: float) -> Mapping[Order, float]:
    return MappingProxyType({"NN": nn, "NT": nt, "TN": tn, "TT": tt})


def _codes(nearest: float, stochastic: float) -> Mapping[str, float]:
    return MappingProxyType({"nearest": nearest, "stochastic": stochastic, "none": 0.0})


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8")  # of 8 chips to 128
CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v5e",
            kinds=("v5 lite", "v5e"),
            recipe="int8",
            slices=_FLAT,
            native=INT8 | {"float8_e5m2"},
            converts=_BF16,
            fuses=frozenset({"nearest", "given"}),
            plain=127e3,
            rate=254e3,
            orders=_orders(1.0, 1.0, 1.99, 1.99),
            turning=14.0e-3,
            transposing=3.8e-3,
            beside=1.9e-3,
            epilogue=16e-3,
            start=7e3,
            amax=3.8e-3,
            codes=_codes(5.7e-3, 5.7e-3),
            operations=197e12,
            bandwidth=819e9,
            interconnect=200e9,
            vector_memory=128 * 2**20,
            grouped=(112e3, 202e3),
            group_codes=(5.0, 9.1),
        ),
        Chip(
            name="v5p",
            kinds=("tpu v5", "v5p"),
            recipe="int8",
            slices=("1x1x1", "2x2x1", *_CUBES, "4x8x8"),
            native=INT8 | {"float8_e5m2"},
            converts=_BF16,
            fuses=frozenset(),
            plain=254e3,
            rate=508e3,
            orders=_orders(1.0, 1.0, 1.99, 1.99),
            turning=5.5e-3,
            transposing=2.0e-3,
            beside=1.8e-3,
            epilogue=8e-3,
            start=7e3,
            amax=2.0e-3,
            codes=_codes(2.1e-3, 4.3e-3),
            operations=459e12,
            bandwidth=2765e9,
            interconnect=600e9,
            vector_memory=64 * 2**20,
            grouped=(224e3, 404e3),
            group_codes=(5.0, 9.1),
        ),
        Chip(
            name="v6e",
            kinds=("v6 lite", "v6e"),
            recipe="int8",
            slices=_FLAT,
            native=INT8 | {"float8_e5m2"},
            converts=_BF16,
            fuses=frozenset(),
            plain=461e3,
            rate=709e3,
            orders=_orders(1.19, 1.0, 1.16, 1.16),
            turning=8.5e-3,
            transposing=2.5e-3,
            beside=1.2e-3,
            epilogue=16e-3,
            start=12e3,
            amax=2.5e-3,
            codes=_codes(3.7e-3, 4.2e-3),
            operations=918e12,
            bandwidth=1640e9,
            interconnect=400e9,
            vector_memory=128 * 2**20,
            grouped=(370e3, 560e3),
            group_codes=(4.8, 7.3),
        ),
        Chip(
            name="tpu7x",
            kinds=("tpu7x", "tpu v7"),
            recipe="fp8",
            slices=("1x1x1", "1x2x1", "2x2x1", *_CUBES),  # a chip has two cores, each a device
            native=FP8,
            converts=_BF16 | FP8,
            fuses=frozenset({"given"}),
            plain=425e3,
            rate=859e3,
            orders=_orders(1.0, 1.0, 1.0, 1.0),
            turning=5.4e-3,
            transposing=1.5e-3,
            beside=0.8e-3,
            epilogue=8e-3,
            start=12e3,
            amax=1.8e-3,
            codes=_codes(2.3e-3, 3.3e-3),
            operations=2307e12 / 2,  # of one of its two devices
            bandwidth=7370e9 / 2,
            interconnect=600e9 / 2,
            vector_memory=64 * 2**20,
            grouped=(425e3, 690e3),
            group_codes=(4.9, 6.9),
        ),
    )
}
