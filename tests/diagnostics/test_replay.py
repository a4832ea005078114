"""Noise of a run that is drawn again is what the run drew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srjit
from srjit.api.transformation import Onlookers
from srjit.diagnostics.verify.capture import Capture
from srjit.numerics.encode import encode

W = jax.random.normal(jax.random.key(0), (3, 32, 32)) / 6
X = jax.random.normal(jax.random.key(1), (24, 32))


def step(w, x):
    def loss(w):
        with jax.named_scope("layers"):
            body = jax.checkpoint(lambda x, w: (x + jnp.tanh(x @ w), None))
            y, _ = jax.lax.scan(body, x, w)
        with jax.named_scope("head"):
            return jnp.sum((y @ w[0]) ** 2)

    return jax.grad(loss)(w)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("recipe", ["int8", "nvfp4", "mxfp8"])
@pytest.mark.parametrize("base", [None, jax.random.key(5)], ids=["step", "base key"])
def test_keys_are_those_that_the_run_took(recipe, base):
    fun = srjit.srjit(step, recipe=recipe, key=base)
    seen = Capture()
    program = fun._program(Onlookers(observer=seen.observe), (W, X), {}, None, None)
    run = program(fun._options.settings.recipe)
    for seen.step in range(2):
        run(seen.step)
        jax.effects_barrier()
    if base is None:  # what a run counts from there is an integer base key, 0
        fun = srjit.srjit(step, recipe=recipe, key=0)
    assert seen.executions
    for (rounding, where), captured in seen.executions.items():
        label = rounding.label
        for number, key in captured.keys.items():
            (again,) = srjit.replay(
                fun, W, X, step=number, site=label.site, operand=label.operand, trips=where
            )
            assert again.key == key and again.where == where


def gradients(fun):
    """Numbers of sites whose left operand is a gradient that is rounded stochastically."""
    sites = fun.explain(W, X).sites
    return [s.site.number for s in sites if s.lhs and s.lhs.rounding == "stochastic"]


def test_noise_is_what_rounds():
    """Integer codes are floor(y + u), u of the noise's upper 24 bits."""
    fun = srjit.srjit(step, recipe="int8")
    (drawn,) = fun.replay(W, X, step=3, site=gradients(fun)[0], operand="lhs")
    x = jax.random.normal(jax.random.key(9), drawn.noise.shape)
    spec = srjit.Quantization(format="int8", rounding="stochastic")
    codes = encode(x, spec, tuple(jnp.uint32(word) for word in drawn.key))
    y = np.asarray(x, np.float64) / np.asarray(codes.scale, np.float64)
    sums = y + (np.asarray(drawn.noise) >> 8) / 2.0**24
    clear = np.abs(sums - np.round(sums)) > 1e-5  # of what floats may round the other way
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(np.asarray(codes.codes)[clear], np.floor(sums)[clear])


def test_sites_are_found_by_number_path_and_trip():
    fun = srjit.srjit(step, recipe="int8")
    with pytest.raises(ValueError, match="was not called yet"):
        srjit.replay(fun, step=0, site=0)
    fun(W, X, sr_key=0)
    inside = next(n for n in gradients(fun) if fun.explain(W, X).sites[n].site.trips == 3)
    every = srjit.replay(fun, step=0, site=inside, operand="lhs")
    assert [r.where for r in every] == [(0,), (1,), (2,)]
    assert len({r.key for r in every}) == 3
    one = srjit.replay(fun, W, X, step=0, site=inside, operand="lhs", trips=(1,))
    np.testing.assert_array_equal(one[0].noise, every[1].noise)
    other = srjit.replay(fun, W, X, step=1, site=inside, operand="lhs", trips=(1,))
    assert other[0].key != one[0].key
    with pytest.raises(ValueError, match="no site is 'nothing'; there are 0: "):
        fun.replay(step=0, site="nothing")
    with pytest.raises(ValueError, match="there are 1 loops"):
        fun.replay(step=0, site=inside, trips=(1, 2))
    with pytest.raises(ValueError, match="'lhs' or 'rhs'"):
        fun.replay(step=0, site=inside, operand="left")
    assert (
        srjit.srjit(step, recipe="int8", mode="inference").replay(W, X, step=0, site=inside) == []
    )


def update(w, x):
    return w - (0.1 * jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)).astype(w.dtype)


@pytest.mark.parametrize("site", ["*", 0, "params['w']"])
def test_noise_of_write_backs_is_not_replayed(site):
    w, said = W[0].astype(jnp.bfloat16), "write-backs and casts is not replayed"
    fun = srjit.srjit(update, recipe="bf16-sr")
    assert {b.status for b in fun.explain(w, X).write_backs} == {"stochastic"}
    with pytest.raises(ValueError, match=f"no site of this program draws noise, and .*{said}"):
        srjit.replay(fun, w, X, step=0, site=site)
    both = dataclasses.replace(srjit.recipes.get("int8"), weights="stochastic")
    fun = srjit.srjit(update, recipe=both)
    assert fun.explain(w, X).write_backs and srjit.replay(fun, w, X, step=0, site="*")
    with pytest.raises(ValueError, match=f"no site is 'update'; there are 0: .*{said}"):
        srjit.replay(fun, w, X, step=0, site="update")


def test_one_draw_an_operand_where_no_gradient_is_taken():
    """Gradients that the sites would have do not count: a number is that of its site."""

    def forward(p, x):
        for name in ("one", "two", "three"):
            with jax.named_scope(name):
                x = jnp.tanh(x @ p[name])
        return x.sum()

    recipe = srjit.recipes.get("int8")
    recipe = recipe.with_rounding(activations="stochastic", weights="stochastic")
    fun = srjit.srjit(forward, recipe=recipe)
    args = dict(zip(("one", "two", "three"), W, strict=True)), X
    for number, path in enumerate(args[0]):
        drawn = srjit.replay(fun, *args, step=0, site=number)
        assert [(r.site, r.path, r.role, r.operand) for r in drawn] == [
            (number, path, "fprop", "lhs"), (number, path, "fprop", "rhs"),
        ]  # fmt: skip
    labels = fun.verify(*args, draws=4).operands
    assert [(o.site, o.path, o.role, o.kind) for o in labels] == [
        (number, path, "fprop", kind)
        for number, path in enumerate(args[0])
        for kind in ("activation", "weight")
    ]
    seen = []
    watched = srjit.srjit(forward, recipe=recipe, watch=seen.append)
    watched(*args, sr_key=0)
    watched.watch.wait()
    assert not seen, "there is no gradient in the program"
