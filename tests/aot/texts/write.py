"""Writes the modules beside it: small programs, as compilers print them. Needs libtpu.

Left out is what locates them in the Python that made them. Run it to renew those that are named;
the kernel by itself, since the profile that it is compiled with ends the process on other programs:

    python tests/aot/texts/write.py v5e_mesh v5e_asynchronous
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(
    TPU_SKIP_MDS_QUERY="1",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    JAX_PLATFORMS="cpu",
)  # before jax looks
if sys.argv[1:] == ["v5e_kernel"]:
    profile = f"--xla_jf_dump_static_llo_profile_to={tempfile.mkdtemp()}"
    os.environ["LIBTPU_INIT_ARGS"] = profile

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

FOLDER = Path(__file__).parent
CHIPS = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
ONE = SingleDeviceSharding(CHIPS[0])
MESH = Mesh(np.array(CHIPS), ("data",))
Shape = jax.ShapeDtypeStruct


def loop(ws: jax.Array, x: jax.Array) -> jax.Array:
    def layer(x: jax.Array, w: jax.Array) -> Any:
        with jax.named_scope("srjit.site=3"):
            y = jax.lax.dot(x, w, preferred_element_type=jnp.int32)
        return jnp.clip(y, -127, 127).astype(jnp.int8), None

    return jax.lax.scan(layer, x, ws)[0]


def while_positive(x: jax.Array) -> jax.Array:
    return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: x @ x, x)


def kernel(x: jax.Array) -> jax.Array:
    def double(x_ref: Any, out_ref: Any) -> None:
        out_ref[...] = x_ref[...] * 2

    return pl.pallas_call(double, out_shape=Shape(x.shape, x.dtype), name="double")(x)


def causal(x: jax.Array, w: jax.Array) -> jax.Array:
    """A kernel that multiplies in 6 of 9 steps of its grid, twice in each."""

    def block(x_ref: Any, w_ref: Any, out_ref: Any) -> None:
        i, j = pl.program_id(0), pl.program_id(1)

        @pl.when(j == 0)
        def _() -> None:
            out_ref[...] = jnp.zeros_like(out_ref)

        @pl.when(j * 128 <= i * 128 + 127)
        def _() -> None:
            def add(k: Any, _: Any) -> None:
                part = jnp.dot(x_ref[...], w_ref[k], preferred_element_type=jnp.float32)
                out_ref[...] += part

            jax.lax.fori_loop(0, 2, add, None)

    return pl.pallas_call(
        block,
        out_shape=Shape(x.shape, jnp.float32),
        grid=(3, 3),
        in_specs=[
            pl.BlockSpec((128, 128), lambda i, j: (i, j)),
            pl.BlockSpec((2, 128, 128), lambda i, j: (0, j, 0)),
        ],
        out_specs=pl.BlockSpec((128, 128), lambda i, j: (i, 0)),
        name="causal",
    )(x, w)


def gathered(x: jax.Array, w: jax.Array, v: jax.Array, y: jax.Array) -> Any:
    """Two weights are gathered, the second beside a product, and a gradient is summed and cut."""
    return jnp.dot(x, w) @ v, x.T @ y


def write(
    name: str, fun: Callable[..., Any], *shapes: Any, options: Any = None, **jit: Any
) -> None:
    if name not in sys.argv[1:]:
        return
    text = jax.jit(fun, **jit).lower(*shapes).compile(compiler_options=options).as_text()
    text = re.sub(r"\nFileNames\n.*?\n\n\n", "\n", text, flags=re.DOTALL)
    (FOLDER / f"{name}.hlo").write_text(text.rstrip() + "\n", encoding="utf-8")


codes = Shape((4, 256, 256), jnp.int8), Shape((128, 256), jnp.int8)
square = Shape((256, 256), jnp.bfloat16)
write("v5e_loop", loop, *codes, in_shardings=ONE)
write("v5e_while", while_positive, square, in_shardings=ONE)
write("v5e_kernel", kernel, Shape((256, 256), jnp.float32), in_shardings=ONE)
tiles = Shape((384, 384), jnp.bfloat16), Shape((2, 384, 128), jnp.bfloat16)
write("v5e_causal", causal, *tiles, in_shardings=ONE)
rows, columns = (NamedSharding(MESH, PartitionSpec(*p)) for p in (("data",), (None, "data")))
write("v5e_mesh", lambda x, w: (x @ w).sum(), square, square, in_shardings=(columns, rows))
write(
    "v5e_asynchronous",
    gathered,
    *(square,) * 4,
    in_shardings=rows,
    out_shardings=rows,
    options={"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"},
)
write("cpu_loop", loop, *codes)
