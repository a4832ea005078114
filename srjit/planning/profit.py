"""Takes out of a plan what does not pay by a target's estimates, as ``recipe="auto"`` does.

A quantization serves every product that reads its codes, so sites are weighed together with those
that they share codes with.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence

from srjit.planning.planned_site import oriented
from srjit.planning.provenance import Provenance
from srjit.planning.roles import Classified
from srjit.planning.site import SitePlan
from srjit.products.dot import DotProduct
from srjit.products.product import Product
from srjit.targets.target import Estimates, GroupEstimates

MARGIN = 0.1  # of the cycles in high precision, to be gained at least: they are estimates


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A product that a recipe wants to quantize, and its estimated cycles.

    Attributes:
      plain: in high precision.
      quantized: multiplied as codes; None where nothing is known of such a product.
      codes: to quantize its operands, by what is equal for operands that share codes.
      rows: of each group, expected; None of a product without groups.
    """

    plain: float
    quantized: float | None
    codes: dict[Hashable, float]
    rows: int | None = None


@dataclasses.dataclass(frozen=True)
class Cut:
    """Into how many parts devices cut a ``DotProduct``.

    Attributes:
      labels: what of each dimension a device multiplies.
      arrays: of the left operand, the right one and the result, what a device holds.
    """

    labels: Mapping[int, int]
    arrays: tuple[int, int, int]


Cuts = Sequence[Cut | None]  # of every product, as far as it is known
_RESULT = 2


def uncut(classified: Sequence[Classified]) -> Cuts:
    """The cuts of a program on one device."""
    return [None] * len(classified)


def paying(
    classified: Sequence[Classified],
    rows: Sequence[SitePlan],
    provenance: Provenance,
    estimates: Estimates | None,
    cuts: Cuts,
) -> list[SitePlan]:
    """The decisions, without what does not pay by the estimates of a target, if it has any.

    What counts is the work of one device.
    """
    if estimates is None:
        return list(rows)
    parts = [
        (c, cut, part, side)
        for c, cut, row in zip(classified, cuts, rows, strict=True)
        for side, part in zip((None, 0, 1), row.with_gradients, strict=False)
        if part.status != "kept"
    ]
    candidates = [_candidate(*part, provenance, estimates) for part in parts]
    found = not_worth(candidates, estimates.name)
    reasons = {id(part): why for (_, _, part, _), why in zip(parts, found, strict=True)}

    def kept(row: SitePlan) -> SitePlan:
        reason = reasons.get(id(row))
        backward = tuple(map(kept, row.backward))
        if reason is None:
            return dataclasses.replace(row, backward=backward)
        return SitePlan(
            site=row.site,
            status="kept",
            reason=reason,
            rule=row.rule,
            pays=False,
            backward=backward,
        )

    return list(map(kept, rows))


def _candidate(
    c: Classified,
    cut: Cut | None,
    row: SitePlan,
    differentiated: int | None,
    provenance: Provenance,
    estimates: Estimates,
) -> Candidate:
    product = c.product if differentiated is None else c.gradient(differentiated)
    assert product is not None
    shapes, trips = (row.site.lhs_shape, row.site.rhs_shape), row.site.trips
    lhs, rhs = (
        spec and oriented(spec, product, side, shapes[side])
        for side, spec in enumerate((row.lhs, row.rhs))
    )
    codes: dict[Hashable, float] = {}
    for side, spec in enumerate((lhs, rhs)):
        if spec is not None:
            key, in_memory = ("cotangent", c.occurrence.path, spec), False
            if side != differentiated:
                key = c.token(side, provenance), spec
                in_memory = c.occurrence.operands[side].origin in provenance.given
            array = _RESULT if side == differentiated else side
            size = math.prod(shapes[side]) // (cut.arrays[array] if cut else 1)
            codes[key] = trips * estimates.quantization(size, spec, in_memory)
    if cut is not None and isinstance(product, DotProduct):
        shapes = _cut(product.lhs, shapes[0], cut), _cut(product.rhs, shapes[1], cut)
    groups = _groups(product, (*shapes, row.site.out_shape))
    if groups and isinstance(estimates, GroupEstimates):
        plain, quantized = estimates.grouped_product(product, shapes, (lhs, rhs), groups)
    else:
        plain, quantized = estimates.product(product, shapes, (lhs, rhs))
    ragged = product.along(0)
    rows = shapes[0][ragged.dim] // groups if ragged and groups else None
    return Candidate(plain * trips, None if quantized is None else quantized * trips, codes, rows)


def _groups(product: Product, shapes: Sequence[tuple[int, ...]]) -> int:
    """The number of groups of a product, by one of its arrays; 0 if it has none."""
    places = [product.along(which) for which in range(3)]
    numbers = [s[p.dim] for p, s in zip(places, shapes, strict=True) if p and not p.is_ragged]
    return max(numbers, default=0)


def _cut(labels: Sequence[int], shape: Sequence[int], cut: Cut) -> tuple[int, ...]:
    return tuple(-(-n // cut.labels.get(d, 1)) for d, n in zip(labels, shape, strict=True))


def not_worth(candidates: Sequence[Candidate], chip: str) -> list[str | None]:
    """For every candidate, why it is better left in high precision; None: it is not."""
    reasons: list[str | None] = [None] * len(candidates)
    for group in _sharing(candidates):
        for members, reason in _left_out({i: candidates[i] for i in group}, chip):
            for i in members:
                reasons[i] = reason
    return reasons


def _sharing(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Candidates by groups that share codes, directly or through others."""
    group = list(range(len(candidates)))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    first: dict[Hashable, int] = {}
    for i, candidate in enumerate(candidates):
        for key in candidate.codes:
            group[root(i)] = root(first.setdefault(key, i))
    found: dict[int, list[int]] = collections.defaultdict(list)
    for i in range(len(candidates)):
        found[root(i)].append(i)
    return list(found.values())


def _left_out(members: dict[int, Candidate], chip: str) -> list[tuple[set[int], str]]:
    """The members to leave in high precision, set by set, each with the reason.

    Sets are left out as long as that gains anything; then all, if what is left gains too little.
    """
    unknown = {i for i, w in members.items() if w.quantized is None}
    found = [(unknown, f"nothing is known of such a product's quantized cycles on {chip}")]
    left = members.keys() - unknown
    readers: dict[Hashable, set[int]] = collections.defaultdict(set)
    codes: dict[Hashable, float] = collections.defaultdict(float)
    for i in left:
        for key, cycles in members[i].codes.items():
            readers[key].add(i)
            codes[key] = max(codes[key], cycles)

    def weigh(out: set[int]) -> tuple[float, float, float]:
        """Cycles of these in high precision, as codes, and of codes that are only for them."""
        unread = {k for i in out for k in members[i].codes if readers[k] & left <= out}
        plain = sum(members[i].plain for i in out)
        quantized = sum(members[i].quantized or 0.0 for i in out)
        return plain, quantized, sum(codes[key] for key in unread)

    def gain(out: set[int]) -> float:
        plain, quantized, made = weigh(out)
        return quantized + made - plain

    def expected(out: set[int]) -> str:
        rows = sorted({r for i in out if (r := members[i].rows) is not None})
        return f", {' and '.join(map(str, rows))} rows expected of each expert" if rows else ""

    def reason(out: set[int], what: str) -> str:
        plain, quantized, made = map(counted, weigh(out))
        many = f" for {len(out)} products that share codes" if len(out) > 1 else ""
        return (
            f"{what} on {chip}: {plain} cycles{many}, against {quantized} quantized and {made} to "
            f"quantize, by a rule of thumb{expected(out)}"
        )

    while left:
        # A product by itself, or all those that read the same codes, which are saved with them.
        groups = [{i} for i in left] + [r & left for r in readers.values() if r & left]
        best = max(groups, key=gain)
        if gain(best) <= 0:
            break
        found.append((best, reason(best, "faster in high precision")))
        left -= best
    if left and -gain(left) <= MARGIN * sum(w.plain for w in members.values()):
        found.append((left, reason(left, f"quantizing gains less than {MARGIN:.0%}")))
    return found


def counted(number: float) -> str:
    """A number as tables have it: ``2.83M``, ``333.6k``, ``20``."""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.{2 if number < 100 * size else 1}f}{unit}"
    return f"{number:.0f}"
