"""``jax.checkpoint`` as ``JAX_REMAT3=1`` makes it, a high-level primitive, is one as any other."""

from __future__ import annotations

import pytest

import fresh

# All in one process, which nothing else compiles in with that flag.
CODE = """
import jax, jax.numpy as jnp, numpy as np, srjit
from jax.ad_checkpoint import checkpoint_name

W = jax.random.normal(jax.random.key(0), (16, 16)) / 4
X = jax.random.normal(jax.random.key(1), (8, 16))
saving = jax.checkpoint_policies
POLICIES = [
    None, saving.nothing_saveable, saving.everything_saveable, saving.dots_saveable,
    saving.dots_with_no_batch_dims_saveable, saving.save_only_these_names("h"),
    saving.save_any_names_but_these("h"),
]

def losses(policy):
    def block(w, x):
        return checkpoint_name(jnp.tanh(x @ w), "h") @ w

    once = jax.checkpoint(block, policy=policy)
    loop = lambda w, x: jax.lax.scan(lambda h, _: (once(w, h), None), x, length=2)[0]
    return [lambda w, x, f=f: jnp.sum(f(w, x) ** 2) for f in (once, loop)]

def same(a, b):
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))

def near(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 0.05

for policy in POLICIES if srjit_all else POLICIES[1:2]:
    for i in range(2):
        made = {}
        for on in (False, True):
            jax.config.update("jax_remat3", on)
            loss = losses(policy)[i]
            step = jax.value_and_grad(loss)
            made[on] = []
            for layer in ("jaxpr", "stablehlo"):
                f = srjit.srjit(loss, recipe="int8", layer=layer, strict=True)
                g = srjit.srjit(step, recipe="int8", layer=layer, strict=True)
                assert f.explain(W, X).coverage() == g.explain(W, X).coverage() == 1
                made[on].append((f(W, X, sr_key=3), g(W, X, sr_key=3), f.explain(W, X)))
                if layer == "jaxpr":
                    outside = jax.grad(lambda w: f(w, X, sr_key=3))(W)
                    assert near(outside, jax.grad(loss)(W, X)), (policy, i, on)
            assert same(made[on][0][:2], made[on][1][:2]), (policy, i, on)  # both doors
        old, (value, gradient), report = made[False][0]
        new, (again, by_new), told = made[True][0]
        assert same(old, new) and same(value, again), (policy, i)
        assert float(jnp.abs(gradient - by_new).max()) < 1e-4, (policy, i)
        assert str(report) == str(told)
print("done")
"""


@pytest.mark.parametrize(
    "policies", ["some", pytest.param("all", marks=pytest.mark.nightly)], ids=str
)
def test_it_is_quantized_as_any_checkpoint_is(policies: str, compiler_flags: str):
    code = f"srjit_all = {policies == 'all'}{CODE}"
    assert fresh.python(code, XLA_FLAGS=compiler_flags, JAX_PLATFORMS="cpu").strip() == b"done"
