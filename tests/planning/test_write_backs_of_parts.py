"""Write-backs of rows, slices and shards of a parameter are found, and rounded without bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from srjit import srjit

N, DRAWS = 4, 150
MESH = jax.sharding.Mesh(np.array(jax.devices()[:N]), ("d",))
P0 = jnp.ones((32, 32), jnp.bfloat16)
ROWS = jnp.array([3, 5, 5, 9])
OTHER = jnp.array([3, 4, 5, 6])
U = jnp.full((4, 32), 1e-3, jnp.bfloat16)
G = -jnp.full((N, 32, 32), 1e-3)
EXACT = float(U[0, 0])
STEP = 2.0**-7


def dus(p, u):
    return lax.dynamic_update_slice(p, lax.dynamic_slice(p, (3, 0), (4, 32)) + u, (3, 0))


def wide(p, u):
    return p.astype(jnp.float32).at[ROWS].add(u.astype(jnp.float32)).astype(p.dtype)


def halves(p, u):
    return jnp.concatenate([p[:3], p[3:7] + u, p[7:]])


PARTS = {  # by what rows become, in updates
    "at add": (lambda p, u: p.at[ROWS].add(u), {3: 1, 5: 2, 9: 1, 0: 0}),
    "at set": (lambda p, u: p.at[OTHER].set(p[OTHER] + u), {3: 1, 4: 1, 6: 1, 9: 0}),
    "dynamic_update_slice": (dus, {3: 1, 6: 1, 9: 0}),
    "in float32": (wide, {3: 1, 5: 2, 9: 1, 0: 0}),
    "concatenate": (halves, {3: 1, 6: 1, 9: 0}),
    "in a call": (jax.jit(lambda p, u: p.at[ROWS].add(u)), {3: 1, 5: 2, 0: 0}),
}


def is_unbiased(draws: np.ndarray, updates: float) -> None:
    """The mean of what 1 becomes is 1 and some updates, of which each is an eighth of a step."""
    p = updates * EXACT / STEP
    limit = 5.5 * STEP * np.sqrt(p * (1 - p) / draws.size)
    assert abs(draws.mean() - 1 - updates * EXACT) <= limit
    assert np.isin(draws, [1, 1 + STEP]).all()


@pytest.mark.parametrize("way", PARTS)
def test_a_part_is_written_back_stochastically(way: str):
    update, rows = PARTS[way]
    step = srjit(update, recipe="bf16-sr", params_argnums=0)
    (write,) = step.explain(P0, U, sr_key=0).write_backs
    assert (write.path, write.kind, write.status) == ("p", "parameter", "stochastic")
    draws = np.stack([np.asarray(step(P0, U, sr_key=k)) for k in range(DRAWS)]).astype(np.float32)
    for row, updates in rows.items():
        is_unbiased(draws[:, row], updates)


def test_both_doors_write_rows_alike():
    for update, _ in (PARTS["at add"], PARTS["at set"]):
        doors = [
            srjit(update, recipe="bf16-sr", params_argnums=0, layer=layer)(P0, U, sr_key=3)
            for layer in ("jaxpr", "stablehlo")
        ]
        np.testing.assert_array_equal(*map(np.asarray, doors))


def zero1(flat: bool, in_float32: bool):
    """Every device updates its shard of what all have a copy of, and all gather the shards."""

    def inner(p, g):
        whole = p.reshape(-1) if flat else p
        mean = lax.psum_scatter(g[0].reshape(whole.shape), "d", tiled=True) / N
        n = whole.shape[0] // N
        mine = lax.dynamic_slice_in_dim(whole, lax.axis_index("d") * n, n)
        if in_float32:
            mine = (mine.astype(jnp.float32) - mean).astype(p.dtype)
        else:
            mine = mine - mean.astype(p.dtype)
        return lax.all_gather(mine, "d", tiled=True).reshape(p.shape)

    return jax.shard_map(inner, mesh=MESH, in_specs=(P(), P("d")), out_specs=P(), check_vma=False)


@pytest.mark.parametrize("in_float32", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_zero_1_rounds_shards_and_keeps_replicas_identical(flat: bool, in_float32: bool):
    step = srjit(zero1(flat, in_float32), recipe="bf16-sr", params_argnums=0)
    (write,) = step.explain(P0, G, sr_key=0).write_backs
    assert write.status == "stochastic" and write.kind == "parameter"
    outs = [step(P0, G, sr_key=k) for k in range(DRAWS)]
    copies = [np.asarray(s.data) for s in outs[0].addressable_shards]
    assert len(copies) == N and all((c == copies[0]).all() for c in copies)
    is_unbiased(np.stack([np.asarray(o) for o in outs]).astype(np.float32), 1)
    up = copies[0].astype(np.float32).reshape(N, -1) > 1
    assert len({row.tobytes() for row in up}) == N  # shards have noise of their own


def test_what_is_put_in_its_place_and_is_no_update_stays_as_it_is():
    def overwritten(p, u):
        return p.at[OTHER].set(u)

    def looked_up(p, u):
        return p[jnp.arange(32)] + 1  # as large as p, and not its next value

    for update in (overwritten, looked_up):
        step = srjit(update, recipe="bf16-sr", params_argnums=0)
        (write,) = step.explain(P0, U, sr_key=0).write_backs
        assert write.status == "kept"
