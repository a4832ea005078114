"""What the tests of this folder share: each model is built, traced and counted once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from . import flops
from .catalogue import Case, Entry


@dataclasses.dataclass(frozen=True)
class Counted:
    """A case with what the two instruments say of it."""

    case: Case
    step: list[flops.Matmul]
    oracle: list[flops.Matmul]


def parameters(chosen: Iterable[Entry]) -> list[Any]:
    """Entries for ``pytest.mark.parametrize``."""
    return [
        pytest.param(entry, id=entry.id, marks=[pytest.mark.slow] if entry.slow else [])
        for entry in chosen
    ]


@functools.cache
def _count(entry: Entry) -> Counted:
    case = entry.build()
    sites = flops.oracle(case.loss, case.loss_args, frozen=case.frozen)
    oracle = [dataclasses.replace(site, trips=site.trips * case.repeats) for site in sites]
    return Counted(case, flops.matmuls(case.step, *case.args), oracle)


@pytest.fixture(scope="session")
def count() -> Callable[[Entry], Counted]:
    """Builds and counts an entry of the catalogue."""
    return _count
