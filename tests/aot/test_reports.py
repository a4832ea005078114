"""``.aot``: what a compiler made of each site, for hardware that is not there."""

from __future__ import annotations

import dataclasses
import functools
import html.parser
import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from srjit import recipes, srjit, targets
from srjit.aot import CompiledSite, MissingCompilerError, hlo
from srjit.aot.compiled_program import Multiplication, SiteCost
from srjit.aot.rates import rate
from srjit.numerics.quantization import Quantization

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason="libtpu, TPUs' compiler, is not installed")
HAS_CUDA = importlib.util.find_spec("jax_cuda13_plugin") is not None
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="JAX's plugin for CUDA is not installed")
CHIPS = ("v5e", "v5p", "v6e", "tpu7x")
GPUS = ("h100", "b300", "rtxpro6000")
# test_gpu_kernels.py has the same products of h200 and b200, whose instructions are gb200's.
GPUS += tuple(pytest.param(gpu, marks=pytest.mark.nightly) for gpu in ("h200", "b200", "gb200"))
COMPILED = [pytest.param(chip, marks=needs_libtpu) for chip in CHIPS]
COMPILED += [pytest.param(gpu, marks=needs_cuda) for gpu in ("h200", "b200")]
Shape = jax.ShapeDtypeStruct
W, X = Shape((256, 256), jnp.bfloat16), Shape((512, 256), jnp.bfloat16)


def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.tanh(x @ w) ** 2)


def step(w: jax.Array, x: jax.Array, rate: float = 0.1, *, n: int = 1) -> jax.Array:
    return w - n * rate * jax.grad(loss)(w, x)


def deep(ws: Any, x: jax.Array) -> jax.Array:
    """Two sites of the same shapes, and four in a loop, forward and backward."""

    def run(ws: Any) -> jax.Array:
        hidden = jax.nn.relu(jax.nn.relu(x @ ws["first"]) @ ws["second"])
        hidden, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), hidden, ws["loop"])
        return jnp.sum(hidden.astype(jnp.float32))

    return jax.grad(run)(ws)


def shallow(ws: Any, x: jax.Array) -> jax.Array:
    """A site in a loop, forward and backward."""

    def run(ws: Any) -> jax.Array:
        hidden, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)
        return jnp.sum(hidden.astype(jnp.float32) ** 2)

    return jax.grad(run)(ws)


WS = {"first": W, "second": W, "loop": Shape((4, 256, 256), jnp.bfloat16)}


KEPT = srjit(loss, recipe="bf16-sr").explain(W, X).sites[0]


def verdicts(report: Any) -> list[str]:
    return [s.verdict for s in report.sites]


# ------------------------------------------------------------------------------------- one chip


@pytest.mark.crossed(1, most=2)
@needs_libtpu
@pytest.mark.parametrize(
    ("chip", "recipe", "possible"),
    [
        ("v5e", "fp8", {"narrow", "emulated"}),  # it multiplies E4M3 as bfloat16
        ("tpu7x", "int8", {"narrow", "emulated"}),
        ("v5e", "mxfp8", {"emulated"}),  # blocks' scales are multiplied in
        ("v5e", "bf16-sr", {"kept"}),
    ],
)
def test_what_is_not_native_is_not_called_so(chip: str, recipe: str, possible: set[str]):
    (site,) = srjit(loss, recipe=recipe).aot(W, X, target=chip).sites
    assert site.verdict in possible


@pytest.mark.crossed(1, most=2)
@needs_cuda
@pytest.mark.parametrize("gpu", GPUS)
def test_fp8_products_are_the_librarys_in_all_roles(gpu: str):
    w, x = Shape((96, 80), jnp.bfloat16), Shape((100, 96), jnp.bfloat16)  # also of odd sizes
    report = srjit(jax.grad(loss, (0, 1)), recipe="fp8").aot(w, x, target=gpu)
    assert [s.plan.site.role for s in report.sites] == ["fprop", "wgrad", "dgrad"]
    for site in report.sites:
        (product,) = site.cost.products
        assert (site.plan.status, site.verdict) == ("native", "native")
        assert product.library == "__cublas$lt$matmul$f8"
        assert "f8e5m2" in product.kind or site.plan.site.role == "fprop"
    assert report.speedup() is None and "rates are of the vendor's" in str(report)
    assert report.after.moved > report.before.moved > 0  # so small a layer does not gain


def attention(ws: Any, x: jax.Array) -> jax.Array:
    """Heads, and products of a batch."""
    q, k = (jnp.einsum("bsd,dhk->bhsk", x, ws[name]) for name in ("q", "k"))
    return jnp.sum(jnp.einsum("bhsk,bhtk->bhst", q, k) ** 2)


@pytest.mark.crossed(1, most=1)
@needs_cuda
@pytest.mark.parametrize(
    ("gpu", "recipe", "which"),
    # Layers of b200 and b300 are in test_gpu_kernels.py; rtx5090 has no kernels.
    [("b200", "nvfp4", "attention"), ("rtx5090", "nvfp4-eden", "layer")],
)
def test_products_with_scales_of_blocks_are_cudnns_in_all_roles(gpu: str, recipe: str, which: str):
    fun: Any = loss
    args: Any = W, X
    chosen = recipes.get(recipe)
    if which == "attention":
        fun, weight = attention, Shape((48, 2, 24), "bfloat16")
        args = {"q": weight, "k": weight}, Shape((2, 40, 48), "bfloat16")
        rules = [rule for rule in chosen.rules if rule.operands != "activations"]
        chosen = dataclasses.replace(chosen, rules=tuple(rules))
    report = srjit(jax.grad(fun, (0, 1)), recipe=chosen).aot(*args, target=gpu)
    assert len(report.sites) == (9 if which == "attention" else 3)
    for site in report.sites:
        libraries = {product.library for product in site.cost.products}
        assert (site.plan.status, site.verdict) == ("native", "native")
        assert libraries == {"__cudnn$blockScaledDot"}


@needs_cuda
@pytest.mark.parametrize(("gpu", "native"), [("h200", True), ("b200", True), ("b300", False)])
def test_int8_is_native_where_the_gpu_still_has_the_units(gpu: str, native: bool):
    (site,) = srjit(loss, recipe="int8").aot(W, X, target=gpu).sites
    assert (site.plan.status == "native") is (site.verdict == "native") is native


@needs_cuda
def test_there_is_no_product_of_two_gradients_formats():
    e5m2 = Quantization(format="fp8_e5m2")
    recipe = recipes.get("fp8").map_quantizations(lambda role, kind, q: e5m2)
    (site,) = srjit(loss, recipe=recipe).aot(W, X, target="h200").sites
    assert (site.plan.status, site.verdict) == ("emulated", "emulated")


@needs_libtpu
def test_an_operand_order_that_loses_the_rate_is_told():
    v5e = targets.get("v5e")
    rates = {order: rate(v5e, "s8", "s8", order) for order in ("NN", "TN")}
    assert rates == {"NN": pytest.approx(2, abs=0.1), "TN": pytest.approx(1, abs=0.1)}
    shape = hlo.Shape("s8", (8, 8))
    for order, verdict in (("NN", "native"), ("TN", "narrow")):
        product = Multiplication(shape, shape, order)
        site = CompiledSite(
            plan=dataclasses.replace(KEPT, status="emulated"),
            cost=SiteCost(products=(product,), cycles=1),
            rates={product.kind: rates[order]},
        )
        assert site.verdict == verdict


@functools.cache
def report_of_deep(layer: Any) -> Any:
    return srjit(deep, recipe="int8", layer=layer).aot(WS, X, target="v5e")


@needs_libtpu
def test_every_site_is_found_and_loops_count():
    report = report_of_deep("jaxpr")
    assert [s.plan.number for s in report.sites] == list(range(len(report.sites)))
    assert "unseen" not in verdicts(report) and report.after.unknown_loops == 0
    first, second, looped = (s.cost for s in report.sites[:3])
    assert [len(c.products) for c in (first, second, looped)] == [1, 1, 1]
    assert 0.5 < second.cycles / first.cycles < 2
    assert report.sites[2].plan.trips == 4 and looped.cycles % 4 == 0
    assert looped.cycles > 2 * first.cycles
    parts = sum(s.cost.cycles + s.cost.around for s in report.sites)
    assert report.after.cycles is not None and 0 < parts < report.after.cycles
    assert report.before.cycles is not None and report.before.cycles > 0


@needs_libtpu
def test_memory_is_the_compilers():
    report = srjit(step, recipe="int8", donate_argnums=0).aot(W, X, target="v5e")
    for program in (report.before, report.after):
        assert program.memory.outputs == program.memory.aliased == 2 * 256 * 256
        assert program.memory.peak > 0
    extra = report.after.memory.arguments - report.before.memory.arguments
    assert 0 < extra < 2048  # the key


class Balanced(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@needs_libtpu
def test_a_report_is_a_table_json_and_html(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "120")
    report = srjit(step, recipe="int8").aot(W, X, target="v5e")
    text = str(report)
    assert "compiled for v5e, mode train: 2 sites: " in text
    assert "estimated cycles" in text and "memory: peak" in text
    assert max(map(len, text.splitlines())) <= 120
    told = json.loads(report.to_json())
    assert [s["verdict"] for s in told["sites"]] == verdicts(report)
    assert told["sites"][0]["products"][0]["lhs"]["dtype"] == "s8"
    # Kernels of srjit have no estimate: no ratio is made of what is left.
    assert told["after"]["kernels"] and told["speedup"] is None
    (cycles,) = (line for line in text.splitlines() if line.startswith("estimated cycles"))
    assert "kernels excluded" in cycles and not cycles.endswith("x")
    page = Balanced()
    page.feed(report.to_html())
    assert not page.open


@pytest.mark.crossed(1, most=3)
@needs_libtpu
@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {"rate": 0.3, "n": 2}),
        ({"static_argnames": "n", "donate_argnums": 0}, {"n": 2}),
        ({}, {"sr_key": 7}),
        ({}, {"sr_key": jax.device_put(jax.random.key(1), jax.devices()[1])}),
        ({"key": jax.random.key(1)}, {}),
        ({"mode": "inference"}, {}),
        ({"recipe": "fp8-delayed"}, {}),
    ],
)
def test_a_function_is_called_as_ever(options: dict[str, Any], call: dict[str, Any]):
    fun = srjit(step, **{"recipe": "int8", **options})
    w, x = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (W, X))
    found = verdicts(fun.aot(w, x, target="v5e", **call))
    assert found and set(found) <= {"native", "narrow", "emulated"}
    assert fun.calls == 0


@needs_libtpu
def test_names_of_sites_are_only_there_while_aot_compiles():
    for layer in ("jaxpr", "stablehlo"):
        fun = srjit(step, recipe="int8", layer=layer)
        fun.aot(W, X, target="v5e")
        assert "srjit.site=" not in fun.lower(W, X).as_text(debug_info=True)


@needs_libtpu
def test_the_environment_stays_as_it_was():
    before = dict(os.environ)
    srjit(loss, recipe="int8").aot(W, X, target="v5e")
    assert dict(os.environ) == before


@needs_libtpu
def test_a_site_that_cannot_be_found_is_not_guessed():
    """The compiler multiplies and adds up here, without the unit for products."""
    report = srjit(loss, recipe="int8").aot(Shape((256, 1), jnp.bfloat16), X, target="v5e")
    assert verdicts(report) == ["unseen"]
    assert "the optimized program has no product that is known to be of site 0" in str(report)


@needs_libtpu
def test_both_doors_name_their_sites():
    reports = [report_of_deep(layer) for layer in ("jaxpr", "stablehlo")]
    one, other = ([(s.plan.role, s.verdict, s.became()) for s in r.sites] for r in reports)
    assert one == other and "unseen" not in verdicts(reports[1])


def test_the_cpu_compiles_for_itself():
    report = srjit(step, recipe="int8").aot(W, X, target="cpu")
    assert verdicts(report) == ["emulated"] * 2
    assert report.speedup() is None and "estimates no cycles" in str(report)


def _every_recipe() -> list[Any]:
    """Every recipe for every chip; nightly what no other test nor chip makes likelier to fail."""
    own = {
        "v5e": ("int8", "int8-delayed", "nvfp4", "bf16-sr"),
        "tpu7x": ("fp8", "fp8-delayed"),
        "b200": ("mxfp8",),
    }
    return [
        pytest.param(recipe, chip, marks=(*param.marks, *_unless(recipe in own.get(chip, ()))))
        for recipe in recipes.names()
        for param in COMPILED
        for chip in param.values
    ]


def _unless(common: bool) -> list[Any]:
    return [] if common else [pytest.mark.nightly]


@pytest.mark.crossed(1, most=2)
@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "chip"), _every_recipe())
def test_every_recipe_compiles_and_what_is_planned_as_native_is(recipe: str, chip: str):
    report = srjit(shallow, recipe=recipe).aot(WS["loop"], X, target=chip)
    assert report.sites and "unseen" not in verdicts(report)
    for site in report.sites:
        if site.plan.status == "native":
            assert site.verdict == "native", (site.plan.described(), site.became())
    if recipe == targets.get(chip).recipe:
        assert "native" in {site.plan.status for site in report.sites}
    if chip in CHIPS and recipe == targets.get(chip).recipe:
        cost = report.sites[0].cost
        assert report.sites[0].verdict == "native" and cost.cycles > 1000
        assert {p.lhs.dtype for p in cost.products} == {"f8e4m3fn" if chip == "tpu7x" else "s8"}


# -------------------------------------------------------------------------------------- meshes


@pytest.mark.parametrize("chip", ["v5e", "h200"])
def test_a_missing_compiler_says_how_to_get_it(chip: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingCompilerError, match=r"pip install 'srjit\[aot\]'"):
        srjit(loss, recipe="int8").aot(W, X, target=chip)


@needs_cuda
def test_a_plugin_that_was_not_loaded_is_explained():
    code = "import jax; from srjit import srjit; jax.devices(); "
    code += "srjit(lambda x: x, recipe='fp8').aot(jax.numpy.ones(4), target='h200')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "JAX_PLATFORMS": ""},
        capture_output=True,
        text=True,
    )
    if not done.returncode:
        pytest.skip("all of CUDA is here: the plugin loads")
    assert "set JAX_PLATFORMS=cpu, or" in done.stderr


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "v6"}, ValueError, "did you mean 'v6e'"),
        ({"target": "portable"}, ValueError, "cannot compile for portable .* yet: it can for v5e"),
        ({"target": "cpu", "mesh": 4}, TypeError, "mesh is sizes by name"),
        ({"target": "cpu", "mesh": {"data": 16}}, ValueError, "xla_force_host_platform"),
    ],
)
def test_what_cannot_be_compiled_is_an_error(options: Any, error: Any, message: str):
    with pytest.raises(error, match=message):
        srjit(loss, recipe="int8").aot(W, X, **options)


@needs_libtpu
def test_a_mesh_of_a_size_that_is_not_known_is_an_error():
    with pytest.raises(
        ValueError, match=r"compiles for 1, 4, 8, 16, .*, 256 devices of v5e, not for 3"
    ):
        srjit(loss, recipe="int8").aot(W, X, target="v5e", mesh={"data": 3})


def test_axes_that_the_mesh_lacks_are_an_error():
    fun = srjit(loss, recipe="int8", in_shardings=(P(), P("rows")))
    with pytest.raises(ValueError, match="there is no mesh"):
        fun.aot(W, X, target="cpu")
    with pytest.raises(ValueError, match=r"lacks: rows; it has \{'data': 4\}"):
        fun.aot(W, X, target="cpu", mesh={"data": 4})
