"""Entries of reports: sites, which are products of a program, and write-backs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from srjit.numerics.quantization import Quantization

Status = Literal["native", "emulated", "kept"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Site:
    """One matrix multiplication of a program, or something that may be some.

    Attributes:
      number: ordinal in execution order, calls expanded, a loop's body counted once. What is left
        alone, since srjit does not look into it, is numbered after all else.
      path: name-scope path.
      role: ``fprop``, ``dgrad``, ``wgrad`` or ``unknown``.
      phase: ``forward``, ``recompute`` or ``backward``.
      op: the JAX primitive, or another operation that is left alone.
      lhs_kind, rhs_kind: ``activation``, ``weight``, ``gradient`` or ``unknown``.
      lhs_shape, rhs_shape, out_shape: shapes; of what is left alone, those of its first two
        matrices and its first result. A dimension that is not known is -1.
      dtype: of the result.
      flops: multiplications and additions of one execution; 0 where nobody knows.
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
    """A site and what becomes of it: an entry of a report.

    Attributes:
      site: the site.
      lhs, rhs: what its operands become; None: high precision.
      status: ``native``, ``emulated`` or ``kept``.
      reason: why it is kept; empty otherwise.
      asked: whether the recipe asked for it to be quantized.
      rule: which of the recipe's rules decided; empty if none did.
      pays: whether it pays to quantize it, if that was asked; else it is kept.
      backward: the plans of the gradients of its lhs and of its rhs, should the function be
        differentiated from outside; empty if it is differentiated inside, or cannot be.
    """

    site: Site
    lhs: Quantization | None = None
    rhs: Quantization | None = None
    status: Status
    reason: str = ""
    asked: bool = False
    rule: str = ""
    pays: bool = True
    backward: tuple[SitePlan, ...] = ()

    def __getattr__(self, name: str) -> Any:
        """Attributes of the site are a SitePlan's too."""
        if name == "site" or name.startswith("_"):  # while being copied or unpickled
            raise AttributeError(name)
        return getattr(self.site, name)

    @property
    def with_gradients(self) -> tuple[SitePlan, ...]:
        """The site, then its gradients should the function be differentiated."""
        return self, *self.backward

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual:
    """A factor of a cotangent in derivatives, element by element, and what is kept for it.

    Attributes:
      path: where the backward pass reads it.
      shape, dtype: of it.
      format: of its codes; empty if it is kept in floats.
      before, after: bytes that are kept for it, of all trips of the loops that hand it on; what is
        kept for several of them counts for the first.
      status: ``stochastic``: codes of it are kept; or ``kept``: what it is made of is.
      reason: why it is kept; empty otherwise.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    before: int
    after: int
    status: Literal["stochastic", "kept"]
    reason: str = ""


def listed(names: Sequence[str], most: int) -> str:
    """``a, b and 3 more``: names, the first few of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def shape_in_words(shape: Sequence[int]) -> str:
    """``16x32``; ``scalar`` for no dimensions, and ``?`` for one that is not known."""
    return "x".join("?" if n == -1 else str(n) for n in shape) or "scalar"
