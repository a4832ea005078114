"""Steps with FSDP and tensor parallelism on four devices, of one process or of several."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import srjit

SPECS = {"up": P("data", "model"), "down": P("model", "data")}
ROUNDED = srjit.Quantization(format="int8", rounding="stochastic")


def loss(params: Any, x: jax.Array) -> jax.Array:
    hidden = jnp.maximum(x @ params["up"], 0)
    hidden = jax.lax.with_sharding_constraint(hidden, P("data", "model"))
    return jnp.sum((hidden @ params["down"]).astype(jnp.float32) ** 2)


def step(params: Any, x: jax.Array) -> Any:
    value, grads = jax.value_and_grad(loss)(params, x)
    # Integers that an update leaves exact tell every code apart.
    return jax.tree.map(lambda p, g: p - g / 2**8, params, grads), value


def figures(recipe: str) -> dict[str, np.ndarray]:
    """Losses and parameters of two steps, and the codes of a tensor that is sharded."""
    mesh = jax.make_mesh((2, 2), ("data", "model"), (AxisType.Auto,) * 2, devices=jax.devices()[:4])
    rng = np.random.default_rng(0)

    def placed(spec: Any, *shape: int) -> jax.Array:
        values = rng.standard_normal(shape).astype(jnp.bfloat16)
        place = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(shape, place, lambda index: values[index])

    params = {"up": placed(SPECS["up"], 16, 32), "down": placed(SPECS["down"], 32, 16)}
    x = placed(P("data"), 24, 16)
    whole = NamedSharding(mesh, P())
    train = srjit.srjit(step, recipe=recipe)
    found: dict[str, Any] = {}
    with jax.set_mesh(mesh):
        for i in range(2):
            params, found[f"loss {i}"] = train(params, x, sr_key=i)
            found |= {f"{name} {i}": param for name, param in params.items()}
        rounded = jax.jit(lambda x: srjit.quantize(x, ROUNDED, key=jax.random.key(3)).codes)
        found["codes"] = rounded(x)
        gathered = jax.jit(lambda tree: tree, out_shardings=whole)(found)
    return {k: np.asarray(v.addressable_data(0), np.float32) for k, v in gathered.items()}


def main(port: str, count: str, number: str, recipe: str, path: str) -> None:
    """One of several processes, which writes the figures to a file."""
    jax.config.update("jax_num_cpu_devices", 4 // int(count))
    jax.distributed.initialize(f"localhost:{port}", int(count), int(number))
    assert jax.process_count() == int(count) and len(jax.devices()) == 4
    np.savez(path, **figures(recipe))
    jax.distributed.shutdown()
