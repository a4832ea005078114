"""The part of a crossing that every run tests."""

import itertools
from collections import Counter

import pytest

from crossing import sample


def _crossing(*counts: int) -> dict[str, list[tuple[str, str]]]:
    names = "abc"
    return {
        str(indices): list(zip(names, map(str, indices), strict=False))
        for indices in itertools.product(*map(range, counts))
    }


@pytest.mark.parametrize(
    ("counts", "times", "fewest"), [((7, 3), 1, 7), ((7, 3), 2, 14), ((4, 4, 4), 1, 4)]
)
def test_each_value_stands_as_often_as_asked_in_few_cases(
    counts: tuple[int, ...], times: int, fewest: int
) -> None:
    cases = _crossing(*counts)
    taken = sample(cases, times)
    seen = Counter(value for name in taken for value in cases[name])
    assert all(
        seen[name, str(index)] >= times
        for name, n in zip("abc", counts, strict=False)
        for index in range(n)
    )
    assert fewest <= len(taken) <= fewest + 2


def test_no_crossing_is_kept_whole() -> None:
    cases = _crossing(5)
    assert sample(cases, 3) == cases.keys()


def test_a_value_that_stands_in_few_cases_keeps_them() -> None:
    cases = {
        "x": [("a", "0"), ("b", "0")],
        "y": [("a", "0"), ("b", "1")],
        "z": [("a", "1"), ("b", "1")],
    }
    assert sample(cases, 2) == cases.keys()
