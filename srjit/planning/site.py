"""A site: a product of a program, what becomes of it, and the static part of its evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Rng
from srjit.products.product import Product

Status = Literal["native", "emulated", "kept"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """One matrix multiplication of a program.

    Attributes:
      number: ordinal in execution order, calls expanded, a loop's body counted once.
      path: name-scope path.
      role: ``fprop``, ``dgrad``, ``wgrad`` or ``unknown``.
      phase: ``forward``, ``recompute`` or ``backward``.
      op: the JAX primitive.
      lhs_kind, rhs_kind: ``activation``, ``weight``, ``gradient`` or ``unknown``.
      lhs_shape, rhs_shape, out_shape: shapes.
      dtype: of the result.
      flops: multiplications and additions of one execution.
      trips: product of the lengths of the enclosing loops; an unknown length counts once.
      location: file:line.
      why: how the role was found.
    """

    number: int
    path: str
    role: str
    phase: str
    op: str
    lhs_kind: str
    rhs_kind: str
    lhs_shape: tuple[int, ...]
    rhs_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    dtype: str
    flops: int
    trips: int = 1
    location: str = ""
    why: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SitePlan:
    """What becomes of one site.

    Attributes:
      site: the site.
      lhs, rhs: what its operands become; None: high precision.
      status: ``native``, ``emulated`` or ``kept``.
      reason: why it is kept; empty otherwise.
      asked: whether the recipe asked for it to be quantized.
      rule: which of the recipe's rules decided; empty if none did.
      backward: the plans of its dgrad and wgrad, should the function be differentiated.
    """

    site: Site
    lhs: Quantization | None
    rhs: Quantization | None
    status: Status
    reason: str = ""
    asked: bool = False
    rule: str = ""
    backward: tuple[SitePlan, ...] = ()

    def __getattr__(self, name: str) -> Any:
        """What a SitePlan does not have itself is its site's."""
        if name == "site" or name.startswith("_"):  # while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.site, name)

    def described(self) -> str:
        """For messages: which site this is, and which rule decided."""
        where = " ".join(s for s in (self.site.path, f"({self.site.location})") if s != "()")
        rule = f", by {self.rule}" if self.rule else ""
        return f"site {self.site.number} {where}: {self.site.role} {self.site.op}{rule}"


WrittenKind = Literal["parameter", "moment", "gradient"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WriteBack:
    """A value narrower than float32 that a training step writes: a parameter, moment or gradient.

    Attributes:
      path: what it is among the arguments: ``params['w']``; of a gradient, where it is cast.
      kind: ``parameter``, ``moment`` or ``gradient``.
      shape, dtype: of it.
      op: what writes it, ``add``, ``sub``, ``cast``, ...; empty if nothing that was found.
      status: ``stochastic``: computed in float32 and rounded stochastically to ``dtype``; or
        ``kept``: as the program has it.
      reason: why it is kept; empty otherwise.
      asked: whether the recipe asked for it, and there is something to be written.
    """

    path: str
    kind: WrittenKind
    shape: tuple[int, ...]
    dtype: str
    op: str
    status: Literal["stochastic", "kept"]
    reason: str = ""
    asked: bool = False

    def described(self) -> str:
        """For messages: which value this is."""
        return f"{self.kind} {self.path}, {self.dtype} {shape_in_words(self.shape)}"


def shape_in_words(shape: Sequence[int]) -> str:
    """``16x32``; ``scalar`` for no dimensions."""
    return "x".join(map(str, shape)) or "scalar"


# ------------------------------------------------------------------ what is static about a site

# The quantizations of one site, and what draws signs: of it, and of its operands' gradients.
LHS, RHS, CT_DGRAD, CT_WGRAD, RESIDUAL, _, SIGNS, GRADIENT_SIGNS = range(8)


@dataclasses.dataclass(frozen=True)
class Backward:
    """One backward product: its role, and what the cotangent and the other operand become."""

    role: str
    ct: Quantization | None
    residual: Quantization | None


@dataclasses.dataclass(frozen=True)
class SiteParams:
    """Everything static about a site.

    Attributes:
      product: what is multiplied.
      dtype: of the result.
      lhs, rhs: how the operands were quantized; None: in high precision.
      backward: for each operand, what its gradient's product is quantized to; None: high precision.
      extras: number of extra operands (group sizes).
      target, rng: names.
      label: shown by profilers.
      turned: whether a turned copy of the operands' codes is wanted.
      trees: structures of both operands' codes, once they are bound.
    """

    product: Product
    dtype: Any
    lhs: Quantization | None
    rhs: Quantization | None
    backward: tuple[Backward | None, Backward | None] = (None, None)
    extras: int = 0
    target: str = "cpu"
    rng: Rng = "hash"
    label: str = "site"
    turned: tuple[bool, bool] = (False, False)
    trees: tuple[Any, Any] = (None, None)

    @property
    def needs_key(self) -> bool:
        """Whether differentiating the site draws noise."""
        specs = [q for b in self.backward if b for q in (b.ct, b.residual) if q]
        return any(q.rounding == "stochastic" for q in specs)


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


def draw_signs(*specs: Quantization | None) -> bool:
    """Whether a product has signs of its operands, so quantized, flipped at random first."""
    return any(q is not None and q.draws_signs for q in specs)
