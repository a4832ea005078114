"""Write-backs are the same on eight devices, and through both doors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import srjit
from srjit import recipes
from steps import same

from .test_write_backs import BF16, SIGMAS, N, adamw, decayed, layer_by_layer, sgd, step_of

# --------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("d"), PartitionSpec(None, "d")])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_eight_devices_write_what_one_does(spec: PartitionSpec, kind: AxisType):
    w, g = jnp.ones((16, 64), BF16), jnp.ones((16, 64), BF16)
    alone = step_of(adamw)(w, g, sr_key=3)
    sharding = NamedSharding(jax.make_mesh((8,), ("d",), axis_types=(kind,)), spec)
    spread = step_of(adamw)(*jax.device_put((w, g), sharding), sr_key=3)
    assert spread.sharding.is_equivalent_to(sharding, 2)
    assert same(np.asarray(spread), np.asarray(alone))
    assert len({np.asarray(s.data).tobytes() for s in spread.addressable_shards}) == (
        1 if spec == PartitionSpec() else 8
    )


@pytest.mark.parametrize("check", [True, False])
def test_replicas_do_not_diverge_under_data_parallelism(check: bool):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    w, x = jnp.ones((16, 64), BF16), jax.random.normal(jax.random.key(0), (64, 16), BF16)

    def shard(w: jax.Array, x: jax.Array) -> jax.Array:
        local = lax.pcast(w, "d", to="varying") if check else w
        grads = jax.grad(lambda w: ((x @ w) ** 2).sum().astype(jnp.float32))(local)
        return w - 1e-3 * lax.pmean(grads, "d")

    specs = (PartitionSpec(), PartitionSpec("d"))
    step = step_of(
        jax.shard_map(shard, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=check)
    )
    (write,) = step.explain(w, x).write_backs
    assert write.status == "stochastic"
    for key in range(3):
        w = step(w, x, sr_key=key)
        copies = {np.asarray(s.data).tobytes() for s in w.addressable_shards}
        assert len(copies) == 1 and len(w.addressable_shards) == 8


@pytest.mark.parametrize("check", [True, False])
def test_shards_of_a_parameter_do_not_share_noise(check: bool):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec("d")
    spread = jax.shard_map(sgd, mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=check)
    w = jnp.ones((8, N), BF16)
    rows = np.asarray(step_of(spread)(w, w, sr_key=0), np.float64) < 1
    for i, row in enumerate(rows):
        for other in rows[:i]:
            assert abs(np.corrcoef(row, other)[0, 1]) < SIGMAS / math.sqrt(N)


# ----------------------------------------------------------------------------- the other door


def several_trained(w: jax.Array, x: jax.Array) -> jax.Array:
    def body(w: jax.Array, x: jax.Array) -> Any:
        grads = jax.grad(lambda w: jnp.tanh(x @ w).astype(jnp.float32).sum())(w)
        return w - 1e-3 * grads, None

    return lax.scan(body, w, x)[0]


@pytest.mark.crossed(1)
@pytest.mark.parametrize("fun", [decayed, layer_by_layer, several_trained])
@pytest.mark.parametrize("base", ["bf16-sr", "int8"])
def test_both_layers_write_the_same_bits(base: str, fun: Callable[..., Any]):
    recipe = dataclasses.replace(recipes.get(base), weights="stochastic")
    w, g = jnp.ones((16, 64), BF16), jnp.ones((16, 64), BF16)
    if fun is several_trained:
        g = jax.random.normal(jax.random.key(0), (3, 8, 16), BF16)
    by_jaxpr, by_module = (step_of(fun, recipe=recipe, layer=la) for la in ("jaxpr", "stablehlo"))
    out = by_jaxpr(w, g, sr_key=5)
    assert same(by_module(w, g, sr_key=5), out) and not same(out, fun(w, g))
    reports = [f.explain(w, g) for f in (by_jaxpr, by_module)]
    assert reports[0].write_backs == reports[1].write_backs != ()
    assert [s.status for s in reports[0].sites] == [s.status for s in reports[1].sites]
    assert [s.site.role for s in reports[0].sites] == [s.site.role for s in reports[1].sites]


def test_passes_say_that_they_leave_write_backs_alone():
    from srjit.passes.report import report_of

    text = jax.jit(sgd).lower(jnp.ones(N, BF16), jnp.ones(N, BF16)).as_text()
    options = "srjit-annotate-matmuls,srjit-insert-quantize{recipe=bf16-sr%s}"
    with pytest.warns(srjit.passes.PassWarning, match="passes leave that alone"):
        module = srjit.passes.parse(options % "").run(text)
    assert any("passes leave that alone" in note for note in report_of(module.operation).notes)
    with pytest.raises(srjit.passes.PipelineError, match="passes leave that alone"):
        srjit.passes.parse(options % " strict=true").run(text)
