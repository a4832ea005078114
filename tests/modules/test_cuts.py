"""``recipe="auto"`` weighs what one device does."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import srjit
from small_programs import normal
from srjit import targets
from srjit.modules.cuts import cuts_of
from srjit.passes.annotate_matmuls import provenance_of
from srjit.passes.driver import registry
from srjit.passes.emit import cuts as cuts_of_modules
from srjit.planning.planner import WHOLE, recipe_of
from srjit.planning.profit import Cut
from srjit.planning.provenance import Provenance
from srjit.planning.roles import classify

MESH = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
SIZE = 4096, 4096, 4096  # worth it as a whole, but not an eighth of it, of a whole operand


def product(w: Any, x: Any) -> Any:
    return x @ w


def looped(ws: Any, x: Any) -> Any:
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0]


def structs(specs: tuple[P, P], *shapes: tuple[int, ...], mesh: Any = MESH) -> Any:
    return tuple(
        jax.ShapeDtypeStruct(s, jnp.bfloat16, sharding=NamedSharding(mesh, p))
        for s, p in zip(shapes, specs, strict=True)
    )


# Parts of the rows, of the contraction and of the columns: labels 0, 1 and 3.
EXPECTED = {
    "data": (P(), P("data"), Cut({0: 4, 1: 1, 3: 1}, (4, 1, 4))),
    "fsdp": (P("data"), P("data"), Cut({0: 4, 1: 1, 3: 1}, (4, 4, 4))),
    "columns": (P(None, ("data", "model")), P(), Cut({0: 1, 1: 1, 3: 8}, (1, 8, 8))),
    "contraction": (P("model"), P("data", "model"), Cut({0: 4, 1: 2, 3: 1}, (8, 2, 4))),
    "whole": (P(), P(), Cut({0: 1, 1: 1, 3: 1}, (1, 1, 1))),
}


@pytest.mark.parametrize(("w", "x", "expected"), EXPECTED.values(), ids=EXPECTED)
@pytest.mark.parametrize("fun", [product, looped])
def test_both_doors_know_what_a_device_does(fun: Any, w: P, x: P, expected: Cut):
    stacked = fun is looped
    args = structs((P(None, *w) if stacked else w, x), (3,) * stacked + (16, 16), (32, 16))
    closed = jax.make_jaxpr(fun)(*args)
    classified = classify(Provenance(closed, ["parameter", "data"]))
    found = cuts_of(closed, [arg.sharding for arg in args], classified)
    module = jax.jit(jaxpr_as_fun(closed)).lower(*args).compiler_ir("stablehlo")
    with module.context:  # type: ignore[union-attr]
        occurrences = provenance_of(module.operation)[1].occurrences  # type: ignore[union-attr]
        assert cuts_of_modules.cuts_of(module.operation, occurrences) == found  # type: ignore[union-attr]
    if stacked and expected.arrays != (1, 1, 1):  # what a loop carries is sharded as it needs
        assert found[0] is not None
    else:
        assert found == [expected]


def test_on_one_device_nothing_is_cut():
    closed = jax.make_jaxpr(product)(normal(16, 16), normal(32, 16))
    classified = classify(Provenance(closed, ["parameter", "data"]))
    assert cuts_of(closed, [], classified) == cuts_of(closed, [None, None], classified) == [None]


def test_the_report_says_if_whole_products_are_weighed():
    """A CPU has no operation for a grouped product."""

    def grouped(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.ragged_dot(x, w, jnp.array([16, 16], jnp.int32))

    fun = srjit.srjit(grouped, recipe="auto", target="v5e")
    shapes = (2, 16, 16), (32, 16)
    known = fun.explain(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    assert WHOLE not in known.notes
    assert WHOLE in fun.explain(*structs((P(), P("data")), *shapes)).notes


@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
def test_the_choice_is_that_of_the_layout(layer: Any):
    fun = srjit.srjit(product, recipe="auto", target="v5e", layer=layer)
    width, hidden, tokens = SIZE
    shapes = (width, hidden), (tokens, width)
    whole = tuple(jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes)
    replicated = structs((P(None, ("data", "model")), P()), *shapes)
    cut = structs((P("data"), P("data")), *shapes)
    for args, status in ((whole, "native"), (replicated, "kept"), (cut, "native")):
        assert [s.status for s in fun.explain(*args).sites] == [status]
        said = fun.lower(*args).as_text()
        assert ("xi8>" in said) == (status == "native")
    shardings = tuple(struct.sharding for struct in replicated)
    given = srjit.srjit(product, recipe="auto", target="v5e", in_shardings=shardings)
    assert [s.status for s in given.explain(*whole).sites] == ["kept"]


def test_a_module_is_weighed_as_its_arguments_are_sharded():
    recipe = recipe_of("auto", targets.get("v5e"))
    width, hidden, tokens = SIZE
    shapes = (width, hidden), (tokens, width)
    for spec, quantized in ((P(None, ("data", "model")), 0), (P(), 1)):
        lowered = jax.jit(product).lower(*structs((spec, P()), *shapes))
        annotate = registry.find("srjit-annotate-matmuls")()
        insert = registry.find("srjit-insert-quantize")(recipe=recipe)
        module = srjit.passes.Pipeline(annotate, insert).run(lowered.as_text())
        assert str(module).count('composite "srjit.scaled_dot"') == quantized


@pytest.mark.bits
def test_one_function_is_called_with_several_layouts():
    """Each has its own program; calls of one layout share it."""
    easy = dataclasses.replace(recipe_of("auto", targets.get("v5e")), name="easy")
    traces: list[int] = []

    def counted(w: Any, x: Any) -> Any:
        traces.append(1)
        return x @ w

    fun = srjit.srjit(counted, recipe=easy, mode="inference")
    w, x = normal(16, 16), normal(32, 16)
    placed = jax.device_put(x, NamedSharding(MESH, P("data")))
    alone = [fun(w, x), fun(w, x)]
    before = len(traces)
    sharded = [fun(w, placed), fun(w, placed)]
    assert len(traces) - before == before
    np.testing.assert_array_equal(sharded[1], alone[0])
