"""The part of a crossing that every run tests."""

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from crossing import parted, sample


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


def test_so_many_at_most_are_those_with_the_most_values() -> None:
    cases = _crossing(4, 4, 4)
    taken = sample(cases, 1, most=3)
    assert len(taken) == 3 and taken < sample(cases, 1)
    assert len({value for name in taken for value in cases[name]}) == 9
    assert len(sample(_crossing(2), 1, most=3)) == 2


def _item(name: str, *marks: pytest.Mark, **parameters: str) -> Any:
    named = {mark.name: mark for mark in marks}
    call = {"callspec": SimpleNamespace(params=parameters)} if parameters else {}
    return SimpleNamespace(nodeid=name, get_closest_marker=named.get, **call)


def test_marks_say_what_is_left_to_the_night() -> None:
    most = pytest.mark.crossed(1, most=2).mark
    items = [
        _item("alone"),
        _item("long", pytest.mark.nightly.mark),
        *(_item(f"listed[{i}]", most, a=str(i)) for i in range(5)),
        *(_item(f"all[{i}]", a=str(i)) for i in range(3)),
    ]

    def kept(**options: bool) -> Counter[str]:
        items_kept, left_out = parted(items, **options)
        names = [item.nodeid for item in items_kept]
        assert sorted([*names, *left_out]) == sorted(item.nodeid for item in items)
        return Counter(name.split("[")[0] for name in names)

    assert kept() == {"alone": 1, "listed": 2, "all": 3}
    assert kept(once=True) == {"alone": 1, "listed": 1, "all": 1}
    assert kept(nightly=True) == {"alone": 1, "long": 1, "listed": 5, "all": 3}
