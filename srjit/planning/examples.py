"""Examples that a program keeps apart, and scales of their own for them.

In per-example gradients, as of ``vmap(grad)``, the gradient of a weight that all examples share
keeps a dimension for them. One scale for all would let an example change the bits of the others.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence

from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.numerics.scale_layouts import NO_SCALES
from srjit.planning.roles import Classified
from srjit.products.dot import DotProduct
from srjit.program.values import BACKWARD

REACHES = (
    "its scales would reach from one example to another, whose gradients the program keeps apart: "
    "use a format with scales of blocks, such as mxfp8, or srjit inside of vmap"
)


class Examples:
    """The examples of a program.

    Args:
      classified: all its products.

    Attributes:
      counts: how many examples there are; several numbers where several dimensions are kept.
    """

    def __init__(self, classified: Sequence[Classified]) -> None:
        self.counts: frozenset[int] = frozenset()
        self._known: dict[int, tuple[int, ...]] = {}  # dimensions of values, by their tokens
        weighted = [c for c in classified if c.role == "fprop" and "weight" in _kinds(c)]
        by_id = {id(c.occurrence): c for c in weighted}
        reading: dict[int, list[Classified]] = collections.defaultdict(list)
        for c in weighted:
            reading[c.occurrence.operands[1 - _kinds(c).index("weight")].origin].append(c)
        for c in classified:
            partner = by_id.get(id(c.partner))
            if c.role == "wgrad" and partner is not None:
                self._add(c, partner)
            elif isinstance(c.product, DotProduct) and c.product.groups(0)[0]:
                for side, operand in enumerate(c.occurrence.operands):  # a gradient made by hand
                    size = c.occurrence.eqn.invars[1 - side].aval.size
                    is_gradient = BACKWARD in c.occurrence.operands[1 - side].labels
                    for partner in reading.get(operand.origin, ()) if is_gradient else ():
                        if size == partner.occurrence.eqn.outvars[0].aval.size:
                            self._add(c, partner)

    def _add(self, c: Classified, partner: Classified) -> None:
        """Adds the dimensions of examples, if a gradient has more elements than its weight."""
        weight = partner.occurrence.eqn.invars[_kinds(partner).index("weight")].aval
        size = c.occurrence.eqn.outvars[0].aval.size
        count, rest = divmod(size, max(weight.size, 1))
        if c is partner or count < 2 or rest:
            return
        found = {count}
        if isinstance(c.product, DotProduct):
            shapes = [v.aval.shape for v in c.occurrence.eqn.invars[:2]]
            batch = c.product.groups(0)[0]
            sizes = {label: shapes[0][c.product.lhs.index(label)] for label in batch}
            kept = [label for label in batch if sizes[label] == count][:1]
            if not kept:  # of several dimensions
                kept = [label for label in batch if sizes[label] > 1 and count % sizes[label] == 0]
            found = {sizes[label] for label in kept} or found
            for side, labels in enumerate((c.product.lhs, c.product.rhs)):
                token = c.occurrence.operands[side].token
                self._known[token] = tuple(labels.index(label) for label in kept)
        self.counts |= found

    def reach(self, c: Classified, specs: Sequence[Quantization | None] | None) -> bool:
        """True if a product's scales would reach across examples, and cannot be had for each."""
        return bool(
            self.counts
            and not isinstance(c.product, DotProduct)
            and any(q is not None and _reaches(q) for q in specs or ())
        )

    def apart(
        self, c: Classified, specs: Sequence[Quantization | None]
    ) -> tuple[Quantization | None, Quantization | None]:
        """The quantizations of a product's operands, with scales for every example."""
        lhs, rhs = specs
        if self.counts and isinstance(c.product, DotProduct):
            lhs = lhs and self._apart(c, c.product, 0, lhs)
            rhs = rhs and self._apart(c, c.product, 1, rhs)
        return lhs, rhs

    def _apart(
        self, c: Classified, product: DotProduct, side: int, spec: Quantization
    ) -> Quantization:
        if not _reaches(spec):
            return spec
        shape = c.occurrence.eqn.invars[side].aval.shape
        labels = (product.lhs, product.rhs)[side]
        batch, free, _ = product.groups(side)
        # A weight has examples only where every one has its own.
        is_weight = (c.lhs_kind, c.rhs_kind)[side] == "weight"
        possible = [d for d, n in enumerate(labels) if n in batch or (n in free and not is_weight)]
        dims = [d for d in self._known.get(c.occurrence.operands[side].token, ()) if d in possible]
        # Of other values nobody says which dimension it is: each of that size, or what has it
        # among others.
        dims = dims or [d for d in possible if shape[d] in self.counts]
        if not (dims or is_weight):
            merged = math.prod(shape[d] for d in possible[:1])
            dims = possible[:1] if any(merged % n == 0 for n in self.counts) else []
        return dataclasses.replace(spec, apart=tuple(d - len(shape) for d in dims))


def _kinds(c: Classified) -> tuple[str, str]:
    return c.lhs_kind, c.rhs_kind


def _reaches(spec: Quantization) -> bool:
    """True if a scale is of the whole tensor."""
    layout = get_format(spec.format).scales
    has_scale = spec.rounding != "none" and layout is not NO_SCALES
    return has_scale and (spec.shared == "tensor" or layout.has_tensor_scale)
