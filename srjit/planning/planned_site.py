"""A site as it is to be evaluated: its operands, their codes, and where its noise comes from."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from srjit.choices import Rng, Wire
from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.numerics.scale_layouts import NO_SCALES
from srjit.planning.noise import Draw
from srjit.planning.site import SitePlan
from srjit.products.product import Product
from srjit.program.values import Path
from srjit.targets.target import Target

# The draws of one site beside those of its operands, which are 0 and 1: of the cotangent for dgrad
# and for wgrad, of either residual (two numbers), of its signs, of either gradient's signs (two
# numbers), of the parts of its product that devices send.
CT_DGRAD, CT_WGRAD, RESIDUAL, SIGNS, GRADIENT_SIGNS, PARTS = 2, 3, 4, 6, 7, 9


@dataclasses.dataclass(frozen=True)
class Gradient:
    """The product that is the gradient of an operand: its role, and what its operands become.

    The cotangent stands where the differentiated operand stood.
    """

    role: str
    lhs: Quantization | None
    rhs: Quantization | None


@dataclasses.dataclass(frozen=True)
class SiteParams:
    """Everything static about a site.

    Attributes:
      product: what is multiplied.
      dtype: of the result.
      lhs, rhs: how the operands were quantized; None: in high precision.
      backward: the gradients of both operands; empty: in high precision.
      target: what runs it.
      rng: the generator of its noise.
      label: shown by profilers.
      turned: whether a turned copy of the operands' codes is wanted.
      reduce: as of ``Recipe.reduce``.
      wire: as of ``Recipe.wire``, if it is a gradient of a weight.
      again: whether derivatives make the codes of an operand again, rather than that they are kept.
      examples: of the dimensions of the operands, how many leading ones vmap added.
      tree: structure of the primitive's operands, once they are bound.
    """

    product: Product
    dtype: Any
    lhs: Quantization | None
    rhs: Quantization | None
    target: Target
    backward: tuple[Gradient, ...] = ()
    rng: Rng = "hash"
    label: str = "site"
    turned: tuple[bool, bool] = (False, False)
    reduce: str | None = None
    wire: Wire | None = None
    again: tuple[bool, bool] = (False, False)
    examples: tuple[int, int] = (0, 0)
    tree: Any = None

    @property
    def needs_key(self) -> bool:
        """True if its own product, or differentiating it, draws noise."""
        specs = [q for g in self.backward for q in (g.lhs, g.rhs) if q]
        return self.wire is not None or any(q.rounding == "stochastic" for q in specs)


def oriented(
    spec: Quantization, product: Product, side: int, shape: tuple[int, ...]
) -> Quantization:
    """``spec`` with the axes that ``product`` contracts in an operand of ``shape``.

    Axes count from the end, so that vmapped dimensions can be added in front. Specs that do not
    depend on the orientation come out equal for every product, so that their codes can be shared.
    """
    if spec.shared == "tensor" and not spec.hadamard:
        return dataclasses.replace(spec, axis=-1)
    contracting = product.contracting(side)
    if spec.hadamard and not product.can_rotate:
        return oriented(spec.unrotated, product, side, shape)
    if not contracting:  # an outer product: every element is a contraction of its own
        contracting = (len(shape) - 1,) if shape else ()
    axes = tuple(d - len(shape) for d in contracting)
    if spec.shared == "square" and axes:
        free = [d - len(shape) for d in range(len(shape)) if d not in contracting]
        axes = tuple(sorted({axes[-1], *free[-1:]}))
    return dataclasses.replace(spec, axis=axes)


def within_groups(
    spec: Quantization, product: Product, side: int, shape: tuple[int, ...]
) -> Quantization:
    """``spec`` with scales of their own for the groups of a ragged product's operand.

    As it is where none of its scales would be of two groups, or where a scale is given for all.
    """
    along, layout = product.along(side), get_format(spec.format).scales
    if along is None or layout is NO_SCALES or spec.scaling == "static":
        return spec
    placed = oriented(spec, product, side, shape)
    view = placed.view(shape)
    reaches = placed.shared == "tensor" or layout.has_tensor_scale or along.dim in view.dims
    if not reaches and not (placed.shared == "channel" and along.dim in placed.axes(len(shape))):
        return spec
    dim = along.dim - len(shape)
    return dataclasses.replace(spec, **{"ragged" if along.is_ragged else "grouped": dim})


def draw_signs(*specs: Quantization | None) -> bool:
    """True if a product has signs of its operands, so quantized, flipped at random first."""
    return any(q is not None and q.draws_signs for q in specs)


class Shared(NamedTuple):
    """The codes of a value; sites of equal ones share them.

    Attributes:
      token: the value.
      spec: how it is quantized.
      again: whether the backward pass makes them from the value, though the forward pass had them.
    """

    token: int
    spec: Quantization
    again: bool = False

    @property
    def first(self) -> Shared:
        """The same codes, as they are made first."""
        return self._replace(again=False)


class Amax(NamedTuple):
    """The amax of a value, kept for where the value is computed again and its codes are not kept.

    Attributes:
      of: the codes.
    """

    of: Shared


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Operand:
    """An operand of a planned site.

    Attributes:
      row: what a report says of the site.
      side: 0: the lhs, 1: the rhs.
      shared: its codes; None: it stays in high precision.
      draw: the source of its noise.
      signs: the source of both operands' random signs; None if the site draws none.
      varies: mesh axes over which it differs.
      history: name of the history that its delayed scale comes from.
      experts: how many groups of rows have scales of their own, if there are any.
      in_memory: whether it is there before the program starts: no operation makes it that could do
        some of the quantizing.
      waits: whether its codes are made after the other operand's, so that no compiler takes those
        of the forward pass for them.
    """

    row: SitePlan
    side: int
    shared: Shared | None
    draw: Draw
    signs: Draw | None
    varies: frozenset[str]
    history: str | None
    experts: tuple[int, ...]
    in_memory: bool
    waits: bool = False

    @property
    def name(self) -> str:
        """``lhs`` or ``rhs``."""
        return ("lhs", "rhs")[self.side]

    @property
    def kind(self) -> str:
        """``activation``, ``weight``, ``gradient`` or ``unknown``."""
        return (self.row.site.lhs_kind, self.row.site.rhs_kind)[self.side]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return (self.row.site.lhs_shape, self.row.site.rhs_shape)[self.side]

    @property
    def draws(self) -> bool:
        """True if it is rounded stochastically."""
        return self.shared is not None and self.shared.spec.rounding == "stochastic"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PlannedSite:
    """A site of a program, and what becomes of it.

    Attributes:
      path: where it stands.
      row: what a report says of it.
      loops: of those around it, outermost first: the length, if it is known; whether it runs
        backwards.
      layers: of the same, the length of those over weights, such as a stack of layers: histories
        of delayed scales have a dimension for them, and the largest of all trips of the others.
      number: what the noise of its gradients comes from, should they be taken.
      operands: its lhs and rhs.
      varies: mesh axes over which a gradient differs where types do not tell.
      params: the static part of the site primitive; None: the site stays as it is.
    """

    path: Path
    row: SitePlan
    loops: tuple[tuple[int | None, bool], ...]
    layers: tuple[int | None, ...]
    number: int
    operands: tuple[Operand, Operand]
    varies: frozenset[str]
    params: SiteParams | None

    @property
    def product(self) -> Product:
        """The product of a site that is rewritten."""
        assert self.params is not None
        return self.params.product

    @property
    def quantized(self) -> list[tuple[Operand, Shared]]:
        """The operands that are quantized, and their codes."""
        return [(o, o.shared) for o in self.operands if o.shared is not None]

    @property
    def signs(self) -> Draw | None:
        """The source of both operands' random signs; None if it draws none."""
        return self.operands[0].signs

    @property
    def sends(self) -> bool:
        """True if devices send parts of its product as codes."""
        return self.params is not None and self.params.wire is not None

    @property
    def parts(self) -> Draw:
        """The source of the noise of these parts."""
        return Draw(self.number, PARTS, ())

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths of the loops around it that have a known one."""
        return tuple(n for n, _ in self.loops if n is not None)
