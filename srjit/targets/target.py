"""Targets as objects: what a chip multiplies, how it quantizes, what compiles for it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractDevice, AbstractMesh

from srjit.choices import Rng
from srjit.numerics.formats import get_format
from srjit.numerics.groups import Groups
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key
from srjit.numerics.rounding import NOISE_BITS
from srjit.numerics.symbolic import is_known
from srjit.products.product import Product
from srjit.products.quantized import (
    Multiply,
    MultiplyGroups,
    ScaledValues,
    emulated,
    multiply_values,
)


@dataclasses.dataclass(frozen=True)
class Demand:
    """One quantization that a program asks for, and what it knows of the operand.

    Attributes:
      spec: how the operand is quantized.
      rng: the generator of its noise.
      in_memory: whether nothing in the program makes the operand.
      in_loop: whether it stands in a loop.
      turned: whether a product wants a copy with the last dimension first, should it come cheaply.
      shows: whether its amax is wanted, should it come cheaply, for where it is computed again.
    """

    spec: Quantization
    rng: Rng = "hash"
    in_memory: bool = False
    in_loop: bool = False
    turned: bool = False
    shows: bool = False


class Quantize(Protocol):
    """A target's quantization of an operand, with the numbers of ``emulated``."""

    def __call__(
        self, x: jax.Array, demand: Demand, key: Key | None, before: jax.Array | None, /
    ) -> ScaledValues:
        """Codes and scales of x; ``key`` and ``before`` are as of ``emulated``."""
        ...


class QuantizeGroups(Protocol):
    """A target's way to quantize an operand with scales for every group, as ``emulated``."""

    def __call__(
        self,
        x: jax.Array,
        demand: Demand,
        key: Key | None,
        before: jax.Array | None,
        groups: Groups | None,
        /,
    ) -> ScaledValues:
        """Codes and scales of x; ``key``, ``before`` and ``groups`` are as of ``emulated``."""
        ...


class QuantizeTogether(Protocol):
    """A target's quantization of one tensor in several ways, with the numbers of ``quantize``."""

    def __call__(
        self, x: jax.Array, demands: Sequence[Demand], keys: Sequence[Key | None], /
    ) -> Sequence[ScaledValues] | None:
        """Codes and scales for each demand; None if one by one is as good."""
        ...


def emulate(
    x: jax.Array, demand: Demand, key: Key | None, before: jax.Array | None
) -> ScaledValues:
    """``emulated``, in plain operations."""
    return emulated(x, demand.spec, key, before=before, rng=demand.rng, shows=demand.shows)


# The scope of what only runs for a delayed scale without a history: in hardly any step.
WITHOUT_HISTORY = "srjit.without_history"
FASTER = 1.1  # than bfloat16, at least, is a rate of its own
Shapes = tuple[tuple[int, ...], tuple[int, ...]]
Specs = tuple[Quantization | None, Quantization | None]


# Functions with names, so that a target can be pickled.
def never_native(product: Product, shapes: Shapes, specs: Specs) -> bool:
    """No product has a rate of its own."""
    return False


def no_hindrance(product: Product, shapes: Shapes, specs: Specs) -> str:
    """Nothing is to be said."""
    return ""


def turn_nothing(product: Product, shapes: Shapes, specs: Specs) -> tuple[bool, bool]:
    """Every order of dimensions is as good as any other."""
    return False, False


def emulated_noise_bits(spec: Quantization) -> int:
    """Noise is the emulation's."""
    return NOISE_BITS


def no_remark(spec: Quantization) -> str:
    """Rounding is the emulation's."""
    return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiler:
    """A compiler that needs no hardware of the target.

    Attributes:
      platform: as JAX calls it.
      topologies: by number of devices, what the compiler calls a slice of that many.
      description: of a device, for a compiler that knows none by their names.
      device: what kernels are told that they are lowered for, where they ask.
      options: of the compiler.
    """

    platform: str
    topologies: Mapping[int, str] = dataclasses.field(default_factory=dict, hash=False)
    description: str = ""
    device: AbstractDevice | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)


class Estimates(Protocol):
    """Costs of products and quantizations on a chip, by a rule of thumb."""

    @property
    def name(self) -> str:
        """The chip's."""
        ...

    @property
    def clock(self) -> float:
        """Cycles a second."""
        ...

    @property
    def plain(self) -> float:
        """Operations a cycle of a bfloat16 product."""
        ...

    @property
    def cycles_per_byte(self) -> float:
        """Cycles in which its memory moves a byte, at its peak."""
        ...

    def product(self, product: Product, shapes: Shapes, specs: Specs) -> tuple[float, float | None]:
        """Cycles of a product in bfloat16, and of its codes; None: of which nothing is known.

        Args:
          product: what is multiplied.
          shapes: of the operands.
          specs: how they are quantized.
        """
        ...

    def quantization(self, size: int, spec: Quantization, in_memory: bool) -> float:
        """Cycles of quantizing ``size`` elements; ``in_memory``: that nothing has just made."""
        ...


@runtime_checkable
class GroupEstimates(Protocol):
    """Estimates that tell products with groups apart; others are asked for ``product`` of those."""

    def grouped_product(
        self, product: Product, shapes: Shapes, specs: Specs, groups: int
    ) -> tuple[float, float | None]:
        """Cycles as of ``Estimates.product``, with the number of groups."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One chip. Programs use the object that they were given, whatever its name.

    Attributes:
      name: what users type.
      kinds: substrings of the ``device_kind`` of the devices that it is, in lower case.
      recipe: what ``recipe="auto"`` is there.
      native: whether a site runs at a rate that bfloat16 has not: of its product, its operands'
        shapes, and how they are quantized. Otherwise it is emulated.
      hindrance: why such a site is emulated, where more is to be said than that the chip has no
        such rate; empty otherwise.
      multiply: how values are multiplied.
      multiply_groups: how codes with groups are, and scaled on the way; None: as all values.
      quantize: how operands are quantized.
      quantize_groups: how operands with groups are; None: by plain operations.
      quantize_together: quantizes one tensor in several ways at once, where that reads it less
        often; None where it does not.
      turns: which operands a product wants with their last dimension first, too, if quantizing
        makes such a copy on the way: of a product, its operands' shapes, and how they are
        quantized.
      noise_bits: of each element where its own instructions round; see ``rounding.NOISE_BITS``.
      remark: what a user should know of how a quantization is rounded there; empty if nothing.
      integers: the dtype that holds integer codes outside of loops; int8 inside, where what the
        backward pass needs is kept for every iteration.
      compiler: what compiles for it without it; None: nothing that srjit knows.
      peak: how many times faster than bfloat16 it multiplies two element types, as HLO calls them,
        by its vendor's peaks; None: asked of its compiler instead.
      interconnect: bytes a second that one of several sends to the others, at its vendor's peak;
        None: not known.
      estimates: what ``recipe="auto"`` weighs; None: there, it quantizes all that its recipe says.
    """

    name: str
    kinds: tuple[str, ...]
    recipe: str
    native: Callable[[Product, Shapes, Specs], bool] = never_native
    hindrance: Callable[[Product, Shapes, Specs], str] = no_hindrance
    multiply: Multiply = multiply_values
    multiply_groups: MultiplyGroups | None = None
    quantize: Quantize = emulate
    quantize_groups: QuantizeGroups | None = None
    quantize_together: QuantizeTogether | None = None
    turns: Callable[[Product, Shapes, Specs], tuple[bool, bool]] = turn_nothing
    noise_bits: Callable[[Quantization], int] = emulated_noise_bits
    remark: Callable[[Quantization], str] = no_remark
    integers: str = "int8"
    compiler: Compiler | None = None
    peak: Callable[[str, str], float | None] | None = None
    interconnect: float | None = None
    estimates: Estimates | None = None

    def __hash__(self) -> int:
        return hash(self.name)  # fast, and whatever a user's own functions are

    def __repr__(self) -> str:
        # The text of a rewritten program has it, and functions' addresses change from run to run.
        return f"Target(name={self.name!r})"

    @property
    def is_attached(self) -> bool:
        """True if it is what programs run on here."""
        kind = jax.devices()[0].device_kind.lower()
        return any(part in kind for part in self.kinds)

    @contextlib.contextmanager
    def lowering(self) -> Generator[None]:
        """A context that lowers programs for it, attached or not."""
        device = self.compiler.device if self.compiler else None
        if device is None:
            yield
            return
        mesh = jax.sharding.get_abstract_mesh()
        mesh = AbstractMesh(
            mesh.axis_sizes, mesh.axis_names, mesh.axis_types, abstract_device=device
        )
        with jax.sharding.use_abstract_mesh(mesh):
            yield

    def for_shapes(self, *shapes: tuple[int, ...]) -> Target:
        """The target, or plain operations if it has kernels, which have to know all dimensions."""
        has_kernels = self.quantize is not emulate or self.quantize_together is not None
        unknown = not all(is_known(n) and n >= 0 for shape in shapes for n in shape)
        return PORTABLE if has_kernels and unknown else self

    def carrier(self, demand: Demand, work: jnp.dtype) -> jnp.dtype:
        """The dtype that holds an operand's values inside a program.

        Args:
          demand: how the operand was quantized.
          work: float32 or float64, which the values are computed in.
        """
        spec = demand.spec
        fmt = get_format(spec.format)
        if work == jnp.float64 or spec.rounding == "none":
            return work
        if spec.is_blocked:  # element times block scale
            bits = fmt.element.significant_bits + fmt.scales.significant_bits
            return jnp.dtype(jnp.bfloat16 if bits <= 8 else jnp.float32)
        if fmt.element.is_integer:
            return jnp.dtype(jnp.int8 if demand.in_loop else self.integers)
        return fmt.storage.dtype


# No chip in particular: every format as plain operations that any backend runs.
PORTABLE = Target(name="portable", kinds=(), recipe="int8")
