"""A report of a deep model has one row for all layers that are alike, and loses none in full."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from srjit import Report, srjit
from srjit.report.repeated import repeated

DEPTH = 48


def layer(params: Any, x: jax.Array) -> jax.Array:
    for name in ("qkv", "out", "up", "down"):
        with jax.named_scope(f"block_0/{name}"):
            x = jnp.tanh(x @ params[name])
    return jnp.mean(x**2)


@pytest.fixture(scope="module")
def deep() -> Report:
    """The report of a model with layers of which all but one are quantized alike."""
    one = srjit(jax.grad(layer), recipe="nvfp4").explain(
        dict.fromkeys(("qkv", "out", "up", "down"), jnp.eye(64)), jnp.ones((32, 64))
    )
    sites: list[Any] = []
    for block in range(DEPTH):
        for plan in one.sites:
            path = plan.site.path.replace("block_0", f"model/block_{block}")
            site = dataclasses.replace(plan.site, path=path, number=len(sites))
            kept = {"status": "kept", "lhs": None, "rhs": None, "reason": "the last"}
            changed = kept if block == DEPTH - 1 else {}
            sites.append(dataclasses.replace(plan, site=site, **changed))
    return dataclasses.replace(one, sites=tuple(sites))


def test_a_deep_model_fits_one_screen(deep: Report, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = str(deep).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    counts = [int(n) for n in re.findall(r"^\d+ .* x(\d+) ", str(deep), re.MULTILINE)]
    assert sum(counts) == len(deep.sites)
    assert set(counts) == {DEPTH - 1, 1}, "the layer that is kept is not among the others"


def test_paths_say_which_layers(deep: Report, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert f"model/block_{{0..{DEPTH - 2}}}/qkv" in str(deep)
    assert re.search(rf"^\d+ +model/block_{DEPTH - 1}/qkv +fprop .* kept$", str(deep), re.MULTILINE)


def test_nothing_is_lost_in_full(deep: Report, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = re.findall(r"^(\d+) +(\S+) +(\S+)", deep.text(full=True), re.MULTILINE)
    assert shown == [(str(s.number), s.path, s.role) for s in deep.sites]
    assert all(f"<td>{site.path}</td>" in deep.to_html() for site in deep.sites[::50])


def test_a_short_report_has_a_row_for_each_site(deep: Report):
    short = dataclasses.replace(deep, sites=deep.sites[:12])
    assert str(short) == short.text(full=True)


def test_the_summary_tells_the_share_of_each_role(deep: Report):
    share = f"{100 * (1 - 1 / DEPTH):.1f} %"
    told = f"{share} of FLOPs quantized (fprop {share}, dgrad {share}, wgrad {share})"
    assert told in " ".join(str(deep).split())


@pytest.mark.parametrize(
    ("paths", "joined"),
    [
        (["a/1", "a/2", "a/3", "a/4"], ["a/{1..4}"]),
        (["a/1", "a/2"], ["a/{1,2}"]),
        (["a/1", "a/1"], ["a/1"]),
        (["a/1", "a/3", "a/5", "a/7", "a/9"], ["a/{1,3,5,...}"]),
        (["a/1/b/2", "a/2/b/2"], ["a/{1,2}/b/2"]),
        (["a/1", "b/1", "a/2"], ["a/{1,2}", "b/1"]),
        (["plain", "plain"], ["plain"]),
    ],
)
def test_numbers_in_paths_are_joined(paths: list[str], joined: list[str]):
    assert [found.path for found in repeated(paths, str, len)] == joined
