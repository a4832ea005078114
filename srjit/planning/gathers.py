"""Gathers and exchanges inside ``shard_map`` whose results are only multiplied: of codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from srjit.numerics.formats import get_format
from srjit.numerics.quantization import Quantization
from srjit.planning.planned_site import PlannedSite
from srjit.program.control_flow import flow_of
from srjit.program.protocols import Equation, Program, is_literal
from srjit.program.values import Path

Gathers = dict[tuple[Path, int], Path]
_GATHERS = ("all_gather", "all_gather_invariant", "all_to_all")
_CAST = "convert_element_type"
_FLOATS = ("bfloat16", "float16", "float32")


def gathers_of(program: Program, sites: Mapping[Path, PlannedSite]) -> Gathers:
    """The collective that gathers or exchanges each operand's shards, by site and side.

    Only where nothing reads what is gathered but products, which read codes of it, and codes of
    shards are shards of codes: rounded to nearest, by a scale that all devices know. A cast may
    stand behind the collective.

    Args:
      program: all of it.
      sites: that are rewritten, by where they stand.
    """
    scopes = {path[:n] for path in sites for n in range(1, len(path))}
    return dict(_inside(program, (), sites, scopes))


def _inside(
    program: Program, scope: Path, sites: Mapping[Path, PlannedSite], scopes: set[Path]
) -> Iterator[tuple[tuple[Path, int], Path]]:
    readers: dict[Any, list[tuple[int, int]]] = {}
    for index, eqn in enumerate(program.eqns):
        for position, v in enumerate(eqn.invars):
            if not is_literal(v):
                readers.setdefault(v, []).append((index, position))
    returned = {v for v in program.outvars if not is_literal(v)}
    for index, eqn in enumerate(program.eqns):
        here = (*scope, index)
        if _is_gather(eqn):
            reading = _reading(eqn, program.eqns, readers, returned)
            uses = [((*scope, i), side) for i, side in reading or ()]
            if uses and all(_reads_codes(sites.get(path), side) for path, side in uses):
                yield from ((use, here) for use in uses)
        elif here in scopes and (flow := flow_of(eqn)) is not None:
            for region in flow.regions:
                yield from _inside(region.program, (*here, *region.step), sites, scopes)


def _is_gather(eqn: Equation) -> bool:
    """True if an equation moves shards of one array among all devices along some axes."""
    name, params = eqn.primitive.name, eqn.params
    if name not in _GATHERS or params.get("axis_index_groups") or len(eqn.outvars) > 1:
        return False
    return name != "all_to_all" or params.get("tiled", True)


def _reading(
    eqn: Equation,
    eqns: Sequence[Equation],
    readers: Mapping[Any, Sequence[tuple[int, int]]],
    returned: set[Any],
) -> list[tuple[int, int]] | None:
    """The equations that read an equation's result, or casts of it; None: what is outside does."""
    (v,) = eqn.outvars
    if v in returned or str(v.aval.dtype) not in _FLOATS:
        return None
    found: list[tuple[int, int]] = []
    for index, position in readers.get(v, ()):
        reader = eqns[index]
        is_cast = reader.primitive.name == _CAST and eqn.primitive.name != _CAST
        inner = _reading(reader, eqns, readers, returned) if is_cast else [(index, position)]
        if inner is None:
            return None
        found += inner
    return found


def _reads_codes(site: PlannedSite | None, side: int) -> bool:
    shared = site.operands[side].shared if site is not None and side < 2 else None
    if site is None or shared is None or site.product.masks(side):
        return False
    return _is_alike(shared.spec)


def _is_alike(spec: Quantization) -> bool:
    """True if codes of shards are shards of codes, and NaN is seen where codes are gathered."""
    if spec.rounding != "nearest" or spec.hadamard or spec.group_dim is not None:
        return False
    is_float = not get_format(spec.format).element.is_integer
    return spec.keeps_amax or (spec.scaling == "static" and is_float)
