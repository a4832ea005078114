"""Models that nobody here wrote: what srjit finds in their training steps, against the oracle.

The report must list every product of the program, give no site a wrong role, and quantize 95 % of
the FLOPs or say by name why not; of the FLOPs that a weight takes part in, 95 % without excuse.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nameless import both, told
from srjit import srjit

from . import flops
from .catalogue import Case, Entry, entries

Sites = collections.Counter[tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Known:
    """A case, what the two instruments say of it, and what srjit says."""

    case: Case
    step: list[flops.Matmul]
    oracle: list[flops.Matmul]
    report: Any


def _decorated(case: Case) -> Any:
    return srjit(recipe="int8")(case.step)


def _parameters(chosen: Iterable[Entry]) -> list[Any]:
    return [
        pytest.param(entry, id=entry.id, marks=[pytest.mark.nightly] if entry.slow else [])
        for entry in chosen
    ]


@pytest.fixture(scope="module", params=_parameters(entries()))
def known(request: pytest.FixtureRequest) -> Known:
    """An entry of the catalogue, built and counted once for all its tests."""
    case = request.param.build()
    sites = flops.oracle(case.loss, case.loss_args, frozen=case.frozen)
    return Known(
        case,
        step=flops.matmuls(case.step, *case.args),
        oracle=[dataclasses.replace(s, trips=s.trips * case.repeats) for s in sites],
        report=_decorated(case).explain(*case.args),
    )


def _as_multiset(sites: Iterable[Any], *, roles: bool = True) -> Sites:
    """The report's sites, in the form that ``flops.counted`` gives its own."""
    return collections.Counter((s.role if roles else "", s.op, s.flops, s.trips) for s in sites)


def _flops(sites: Sites) -> int:
    return sum(count * cost * trips for (_, _, cost, trips), count in sites.items())


def _kinds_fit(site: Any) -> bool:
    """Do the kinds of the operands belong to the role?"""
    kinds = (site.lhs_kind, site.rhs_kind)
    if site.role == flops.FPROP:
        return set(kinds) <= {"activation", "weight"}
    return kinds.count("gradient") == 1 and set(kinds) <= {"gradient", "activation", "weight"}


def test_the_oracle_accounts_for_every_site(known: Known) -> None:
    """Roles by construction add up to exactly the products of the step as its library wrote it."""
    assert flops.counted(known.oracle, roles=False) == flops.counted(known.step, roles=False)
    case = known.case
    forward = case.repeats * flops.total(flops.matmuls(case.loss, *case.loss_args))
    amounts = flops.by_role(known.oracle)
    assert set(amounts) == set(flops.ROLES)
    assert amounts[flops.FPROP] >= forward
    if all(site.op != "conv_general_dilated" for site in known.oracle):
        assert amounts[flops.DGRAD] + amounts[flops.WGRAD] <= 2 * forward


def test_every_site_is_found_and_has_its_role(known: Known) -> None:
    report, total = known.report, flops.total(known.step)
    assert _as_multiset(report.sites, roles=False) == flops.counted(known.step, roles=False)

    oracle = flops.counted(known.oracle, roles=True)
    told = _as_multiset(s for s in report.sites if s.role != "unknown")
    assert told <= oracle, f"wrong roles: {told - oracle}, missing: {oracle - told}"
    assert _flops(oracle - told) <= 0.05 * total
    assert [s.path for s in report.sites if s.role in flops.ROLES and not _kinds_fit(s)] == []


def test_roles_are_the_same_without_names(known: Known) -> None:
    """As of a module without locations."""
    given = known.case.params_argnums
    parameters = given if isinstance(given, tuple) else (given,)
    named, nameless = both(known.case.step, *known.case.args, parameters=parameters)
    pairs = zip(named, nameless, strict=True)
    assert [(a, b) for a, b in pairs if b.role != "unknown" and told(a) != told(b)] == []
    unknown = sum(c.site.flops * c.site.trips for c in nameless if c.role == "unknown")
    assert unknown <= 0.01 * flops.total(known.step)


def test_nearly_all_flops_are_quantized(known: Known) -> None:
    report, total = known.report, flops.total(known.step)
    kept = [s for s in report.sites if s.status == "kept"]
    quantized = [s for s in report.sites if s.status != "kept"]
    assert {s.status for s in quantized} <= {"native", "emulated"}
    assert all(s.role in flops.ROLES for s in quantized)
    assert all(s.reason for s in kept)

    right = _flops(_as_multiset(quantized) & flops.counted(known.oracle, roles=True))
    named = _flops(_as_multiset(s for s in kept if "unknown role" not in s.reason.lower()))
    assert right + named >= 0.95 * total
    weighted = sum(site.total for site in known.oracle if site.weighted)
    assert right >= 0.95 * weighted
    assert math.isclose(report.coverage(), _flops(_as_multiset(quantized)) / total)
    assert report.text(full=True).count("\n") >= len(report.sites)


# ---------------------------------------------------------------------------------------------
# A handful of them run


def _update(before: Any, after: Any) -> np.ndarray:
    """What a step did to the parameters, as one vector."""
    steps = jax.tree.map(lambda a, b: jnp.ravel(b - a).astype(jnp.float32), before, after)
    return np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(steps)])


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("entry", _parameters(entry for entry in entries() if entry.runs))
def test_a_step_runs_close_to_the_original(entry: Entry) -> None:
    """Close, and not the same: int8 was there. The key, and it alone, moves the result."""
    case = entry.build()
    params = case.args[0]
    plain = jax.jit(case.step)(*case.args)
    step = _decorated(case)
    first, again, other = (step(*case.args, sr_key=jax.random.key(seed)) for seed in (1, 1, 2))

    assert jax.tree.structure(first) == jax.tree.structure(plain)
    assert abs(float(first[-1]) - float(plain[-1])) <= 0.02 * abs(float(plain[-1]))
    exact, one, two = (_update(params, result[0]) for result in (plain, first, other))
    assert 0.98 < _cosine(exact, one) < 1 - 1e-6
    assert 0.95 < np.linalg.norm(one) / np.linalg.norm(exact) < 1.05
    assert np.array_equal(one, _update(params, again[0]))
    assert not np.array_equal(one, two)
