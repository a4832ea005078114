"""Runs that are interrupted, and go on on other devices or in other processes, are the same runs.

Noise is a function of the key and of an element's position in the whole array, so it cannot depend
on where that element is. With int8 nothing else does either, and results are equal bit for bit:
sums of codes are integers, and the arithmetic around them is exact, or element by element. In
NVFP4 there are sums of floats, whose order depends on the devices.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import socket
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import srjit
from srjit import recipes

STEPS = 3
BATCH = 256
SHAPES = {"up": (32, 64), "out": (64, 32)}
INT8, NVFP4 = recipes.get("int8"), recipes.get("nvfp4")

Params = dict[str, Any]


def start(dtype: Any = jnp.float32) -> Params:
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(rng.uniform(-1, 1, shape) / np.sqrt(shape[0]), dtype)
        for name, shape in SHAPES.items()
    }


def data(step: int) -> list[np.ndarray]:
    rng = np.random.default_rng(100 + step)
    widths = SHAPES["up"][0], SHAPES["out"][1]
    return [rng.uniform(-1, 1, (BATCH, n)).astype(np.float32) for n in widths]


def train_step(params: Params, x: Any, y: Any) -> Params:
    """Without sums outside of products, and with powers of two where FMA would round otherwise."""

    def loss(params: Params) -> jax.Array:
        hidden = jax.nn.relu(x @ params["up"])
        return jnp.sum((hidden @ params["out"] - y) ** 2) / 32

    grads = jax.grad(loss)(params)
    return jax.tree.map(lambda p, g: p - (g / 8).astype(p.dtype), params, grads)


def placed(mesh: jax.sharding.Mesh, spec: PartitionSpec, array: np.ndarray) -> jax.Array:
    """An array, of which every process gives the shards of its own devices."""
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def run(
    step_of: Any, devices: tuple[int, ...], params: Params, seed: int = 0, kind: Any = AxisType.Auto
) -> list[Params]:
    """What the parameters are after each step, one on each number of devices.

    Between steps they are in the memory of the host, as they are in a checkpoint.
    """
    seen: list[Params] = []
    for step, count in enumerate(devices):
        batch = data(step)
        if count > 1:
            some = jax.devices()[:count]
            mesh = jax.make_mesh((count,), ("data",), axis_types=(kind,), devices=some)
            params = {name: placed(mesh, PartitionSpec(), p) for name, p in params.items()}
            batch = [placed(mesh, PartitionSpec("data"), part) for part in batch]
        new = step_of(params, *batch, sr_key=STEPS * seed + step)
        assert all(len(leaf.sharding.device_set) == count for leaf in new.values())
        params = {name: np.asarray(leaf.addressable_data(0)) for name, leaf in new.items()}
        seen.append(params)
    return seen


def differing(a: Params, b: Params, beyond: float = 0.0) -> float:
    """The share of elements that differ by more than that."""
    off = [np.abs(np.float32(a[name]) - np.float32(b[name])) > beyond for name in SHAPES]
    return float(np.mean(np.concatenate([d.ravel() for d in off])))


@pytest.mark.parametrize(
    ("weights", "kind"),
    [("float32", AxisType.Explicit), ("bfloat16", AxisType.Auto)],
    ids=["float32-explicit", "bfloat16-auto"],
)
def test_a_run_in_int8_is_the_same_on_other_devices(weights: str, kind: AxisType):
    """With bfloat16 weights, their updates are rounded stochastically too."""
    narrow = weights == "bfloat16"
    recipe = dataclasses.replace(INT8, weights="stochastic") if narrow else INT8
    step_of, params = srjit.srjit(train_step, recipe=recipe), start(jnp.dtype(weights))
    alone = run(step_of, (1, 1, 1), params)
    moved = run(step_of, (1, 8, 4), params, kind=kind)
    other = run(step_of, (1, 1, 1), params, seed=1)
    for step in range(STEPS):
        assert differing(alone[step], moved[step]) == 0
        assert differing(alone[step], other[step]) > 0.4  # noise is most of the last bits


@functools.cache
def _alone_in_nvfp4(seed: int) -> list[Params]:
    return run(srjit.srjit(train_step, recipe=NVFP4), (1, 1, 1), start(), seed)


@pytest.mark.crossed(1, most=1)
@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_a_run_in_nvfp4_is_the_same_but_for_sums_of_floats(kind: AxisType):
    """A sum that differs in its last bit may, rarely, be rounded to another code; noise cannot."""
    alone, other = map(_alone_in_nvfp4, (0, 1))
    step_of = srjit.srjit(train_step, recipe=NVFP4)
    moved = run(step_of, (1, 8, 4), start(), kind=kind)
    for step in range(STEPS):
        assert differing(alone[step], moved[step], 1e-5) < 0.1
        assert differing(alone[step], other[step], 1e-5) > 0.9


# --------------------------------------------------------------------------------------- processes


def _digest(devices: int) -> str:
    """Of the parameters after every step of a run in int8 on all devices there are."""
    recipe = dataclasses.replace(INT8, weights="stochastic")
    step_of = srjit.srjit(train_step, recipe=recipe)
    digest = hashlib.sha256()
    for params in run(step_of, (devices,) * STEPS, start(jnp.bfloat16)):
        for name in SHAPES:
            digest.update(params[name].tobytes())
    return digest.hexdigest()


def _processes(count: int, compiler_flags: str) -> list[str]:
    """The digest that each of ``count`` processes computes, which have four devices in all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={4 // count} {compiler_flags}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(i), str(count), address],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for i in range(count)
    ]
    try:
        ends = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [out.split()[-1] for out, _ in ends]


@pytest.mark.slow
def test_two_processes_compute_what_one_does(compiler_flags: str):
    (alone,) = _processes(1, compiler_flags)
    assert _processes(2, compiler_flags) == [alone, alone]
    params = start(jnp.bfloat16)
    digest = hashlib.sha256(b"".join(params[name].tobytes() for name in SHAPES) * STEPS)
    assert alone != digest.hexdigest()  # something was learned


def _main(process: int, count: int, address: str) -> None:
    if count > 1:
        # Without gloo in jaxlib, JAX says so here, and the test fails with that.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, num_processes=count, process_id=process)
    assert jax.process_count() == count and len(jax.devices()) == 4
    assert len(jax.local_devices()) == 4 // count
    print(_digest(4))


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
