"""Recipes are data: they print, compare, round-trip through TOML, and say what is wrong."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from srjit import Operands, Quantization, Recipe, RecipeError, Rule, recipes, srjit
from srjit.numerics.formats import FORMATS
from steps import KEY, W, X, loss, same, step

BUILTIN = [recipes.get(name) for name in recipes.names()]


def quantizations(hadamard: bool) -> st.SearchStrategy[Quantization]:
    """Every quantization that its own constructor accepts."""

    @st.composite
    def draw(draw: Any) -> Quantization:
        scaling = draw(st.sampled_from(["dynamic", "delayed", "static"]))
        amax = draw(st.floats(2.0**-100, 2.0**100)) if scaling == "static" else None
        options: dict[str, Any] = {
            "format": draw(st.sampled_from(sorted(FORMATS))),
            "rounding": draw(st.sampled_from(["nearest", "stochastic"])),
            "granularity": draw(st.sampled_from([None, "tensor", "channel", "block", "square"])),
            "block": draw(st.sampled_from([None, 8, 16, 32])),
            "scaling": scaling,
            "amax": amax,
            "scale_rounding": draw(st.sampled_from(["standard", "up"])),
            "hadamard": hadamard,
        }
        while True:
            try:
                return Quantization(**options)
            except ValueError:  # drop what does not fit the format, one option at a time
                changes = {"granularity": None, "block": None, "scaling": "dynamic", "amax": None}
                name = next(n for n in changes if options[n] != changes[n])
                options[name] = changes[name]
                if name == "scaling":
                    options["amax"] = None

    return draw()


KINDS = {
    "fprop": ("activation", "weight"),
    "dgrad": ("gradient", "weight", "activation"),
    "wgrad": ("activation", "gradient"),
}


@st.composite
def operands(draw: Any, role: str) -> Operands | None:
    names = draw(st.lists(st.sampled_from(KINDS[role]), unique=True))
    hadamard = len(names) > 1 and draw(st.booleans())
    made = {name: draw(quantizations(hadamard)) for name in names}
    return Operands(**made) if made else draw(st.sampled_from([None, Operands()]))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def rules(draw: Any) -> Rule:
    role = draw(st.sampled_from(["*", *KINDS]))
    base: dict[str, Any] = {
        "path": draw(texts),
        "op": draw(texts),
        "role": role,
        "operands": draw(st.sampled_from(["any", "weight", "activations"])),
        "min_size": draw(st.integers(0, 2**40)),
    }
    if draw(st.booleans()):
        return Rule(**base, keep=draw(texts))
    return Rule(**base, **{r: draw(operands(r)) for r in KINDS})


written = st.sampled_from([(None, None), ("stochastic", None), ("stochastic", "stochastic")])
made_recipes = st.builds(
    lambda written, **given: Recipe(weights=written[0], moments=written[1], **given),
    written=written,
    name=texts,
    rules=st.lists(rules(), max_size=4).map(tuple),
    keep_first=st.integers(0, 9),
    keep_last=st.integers(0, 9),
    pays_on=texts,
    source=texts,
)


@pytest.mark.parametrize("recipe", BUILTIN, ids=lambda r: r.name)
def test_a_builtin_recipe_survives_toml_files_and_pickle(recipe: Recipe, tmp_path: Path):
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    path = tmp_path / "mine.toml"
    recipe.save(path)
    text = recipe.to_toml()
    for found in (Recipe.load(path), *map(recipes.get, (str(path), path, text))):
        assert found == recipe and hash(found) == hash(recipe)
    assert pickle.loads(pickle.dumps(recipe)) == copy.deepcopy(recipe) == recipe


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(made_recipes)
def test_every_recipe_survives_toml_and_its_own_repr(recipe: Recipe):
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert eval(repr(recipe)) == recipe


def test_recipes_that_differ_are_not_equal():
    assert len(set(BUILTIN)) == len({repr(r) for r in BUILTIN}) == len(BUILTIN)
    int8 = recipes.get("int8")
    assert int8 != dataclasses.replace(int8, keep_first=1)


# ------------------------------------------------------------------------------------ bad recipes

HEADER = 'name = "mine"\n\n[[rule]]\n'
BAD_TOML = {
    "not TOML": ('name = "x"\n[[rule]\n', 2, "not TOML"),
    "no name": ("[[rule]]\n", 1, "name"),
    "name is a number": ("\nname = 3\n", 2, "name"),
    "unknown key": ('name = "x"\nrules = 3\n', 2, "did you mean 'rule'"),
    "rule is a table": ('name = "x"\n[rule]\npath = "*"\n', 2, "[[rule]]"),
    "negative count": ('name = "x"\nkeep_last = -1\n', 2, "keep_last"),
    "count is a flag": ('name = "x"\nkeep_first = true\n', 2, "keep_first"),
    "unknown field": (HEADER + 'pth = "*"\n', 4, "did you mean 'path'"),
    "unknown role": (HEADER + 'path = "*"\nrole = "fwd"\n', 5, "role"),
    "unknown operands": (HEADER + 'operands = "weights"\n', 4, "did you mean 'weight'"),
    "path is a number": (HEADER + "path = 3\n", 4, "path"),
    "size is a string": (HEADER + 'min_size = "3"\n', 4, "min_size"),
    "role is no table": (HEADER + "fprop = 3\n", 4, "fprop"),
    "unknown operand": (HEADER + 'fprop.wieght = { format = "int8" }\n', 4, "'weight'"),
    "operand is no table": (HEADER + 'fprop.weight = "int8"\n', 4, "fprop.weight"),
    "unknown format": (HEADER + 'fprop.weight = { format = "int9" }\n', 4, "int8"),
    "no format": (HEADER + 'fprop.weight = { rounding = "nearest" }\n', 4, "needs a format"),
    "unknown option": (HEADER + 'fprop.weight = { format = "int8", rond = 1 }\n', 4, "rounding"),
    "axis is a site's": (HEADER + 'fprop.weight = { format = "int8", axis = 1 }\n', 4, "axis"),
    "unknown rounding": (
        HEADER + 'fprop.weight = { format = "int8", rounding = "up" }\n', 4, "stochastic",
    ),
    "block of an unblocked format": (
        HEADER + 'fprop.weight = { format = "int8", block = 16 }\n', 4, "block",
    ),
    "granularity of another format": (
        HEADER + 'fprop.weight = { format = "nvfp4", granularity = "tensor" }\n', 4, "granularity",
    ),
    "static without amax": (
        HEADER + 'fprop.weight = { format = "int8", scaling = "static" }\n', 4, "amax",
    ),
    "gradient in a forward product": (
        HEADER + 'path = "*"\nfprop.gradient = { format = "int8" }\n', 5, "gradient",
    ),
    "one Hadamard transform": (
        HEADER + 'op = "*"\nwgrad.gradient = { format = "int8", hadamard = true }\n', 5, "Hadamard",
    ),
    "kept and quantized": (
        HEADER + 'fprop.weight = { format = "int8" }\nkeep = "no"\n', 5, "keep",
    ),
    "second rule": (
        HEADER + 'path = "a"\n[[rule]]\npath = "b"\nrole = "x"\n', 7, "role",
    ),
    "in a sub-table": (
        HEADER + '[rule.fprop.weight]\nformat = "int8"\nrounding = "up"\n', 6, "stochastic",
    ),
    "after a comment that looks like it": (
        'name = "x" # role = 1\n[[rule]]\n# role = "x"\nrole = "x"\n', 4, "role",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TOML)
def test_an_error_names_the_line(name: str, tmp_path: Path):
    text, line, part = BAD_TOML[name]
    with pytest.raises(RecipeError) as error:
        Recipe.from_toml(text)
    assert f"line {line}" in str(error.value), str(error.value)
    assert part in str(error.value)
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"bad\.toml"):
        srjit(loss, recipe=path)


def test_a_file_that_is_not_there_is_an_error_that_names_it():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        srjit(loss, recipe="nowhere.toml")


def test_an_unknown_operand_of_with_rounding_lists_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'gradients'"):
        recipes.get("int8").with_rounding(gradient="nearest")


# ------------------------------------------------------------------------------------ what they do

INT8 = Quantization(format="int8")
FORWARD = {"fprop": Operands(activation=INT8, weight=INT8)}


def network(p: Any, x: jax.Array) -> jax.Array:
    """Four weight products, attention between them, and one of a small contraction."""
    with jax.named_scope("embed"):
        x = x @ p["w"]
    with jax.named_scope("block"):
        with jax.named_scope("attn"):
            x = jax.nn.softmax(x @ x.T) @ x
        with jax.named_scope("mlp"):
            x = jax.nn.relu(x @ p["w"])
        with jax.named_scope("small"):
            x = x[:, :2] @ p["w"][:2]
    with jax.named_scope("head"):
        return x @ p["w"]


PARAMS = {"w": W}


def kept(recipe: Recipe, fun: Any = network) -> dict[str, list[str]]:
    """Whether the forward sites of each scope are kept."""
    found: dict[str, list[str]] = {}
    for site in srjit(fun, recipe=recipe).explain(PARAMS, X).sites:
        if site.role == "fprop":
            found.setdefault(site.path.split("/")[-1], []).append(site.status)
    return found


def chosen(**match: Any) -> set[str]:
    """Scopes of the sites that one rule with these conditions quantizes."""
    statuses = kept(Recipe(name="one", rules=(Rule(**match, **FORWARD),)))
    return {scope for scope, found in statuses.items() if "emulated" in found}


def test_rules_pick_sites_by_path_operation_operands_role_and_size():
    everything = {"embed", "attn", "mlp", "small", "head"}
    assert chosen() == everything
    assert chosen(path="block/*") == {"attn", "mlp", "small"}
    assert chosen(path="*/mlp") == {"mlp"}
    assert chosen(op="dot_*") == everything
    assert chosen(op="conv*") == set()
    assert chosen(operands="weight") == everything - {"attn"}
    assert chosen(operands="activations") == {"attn"}
    assert chosen(role="fprop") == everything
    assert chosen(role="wgrad") == set()
    assert chosen(min_size=3, path="block/*") == {"attn", "mlp"}
    assert chosen(min_size=5) == set()


def test_the_first_rule_that_matches_decides():
    keep = Rule(path="*mlp*", keep="as I said")
    both = kept(Recipe(name="x", rules=(keep, Rule(**FORWARD))))
    assert both["mlp"] == ["kept"] and both["head"] == ["emulated"]
    assert kept(Recipe(name="x", rules=(Rule(**FORWARD), keep)))["mlp"] == ["emulated"]


def test_a_rule_that_matches_nothing_is_in_the_notes():
    rules = (Rule(path="*/router", **FORWARD), Rule(op="conv*", **FORWARD), Rule(**FORWARD))
    report = srjit(network, recipe=Recipe(name="mine", rules=rules)).explain(PARAMS, X)
    assert [note for note in report.notes if "matched no site" in note] == [
        "rule 1 (path '*/router') of recipe 'mine' matched no site",
        "rule 2 (op 'conv*') of recipe 'mine' matched no site",
    ]


@pytest.mark.parametrize(
    ("counts", "high"),
    [
        ({"keep_first": 1}, {"embed"}),
        ({"keep_last": 1}, {"head"}),
        ({"keep_first": 2, "keep_last": 1}, {"embed", "mlp", "head"}),
        ({"keep_first": 9}, {"embed", "mlp", "small", "head"}),
    ],
)
def test_the_first_and_last_weight_products_can_be_kept_with_their_gradients(
    counts: Any, high: set[str]
):
    recipe = dataclasses.replace(Recipe(name="ends", rules=(Rule(**FORWARD),)), **counts)
    found = kept(recipe)
    assert {scope for scope, status in found.items() if "kept" in status} == high
    training = dataclasses.replace(recipes.get("int8"), **counts)
    grads = lambda p, x: jax.grad(lambda p: jnp.sum(network(p, x) ** 2))(p)  # noqa: E731
    for site in srjit(grads, recipe=training).explain(PARAMS, X).sites:
        scope = site.path.split("/")[-1]
        expected = "kept" if scope in high | {"attn"} else "emulated"
        assert site.status == expected, (site.number, site.path, site.role)


def test_gradients_to_nearest_draw_no_noise_and_keep_the_formats():
    nearest = recipes.get("int8").with_rounding(gradients="nearest")
    assert "gradients=nearest" in nearest.name
    decorated = srjit(step, recipe=nearest)
    assert same(decorated(W, X), decorated(W, X, sr_key=KEY))
    for site, original in zip(
        decorated.explain(W, X).sites, srjit(step, recipe="int8").explain(W, X).sites, strict=True
    ):
        for ours, theirs in ((site.lhs, original.lhs), (site.rhs, original.rhs)):
            assert ours == dataclasses.replace(theirs, rounding="nearest")


@pytest.mark.parametrize("recipe", ["fp8-static", "int8-static"])
def test_scales_that_are_given_are_near_the_truth_in_their_range(recipe: str):
    x, w = X / jnp.max(jnp.abs(X)), W / jnp.max(jnp.abs(W)) / 2
    fun = lambda w, x: jax.grad(lambda w: jnp.mean(jnp.tanh(x @ w) ** 2))(w)  # noqa: E731
    got, expected = srjit(fun, recipe=recipe)(w, x, sr_key=KEY), fun(w, x)
    assert float(jnp.linalg.norm(got - expected) / jnp.linalg.norm(expected)) < 0.15


RUNNING = [r for r in BUILTIN if r.name not in ("fp8-delayed", "fp8-static", "int8-static")]


@pytest.mark.crossed(1, most=7)
@pytest.mark.parametrize("recipe", RUNNING, ids=lambda r: r.name)
def test_every_builtin_recipe_runs_and_stays_near_the_truth(recipe: Recipe):
    result = srjit(step, recipe=recipe)(W, X, sr_key=KEY)
    expected = step(W, X)
    error = jnp.linalg.norm(result - expected) / jnp.linalg.norm(expected - W)
    assert float(error) < (0.5 if "4" in recipe.name else 0.1)
    assert math.isclose(float(error), 0.0, abs_tol=1e-5) == (recipe.name == "bf16-sr")


@pytest.mark.parametrize("recipe", [r for r in BUILTIN if r.source], ids=lambda r: r.name)
def test_recipes_say_where_they_are_published_and_their_page_does(recipe: Recipe):
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{recipe.name}` | "))
    papers = re.findall(r"arXiv (\d{4}\.\d{5})", recipe.source)
    assert papers
    assert all(f"[arXiv {paper}](https://arxiv.org/abs/{paper})" in row for paper in papers)


def test_the_recipes_after_papers_have_a_source():
    assert {r.name for r in BUILTIN if r.source} == {
        *("mxfp4", "nvfp4", "nvfp4-unbiased", "nvfp4-4over6", "nvfp4-eden")
    }


def test_hadamard_transforms_of_different_sizes_do_not_cancel():
    plain = Quantization(format="nvfp4", hadamard=True)
    eden = dataclasses.replace(plain, rounding="stochastic", scale_rounding="eden")
    Rule(wgrad=Operands(activation=eden, gradient=dataclasses.replace(eden, rounding="none")))
    with pytest.raises(RecipeError, match="of scale_rounding='eden' is another"):
        Rule(wgrad=Operands(activation=plain, gradient=eden))


def test_a_recipe_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"a name, a .toml file or a Recipe, got \['int8'\]"):
        srjit(step, recipe=["int8"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{ format = ["int8"] }', "format is a string"),
        ('{ format = "int8", scaling = "static", amax = "big" }', "amax is a number"),
        ('{ format = "mxfp8", block = true }', "block is a whole number"),
        ('{ format = "int8", hadamard = 1 }', "hadamard is true or false"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_line(value: str, message: str):
    with pytest.raises(RecipeError, match=f"line 3: fprop.weight: {message}, got"):
        Recipe.from_toml(f'name = "mine"\n[[rule]]\nfprop.weight = {value}\n')


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[[rule]]\nkeep = """\npath = 1\n"""\n[[rule]]\npath = 2\n', 7),
        ("[[rule]]\nkeep = '''\n[[rule]]\n'''\npath = 2 # [[rule]]\n", 6),
        ('rule = [\n  { path = "a", keep = "x" },\n  { path = 2 },\n]\n', 4),
        ('rule = [{ path = "a" }, { path = 2 }]\n', 2),
        ("[[rule]]\n[rule.fprop]\nweight = { format = 'int8', rounding = 'up' }\n", 4),
    ],
)
def test_the_line_named_is_the_one_that_is_wrong(text: str, line: int):
    with pytest.raises(RecipeError, match=f"^line {line}: "):
        Recipe.from_toml(f'name = "mine"\n{text}')
