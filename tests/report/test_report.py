"""``explain``: every site, in a terminal, as JSON and as HTML; what could not be had is said."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from srjit import Operands, Quantization, Recipe, Report, Rule, UnsupportedSiteError, recipes, srjit
from steps import KEY, W, X, loss, step

LONG = "a_model_with_a_long_name/encoder/block_11/attention/projection"


def two_layers(params: Any, x: jax.Array) -> jax.Array:
    with jax.named_scope(LONG):
        hidden = jax.nn.relu(x @ params["up"])

    def layer(x: jax.Array, w: jax.Array) -> Any:
        return jnp.tanh(x @ w), None

    with jax.named_scope("<head> & tail"):
        return jnp.mean(jax.lax.scan(layer, hidden, params["layers"])[0] ** 2)


PARAMS = {"up": jax.random.normal(KEY, (16, 1024)), "layers": jnp.ones((3, 1024, 1024))}


def train(params: Any, x: jax.Array) -> Any:
    return jax.grad(two_layers)(params, x)


report = srjit(train, recipe="nvfp4").explain(PARAMS, X)


def test_the_report_counts_loops_and_work():
    assert sorted((s.role, s.trips) for s in report.sites) == [
        ("dgrad", 3), ("fprop", 1), ("fprop", 3), ("wgrad", 1), ("wgrad", 3),
    ]  # fmt: skip
    first = report.sites[0]
    assert (first.lhs_shape, first.rhs_shape, first.out_shape) == ((4, 16), (16, 1024), (4, 1024))
    assert first.flops == 2 * 4 * 16 * 1024 and first.path == LONG and first.dtype == "float32"
    assert [s.number for s in report.sites] == [0, 1, 2, 3, 4]
    assert report.coverage() == 1.0


def test_coverage_is_the_fraction_of_the_work():
    recipe = Recipe(
        name="half", rules=(Rule(path="a_model*", keep="no"), *recipes.get("int8").rules)
    )
    half = srjit(train, recipe=recipe).explain(PARAMS, X)
    small, large = 2 * 4 * 16 * 1024, 2 * 4 * 1024 * 1024
    assert half.coverage() == pytest.approx(9 * large / (9 * large + 2 * small))
    assert srjit(lambda x: x, recipe="int8").explain(X).coverage() == 1.0


def test_a_function_differentiated_from_outside_shows_its_gradients_beside_it():
    forward = srjit(loss, recipe="int8").explain(W, X)
    (site,) = forward.sites
    assert [(s.number, s.role, s.phase) for s in site.with_gradients] == [
        (0, "fprop", "forward"), (0, "dgrad", "backward"), (0, "wgrad", "backward"),
    ]  # fmt: skip
    assert site.backward[1].rhs.rounding == "stochastic"
    assert forward.with_gradients == [site, *site.backward]
    (told,) = json.loads(forward.to_json())["sites"]
    assert [told["role"], *(b["role"] for b in told["backward"])] == ["fprop", "dgrad", "wgrad"]
    for shown in (str(forward), forward.to_html()):
        assert "dgrad" in shown and "wgrad" in shown


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
def test_the_table_fits_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = str(report).splitlines()
    width = max(columns, 79)  # what cannot be cut is not
    assert all(len(line) <= width for line in lines), max(lines, key=len)
    header = next(i for i, line in enumerate(lines) if line.startswith("#"))
    assert lines[header].split() == [c.name for c in report.document().tables[0].shown("terminal")]
    rows = lines[header + 2 : header + 2 + len(report.sites)]
    for row, site in zip(rows, report.sites, strict=True):
        assert row.split()[0] == str(site.number)
        assert site.role in row and row.endswith(site.status)
    assert LONG[-6:] in rows[0], "the end of a path tells most"
    if columns >= 160:
        assert LONG in rows[0] and "act 4x16 nvfp4" in rows[0]


def test_the_table_says_why_sites_are_kept_once_a_reason():
    text = str(srjit(step, recipe="bf16-sr").explain(W, X))
    reason = "the recipe bf16-sr leaves matrix multiplications alone"
    assert text.count(reason) == 1
    assert "kept: " + reason in text


def test_a_program_without_products_has_nothing_that_is_covered():
    nothing = srjit(lambda x: 2 * x, recipe="int8").explain(X)
    for text in (str(nothing), nothing.to_html()):
        assert "mode train: no matrix multiplication" in text and "quantized" not in text


def test_json_round_trips_with_its_documented_keys():
    data = json.loads(report.to_json())
    keys = ["coverage", "mode", "notes", "recipe", "residuals", "sites", "target", "write_backs"]
    assert sorted(data) == keys
    assert (data["recipe"], data["target"], data["mode"]) == ("nvfp4", "cpu", "train")
    assert data["coverage"] == report.coverage() and data["notes"] == list(report.notes)
    for made, plan in zip(data["sites"], report.sites, strict=True):
        for field in dataclasses.fields(plan.site):
            value = getattr(plan.site, field.name)
            assert made[field.name] == (list(value) if isinstance(value, tuple) else value)
        assert (made["status"], made["reason"], made["asked"]) == (
            plan.status, plan.reason, plan.asked,
        )  # fmt: skip
        for side in ("lhs", "rhs"):
            options = made[side]
            options |= {k: tuple(v) for k, v in options.items() if isinstance(v, list)}
            assert Quantization(**options) == getattr(plan, side)
    documented = Report.to_json.__doc__ or ""
    assert all(f"``{key}``" in documented for key in data)


class Page(html.parser.HTMLParser):
    """Checks that tags nest; collects the cells of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_html_is_well_formed_and_escapes_names():
    page = Page()
    page.feed(report.to_html())
    page.close()
    assert not page.open
    assert len(page.rows) == 1 + len(report.sites)
    assert {len(row) for row in page.rows} == {len(page.rows[0])}
    assert page.rows[2][1] == "<head> & tail"
    assert report._repr_html_() == report.to_html()


# ----------------------------------------------------------------------- what could not be had


def unknown_role(w: jax.Array, x: jax.Array) -> jax.Array:
    """A backward product of no forward product's operands, in no parameter's shape."""

    @jax.custom_vjp
    def layer(w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ w

    def backward(saved: Any, ct: jax.Array) -> Any:
        w, x = saved
        return (jnp.tile(jnp.sin(x), 2).T @ jnp.cos(ct))[: len(w)], ct @ w.T

    layer.defvjp(lambda w, x: (x @ w, (w, x)), backward)
    return jax.grad(lambda w: jnp.sum(layer(w, x) ** 2))(w)


def complaints(call: Any) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [w for w in caught if "stay in high precision" in str(w.message)]


def test_what_could_not_be_had_is_warned_of_once_where_the_user_called():
    decorated = srjit(unknown_role, recipe="int8")
    assert not complaints(lambda: decorated.explain(W, X)), "the report itself says it"
    (warning,) = complaints(lambda: decorated(W, X, sr_key=KEY))
    assert warning.filename == __file__
    text = str(warning.message)
    assert "1 of 2" in text and "'int8'" in text and "unknown role" in text
    assert not complaints(lambda: decorated(W, X[:2], sr_key=KEY)), "once a function"
    kept = [s for s in decorated.explain(W, X).sites if s.status == "kept"]
    assert [(s.role, s.asked) for s in kept] == [("unknown", True)]


def test_strict_makes_it_an_error_that_names_site_rule_and_reason():
    strict = srjit(unknown_role, recipe="int8", strict=True)
    for use in (strict, strict.lower, strict.rewritten):
        with pytest.raises(UnsupportedSiteError) as error:
            use(W, X, sr_key=KEY)
        text = str(error.value)
        site = next(s for s in strict.explain(W, X).sites if s.status == "kept")
        assert f"site {site.number}" in text and site.location in text and site.reason in text
        assert "rule 2 of recipe 'int8'" in text
    assert srjit(step, recipe="int8", strict=True)(W, X, sr_key=KEY).shape == W.shape


@pytest.mark.parametrize("recipe", ["bf16-sr", "int8-qat"])
def test_an_unknown_role_that_the_recipe_leaves_alone_anyway_is_no_complaint(recipe: str):
    decorated = srjit(unknown_role, recipe=recipe, strict=True)
    assert not complaints(lambda: decorated(W, X))


def test_what_a_recipe_keeps_on_purpose_is_neither_warned_of_nor_an_error():
    int8 = Quantization(format="int8")
    forward = Rule(fprop=Operands(activation=int8, weight=int8))
    recipe = Recipe(name="x", rules=(Rule(path="kept", keep="as I said"), forward))

    def fun(w: jax.Array, x: jax.Array) -> jax.Array:
        with jax.named_scope("kept"):
            x = x @ w
        return x @ w

    decorated = srjit(fun, recipe=recipe, strict=True)
    assert not complaints(lambda: decorated(W, X))
    assert [s.status for s in decorated.explain(W, X).sites if s.role == "fprop"] == [
        "kept", "emulated",
    ]  # fmt: skip
