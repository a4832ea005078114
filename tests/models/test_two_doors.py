"""Models that nobody here wrote: both doors say the same of every product of their steps."""

from __future__ import annotations

import pytest

import srjit

from .catalogue import Entry, entries

# scan(unroll=...) is several copies of its body once it is lowered; the report says so.
_UNROLLED = ("penzai:Gemma with a layer stack",)


@pytest.mark.crossed(1, most=2)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "entry",
    [pytest.param(e, id=e.id, marks=[] if e.runs else pytest.mark.nightly) for e in entries()],
)
def test_both_doors_say_the_same_of_every_product(entry: Entry):
    case = entry.build()
    options = {"recipe": "int8", "params_argnums": case.params_argnums}
    by_jaxpr, by_module = (
        srjit.srjit(case.step, layer=layer, **options).explain(*case.args)
        for layer in ("jaxpr", "stablehlo")
    )
    if entry.id in _UNROLLED:
        assert any("unroll" in note for note in by_module.notes)
        return
    assert len(by_jaxpr.sites) == len(by_module.sites)
    for a, b in zip(by_jaxpr.sites, by_module.sites, strict=True):
        assert (a.site, a.lhs, a.rhs, a.status, a.reason) == (
            b.site, b.lhs, b.rhs, b.status, b.reason,
        )  # fmt: skip
