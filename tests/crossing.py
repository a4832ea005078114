"""A crossing of parameters, tested by a part of its cases in which every value still stands."""

import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

Value = tuple[str, str]  # a parameter, and one of its values in words


def parted(
    items: Iterable[Any], nightly: bool = False, once: bool = False
) -> tuple[list[Any], set[str]]:
    """Items in order without what is left to the night, and the node ids of that.

    Nightly tests are left out whole. A test with ``pytest.mark.crossed(n)`` keeps the fewest of its
    cases in which every value of each of its parameters stands n times, if it has as many; with
    ``crossed(n, most=m)`` the m of those which have the most values.

    Args:
      items: of pytest.
      nightly: leave out nothing.
      once: keep one case of each test, as if all were marked ``crossed(1, most=1)``.
    """
    items = list(items)
    if nightly:
        return items, set()
    left_out = {item.nodeid for item in items if item.get_closest_marker("nightly")}
    crossed: dict[tuple[str, int, int | None], dict[str, list[Value]]] = {}
    for item in items:
        mark = item.get_closest_marker("crossed")
        if (mark or (once and hasattr(item, "callspec"))) and item.nodeid not in left_out:
            asked = (1, 1) if once else (mark.args[0], mark.kwargs.get("most"))
            values = [(name, repr(value)) for name, value in item.callspec.params.items()]
            crossed.setdefault((item.nodeid.split("[")[0], *asked), {})[item.nodeid] = values
    for (_, times, most), cases in crossed.items():
        left_out |= cases.keys() - sample(cases, times, most)
    return [item for item in items if item.nodeid not in left_out], left_out


def sample(cases: dict[str, list[Value]], times: int, most: int | None = None) -> set[str]:
    """Names of cases in which every value stands ``times`` times: greedily the fewest.

    Args:
      cases: for the name of each, the value that each parameter has.
      times: how often, or as often as there are cases, if those are fewer.
      most: how many cases, even if some value is in none of them then.
    """
    missing = Counter(value for values in cases.values() for value in values)
    missing = Counter({value: min(times, count) for value, count in missing.items()})
    left = dict(cases)
    taken: set[str] = set()
    while missing.total() and len(taken) != most:
        # Among equals, by a hash: the first ones would be one value's.
        best = max(left, key=lambda name: (_gain(left[name], missing), zlib.crc32(name.encode())))
        missing -= Counter(left.pop(best))
        taken.add(best)
    return taken


def _gain(values: list[Value], missing: Counter[Value]) -> tuple[int, int]:
    wanted = [missing[value] for value in values if missing[value] > 0]
    return len(wanted), max(wanted, default=0)
