"""Steps on the attached GPU: bfloat16, srjit's recipes and Qwix's FP8, in turns in one process.

    python benchmarks/gpu_step.py [--rounds N] [--quick] [--json FILE]

One linear layer and one transformer block, forward and backward. A ratio is the median, over
rounds, of the ratio within a round. What the device can do is measured in the same run: operations
a second of one large product in bfloat16 and in FP8, and bytes a second of a copy. Quantizing a
tensor by the scale that it has reads it twice and writes its codes: that, over the time that it
takes, is compared with the copy. The layer's results are compared with float64 at entries drawn at
random.

``qwix fp8`` does not round stochastically (Qwix ignores that for floats); srjit's gradients do.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import _measuring as measuring
import _tpu_programs as programs
from srjit import Quantization, quantize, srjit

try:
    import _qwix_tpu_steps as qwix_steps
except ImportError:  # Qwix wants Flax, and does not yet support every version of JAX
    qwix_steps = None

BF16, FP8 = "bf16", "srjit fp8"
SIZES = {"tokens": 8192, "width": 4096, "hidden": 16384}
SMALL = {"tokens": 64, "width": 128, "hidden": 256}
SQUARE, SMALL_SQUARE = 8192, 256
SAMPLES = 256


def attention(qkv: jax.Array, heads: int, sequence: int) -> jax.Array:
    """Causal attention of tokens by 3 * width, by cuDNN where there is a GPU."""
    tokens, width = qkv.shape[0], qkv.shape[1] // 3
    shape = (tokens // sequence, sequence, 3, heads, width // heads)
    q, k, v = jnp.moveaxis(qkv.reshape(shape), 2, 0)
    by = "cudnn" if jax.default_backend() == "gpu" else "xla"
    out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=by)
    return out.reshape(tokens, width)


def arrays(args: Any) -> Any:
    """Arrays in place of shapes; keys stay keys."""
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(args))))

    def array(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(1)
        scale = 1.0 if leaf.ndim < 2 else leaf.shape[0] ** -0.5
        return (scale * jax.random.normal(next(keys), leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(array, args)


def contestants(name: str, small: bool) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Each step, and its arguments."""
    sizes = SMALL if small else SIZES
    if name == "block":
        heads, sequence = (4, 32) if small else (programs.HEADS, programs.SEQUENCE)
        programs.attention = functools.partial(attention, heads=heads, sequence=sequence)
    step, shapes = (programs.linear if name == "linear" else programs.block)(**sizes)
    args = arrays(shapes)
    found: dict[str, tuple[Callable[..., Any], Any]] = {BF16: (jax.jit(step), args)}
    for recipe in ("fp8", "int8"):
        made = srjit(step, recipe=recipe)
        found[f"srjit {recipe}"] = functools.partial(made, sr_key=0), args
    if qwix_steps is not None:
        make = qwix_steps.linear if name == "linear" else qwix_steps.block
        theirs, their_shapes = make(dtype="float8_e4m3fn", **sizes)
        found["qwix fp8"] = jax.jit(theirs), arrays(their_shapes)
    return found


def compare(name: str, rounds: int, small: bool) -> dict[str, Any]:
    """Times one program's steps and prints the table."""
    steps = contestants(name, small)
    calls = {label: functools.partial(fun, *args) for label, (fun, args) in steps.items()}
    times, _ = measuring.interleaved(calls, rounds)
    print(f"\n{name}, forward and backward, {rounds} rounds")
    print(f"{'':<20}{'ms':>9}{'bf16 / it':>11}")
    rows: dict[str, Any] = {}
    for label, own in times.items():
        gained = measuring.median_ratio(times[BF16], own)
        rows[label] = {"ms": 1e3 * statistics.median(own), "speedup": gained}
        print(f"{label:<20}{rows[label]['ms']:9.3f}{gained:11.3f}")
    if name == "linear":
        operations = 6 * math.prod((SMALL if small else SIZES).values())
        for label in times:
            rows[label]["operations a second"] = operations / min(times[label])
        for label in (BF16, FP8):
            fun, args = steps[label]
            rows[label]["errors"] = errors(fun(*args), args)
            shown = ", ".join(f"{k} {v:.2e}" for k, v in rows[label]["errors"].items())
            print(f"  {label}, off float64: {shown}")
    return rows


def errors(results: Any, args: Any) -> dict[str, float]:
    """Relative errors of a layer's results, root mean square of entries drawn at random."""
    w, x, ct = (np.asarray(a.astype(jnp.float32), np.float64) for a in args)
    y, (dw, dx) = results
    rng = np.random.default_rng(0)
    found: dict[str, float] = {}
    for label, got, lhs, rhs in (("y", y, x, w), ("dw", dw, x.T, ct), ("dx", dx, ct, w.T)):
        i, j = (rng.integers(0, n, SAMPLES) for n in got.shape)
        exact = np.einsum("sk,ks->s", lhs[i], rhs[:, j])
        off = np.asarray(got[i, j].astype(jnp.float32), np.float64) - exact
        found[label] = float(np.sqrt(np.mean(off**2) / np.mean(exact**2)))
    return found


def device(rounds: int, small: bool) -> dict[str, float]:
    """What the device can do, and what quantizing makes of its memory's bandwidth."""
    n = SMALL_SQUARE if small else SQUARE
    x = jax.random.normal(jax.random.key(0), (n, n), jnp.bfloat16)
    narrow = x.astype(jnp.float8_e4m3fn)
    dimensions = (((1,), (1,)), ((), ()))

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        wide = jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)
        return wide.astype(jnp.bfloat16)

    nearest, stochastic = (
        Quantization(format=f, rounding=r)
        for f, r in (("fp8_e4m3", "nearest"), ("fp8_e5m2", "stochastic"))
    )
    jitted = jax.jit(product)
    quantizers = {
        "quantize to nearest": jax.jit(lambda x: quantize(x, nearest)),
        "quantize stochastically": jax.jit(lambda x: quantize(x, stochastic, 0)),
    }
    calls: dict[str, Callable[[], Any]] = {
        "product in bf16": lambda: jitted(x, x),
        "product in fp8": lambda: jitted(narrow, narrow),
        "copy": functools.partial(jax.jit(jnp.negative), x),
        **{label: functools.partial(fun, x) for label, fun in quantizers.items()},
    }
    times, _ = measuring.interleaved(calls, rounds)
    seconds = {label: statistics.median(own) for label, own in times.items()}
    found = {f"{k}, operations a second": 2 * n**3 / seconds[k] for k in list(calls)[:2]}
    found["copy, bytes a second"] = 4 * n**2 / seconds["copy"]
    for label in quantizers:
        found[f"{label}, bytes a second"] = 5 * n**2 / seconds[label]
    print(f"\n{jax.devices()[0].device_kind}")
    for label, value in found.items():
        part = value / found["copy, bytes a second"]
        of_copy = f"  {part:.2f} of the copy" if label.startswith("quantize") else ""
        print(f"{label:<44}{value:10.3g}{of_copy}")
    return found


def main() -> None:
    parser = measuring.options(__doc__, rounds=30)
    given = parser.parse_args()
    rounds = min(given.rounds, 2) if given.quick else given.rounds
    figures: dict[str, Any] = {"device": device(rounds, given.quick)}
    for name in ("linear", "block"):
        figures[name] = compare(name, rounds, given.quick)
    rates = figures["device"]
    for label, of in ((BF16, "product in bf16"), (FP8, "product in fp8")):
        part = figures["linear"][label]["operations a second"] / rates[f"{of}, operations a second"]
        figures["linear"][label]["of the product's rate"] = part
        print(f"linear, {label}: {part:.2f} of the rate of a large {of}")
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
