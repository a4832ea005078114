"""What the backward pass keeps of the forward pass: no more than the program itself would keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from small_programs import normal
from srjit import passes, recipes, srjit, transform
from srjit.planning.residuals import Residuals
from srjit.program.stablehlo import operations
from steps import same

saving = jax.checkpoint_policies
LAYERS, TOKENS, WIDTH, HIDDEN = 3, 4, 8, 16
STACK = normal(LAYERS, WIDTH, HIDDEN) / 3, normal(LAYERS, HIDDEN, WIDTH, seed=1) / 4
INPUT = normal(TOKENS, WIDTH, seed=2)
BITS = {"i1": 8}
POLICIES: dict[str, Any] = {
    "none": None,
    "nothing": saving.nothing_saveable,
    "everything": saving.everything_saveable,
    "dots": saving.dots_saveable,
    "a name": saving.save_only_these_names("activation"),
    "offloading a name": saving.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["before"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def block(x: jax.Array, w: tuple[jax.Array, jax.Array]) -> jax.Array:
    before = checkpoint_name(x @ w[0], "before")
    return checkpoint_name(before * jax.nn.sigmoid(before), "activation") @ w[1]


def scanned(policy: str) -> Callable[..., jax.Array]:
    """The loss of scanned layers."""
    layer = block
    if policy != "none":
        layer = jax.checkpoint(block, policy=POLICIES[policy], prevent_cse=False)

    def loss(stack: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(lax.scan(lambda x, w: (layer(x, w), None), x, stack)[0] ** 2)

    return loss


def checkpointed(policy: str) -> Callable[..., Any]:
    """One step of SGD on scanned layers."""
    loss = scanned(policy)

    def step(stack: Any, x: jax.Array) -> Any:
        return jax.tree.map(lambda p, g: p - 0.1 * g, stack, jax.grad(loss)(stack, x))

    return step


def carried(lowered: Any) -> list[tuple[int, str]]:
    """Bytes and dtype of the stacks that loops read and write, without dead ones."""
    live = passes.parse("srjit-eliminate-dead-code").run(str(lowered.compiler_ir()))
    found: list[tuple[int, str]] = []
    for op in operations.inside(live.operation):
        if op.name == "stablehlo.while":
            for value in op.operands:
                shape, dtype = value.type.shape, str(value.type.element_type)
                if len(shape) == 3 and shape[0] == LAYERS:
                    size = BITS.get(dtype) or int("".join(filter(str.isdigit, dtype)))
                    found.append((math.prod(shape) * size // 8, dtype))
    return found


@pytest.mark.crossed(1, most=4)
@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
@pytest.mark.parametrize(
    ("policy", "recipe"), [*((policy, "int8") for policy in POLICIES), ("none", "nvfp4")]
)
def test_loops_carry_no_more_than_the_policy_keeps(policy: str, recipe: str, layer: Any):
    step = checkpointed(policy)
    plain = carried(jax.jit(step).lower(STACK, INPUT))
    ours = carried(srjit(step, recipe=recipe, layer=layer).lower(STACK, INPUT, sr_key=0))
    assert sum(n for n, _ in ours) <= sum(n for n, _ in plain)
    assert len(ours) <= len(plain)


@pytest.mark.parametrize("policy", POLICIES)
def test_loops_carry_no_more_where_the_gradient_is_taken_outside(policy: str):
    loss = scanned(policy)
    quantized = transform(loss, recipe="int8")
    plain = carried(jax.jit(jax.grad(loss)).lower(STACK, INPUT))
    gradient = jax.grad(lambda stack, x: quantized(stack, x, sr_key=0))
    ours = carried(jax.jit(gradient).lower(STACK, INPUT))
    assert sum(n for n, _ in ours) <= sum(n for n, _ in plain)
    assert len(ours) <= len(plain)


def test_codes_are_kept_in_place_of_floats_that_products_alone_read():
    step = checkpointed("nothing")  # but for the inputs of the blocks
    ours = carried(srjit(step, recipe="int8").lower(STACK, INPUT, sr_key=0))
    inputs = [(LAYERS * TOKENS * WIDTH, "i8")] * 2  # written by one loop, read by the other
    assert [found for found in ours if found[1] == "i8"] == inputs


def unrolled(stack: Any, x: jax.Array) -> jax.Array:
    for i in range(LAYERS):
        x = block(x, jax.tree.map(lambda w, i=i: w[i], stack))
    return jnp.mean(x**2)


def tied(stack: Any, x: jax.Array) -> jax.Array:
    """One block, again and again: a loop does not change its weights."""
    first = jax.tree.map(lambda w: w[0], stack)
    return jnp.mean(lax.scan(lambda x, _: (block(x, first), None), x, None, length=3)[0] ** 2)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize(
    "step",
    [checkpointed("dots"), jax.grad(unrolled), jax.grad(tied), jax.grad(jax.checkpoint(unrolled))],
    ids=["scanned", "unrolled", "tied", "checkpoint"],
)
def test_what_is_made_again_has_the_bits_that_it_had(step: Any, monkeypatch: pytest.MonkeyPatch):
    recipe = recipes.get("int8").with_rounding(activations="stochastic", weights="stochastic")

    def run() -> Any:
        return srjit(step, recipe=recipe)(STACK, INPUT, sr_key=1)

    again = run()
    monkeypatch.setattr(Residuals, "are_made_again", lambda residuals, use: False)
    assert same(again, run())


OUTSIDE: dict[str, Callable[[Any], Any]] = {
    "scanned": lambda f: jax.grad(f),
    "an example's own weights": lambda f: jax.vmap(jax.grad(f)),
    "gradient of examples": lambda f: jax.grad(lambda *args: jnp.sum(jax.vmap(f)(*args))),
}


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("of", OUTSIDE)
def test_derivatives_from_outside_make_the_bits_again_that_there_were(
    of: str, monkeypatch: pytest.MonkeyPatch
):
    stack, x = STACK, INPUT
    if of != "scanned":  # the second example has a scale of its own
        stack, x = (
            jax.tree.map(lambda a: jnp.stack([a, 1.2 * a]), tree) for tree in (STACK, INPUT)
        )

    def run() -> Any:
        f = transform(scanned("none"), recipe="int8")
        return jax.jit(OUTSIDE[of](lambda stack, x: f(stack, x, sr_key=1)))(stack, x)

    again = run()
    monkeypatch.setattr(Residuals, "are_there_anyway", lambda residuals, use: False)
    assert same(again, run())


@pytest.mark.parametrize("layer", ["jaxpr", "stablehlo"])
def test_no_compiler_takes_codes_that_are_made_again_for_the_first_ones(
    layer: Any, monkeypatch: pytest.MonkeyPatch
):
    """Without a loop, weights and the input wait for the codes of a cotangent."""

    def barriers() -> int:
        f = srjit(jax.grad(unrolled), recipe="int8", layer=layer)
        text = str(f.lower(STACK, INPUT, sr_key=0).compiler_ir())
        return text.count("stablehlo.optimization_barrier")

    with_waiting = barriers()
    monkeypatch.setattr(Residuals, "may_be_merged", lambda residuals, use: False)
    weights = 2 * LAYERS - 1  # the gradient of the first input is not wanted
    assert with_waiting - barriers() >= weights + 1
