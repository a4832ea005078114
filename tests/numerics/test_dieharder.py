"""The noise passes a selection of dieharder's tests; ``dieharder.py --all`` runs the others."""

import pytest

from . import dieharder, streams

# The others are nightly: half a minute each.
QUICKLY = "by_element"


@pytest.mark.slow
@pytest.mark.parametrize(
    "stream",
    [pytest.param(s, marks=[pytest.mark.nightly] * (s != QUICKLY)) for s in streams.STREAMS],
)
def test_dieharder_finds_nothing(stream: str):
    if not dieharder.PROGRAM:
        pytest.skip("dieharder is not installed (apt install dieharder): NumPy's battery alone ran")
    found = list(dieharder.results(stream, dieharder.QUICK))
    assert len({result.test for result, _ in found}) == len(dieharder.QUICK)
    assert not [result for result, failed in found if failed]
