"""Shards draw noise of their own, whoever made the region, unless somebody says they are copies."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import srjit

N = 4
MESH = jax.sharding.Mesh(np.array(jax.devices()[:N]), ("d",))
T = np.random.default_rng(0).integers(-60, 60, (N, 32, 32)).astype(np.float32) + np.float32(0.5)
T[:, 0, 0] = 127  # the scale of int8 is 1, and all else half a step from the grid
W = np.zeros((N, 32, 32), np.float32)
BOUND = 5.5 / 32  # how far a correlation of 1024 signs goes in one of ten million pairs


def typed(f):
    return jax.jit(jax.shard_map(f, mesh=MESH, in_specs=P("d"), out_specs=P("d")))


def untyped(f):
    return jax.jit(jax.shard_map(f, mesh=MESH, in_specs=P("d"), out_specs=P("d"), check_vma=False))


def pmapped(f):
    """The same, by pmap, whose shards have no leading dimension."""
    return jax.pmap(
        lambda *a: f(*(x[None] for x in a))[0], axis_name="d", devices=jax.devices()[:N]
    )


REGIONS = {"typed": typed, "untyped": untyped, "pmap": pmapped}
loss_and_gradient = srjit.srjit(
    jax.value_and_grad(lambda w, t: jnp.sum((jnp.eye(32) @ w) * t)), recipe="int8"
)


def gradient(w, t, **key):
    return loss_and_gradient(w, t, **key)[1]


def rounded_optimizer(w, t):
    """T / 64, whose neighbours in bfloat16 are as far from it as chance says."""
    optimizer = srjit.optim.stochastic_rounding(optax.sgd(1.0), 9)
    p = w.astype(jnp.bfloat16) + 1
    updates, _ = optimizer.update(-t / 2**16, optimizer.init(p), p)
    return optax.apply_updates(p, updates).astype(jnp.float32)


WAYS = {
    "a gradient": lambda w, t: gradient(w[0], t[0], sr_key=9)[None],
    "stochastic_round": lambda w, t: srjit.stochastic_round(t, "int8", 9).astype("float32"),
    "quantize": lambda w, t: srjit.dequantize(
        srjit.quantize(t, srjit.Quantization(format="int8", rounding="stochastic"), 9)
    ),
    "in a scan": lambda w, t: lax.scan(
        lambda c, x: (c, srjit.stochastic_round(x, "int8", 9).astype("float32")), 0, t
    )[1],
}


def signs(out) -> np.ndarray:
    return np.sign(np.asarray(out) - T).reshape(N, -1)[:, 1:]


@pytest.mark.crossed(1)
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("way", WAYS)
def test_every_shard_has_noise_of_its_own(way: str, region: str):
    up = signs(REGIONS[region](WAYS[way])(W, T))
    assert np.abs(up).min() == 1
    together = up @ up.T / up.shape[1]
    assert np.abs(together[np.triu_indices(N, 1)]).max() < BOUND


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("way", ["stochastic_round", "quantize"])
def test_what_is_said_to_be_copies_is_rounded_alike(way: str, region: str):
    def f(w, t):
        with srjit.shared_noise("d"):
            return WAYS[way](w, t)

    up = signs(REGIONS[region](f)(W, T))
    assert (up == up[0]).all()


def test_two_axes_of_a_mesh_are_told_apart():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:N]).reshape(2, 2), ("d", "e"))

    def f(t):
        with srjit.shared_noise("e"):
            return srjit.stochastic_round(t, "int8", 9).astype("float32")

    region = jax.shard_map(
        f, mesh=mesh, in_specs=P(("d", "e")), out_specs=P(("d", "e")), check_vma=False
    )
    up = signs(jax.jit(region)(T))
    assert (up[0] == up[1]).all() and (up[2] == up[3]).all()
    assert abs(up[0] @ up[2] / up.shape[1]) < BOUND


# ------------------------------------------------------------------------------------- write-backs

P0 = jnp.ones((32, 32), jnp.bfloat16)
X = np.random.default_rng(1).standard_normal((N * 8, 32)).astype(np.float32)


def update(p, x, reduced: bool):
    g = jax.grad(lambda p: jnp.sum(jnp.tanh(x @ p.astype(jnp.float32))))(p)
    return p - 1e-3 * (lax.pmean(g, "d") if reduced else g)


def trained(said) -> np.ndarray:
    """The copies of a parameter after a step that is rewritten inside of a region."""

    @srjit.transform(recipe="bf16-sr")
    def step(p, x):
        if said is None:
            return update(p, x, reduced=True)
        with srjit.shared_noise(*said):
            return update(p, x, reduced=True)

    def f(x):
        return step(P0, x, sr_key=3)[None]

    return np.asarray(untyped(f)(X)).astype(np.float32)


def test_copies_of_a_parameter_stay_copies_where_they_are_said_to_be():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = trained(["d"])
    assert (after == after[0]).all() and (after != 1).any()


def test_what_may_be_copies_is_warned_of():
    with pytest.warns(UserWarning, match=r"copies drift apart.*shared_noise\('d'\)"):
        after = trained(None)
    assert (after != after[0]).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (trained([]) == after).all()


def test_strict_wants_to_be_told():
    step = srjit.transform(lambda p, x: update(p, x, True), recipe="bf16-sr", strict=True)
    with pytest.raises(srjit.UnsupportedSiteError, match="shared_noise"):
        untyped(lambda x: step(P0, x, sr_key=3)[None])(X)


def test_an_optimizer_says_it_too():
    def f(x):
        return rounded_optimizer(jnp.zeros((1, 32, 32)), x[:, :, None] * jnp.ones(32))

    with pytest.warns(UserWarning, match="stochastic_rounding: parameters are written back"):
        untyped(f)(X[:N, None] * np.ones((1, 32, 1), np.float32))


def test_what_is_reduced_inside_is_one_value_on_all_shards():
    """No scope is needed: the program itself says that a sum over the axis is a copy."""

    @srjit.transform(recipe="int8", params_argnums=0)
    def cotangents(w, t):
        y, back = jax.vjp(lambda w: jnp.eye(32) @ w, w)
        return y, back(lax.pmean(t, "d") * 1.0)[0]

    out = np.asarray(untyped(lambda w, t: cotangents(w[0], t[0], sr_key=9)[1][None])(W, T))
    assert (out == out[0]).all()


def test_a_scope_around_a_call_is_refused():
    def f(w, t):
        with srjit.shared_noise("d"):
            return gradient(w[0], t[0], sr_key=9)[None]

    with pytest.raises(ValueError, match="inside of that function"):
        untyped(f)(W, T)
    with pytest.raises(TypeError, match="names of mesh axes"):
        srjit.shared_noise(0)


def test_the_other_door_cannot_tell_and_says_so():
    f = srjit.srjit(
        jax.value_and_grad(lambda w, t: jnp.sum((jnp.eye(32) @ w) * t)),
        recipe="int8",
        layer="stablehlo",
    )
    with pytest.raises(NotImplementedError, match="pmap"):
        untyped(lambda w, t: f(w[0], t[0], sr_key=9)[1][None])(W, T)
