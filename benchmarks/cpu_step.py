"""One SGD step on the CPU: fp32, srjit's recipes, bf16, and Qwix's int8, in turns in one process.

    python benchmarks/cpu_step.py [--rounds N] [--quick] [--json FILE]

A ratio is the median, over rounds, of the ratio within a round; in brackets, that of the fastest.
``CPU`` is the same ratio of processor time, all threads together: less exact, but it stays what it
is where other programs compete for the cores.
``per element`` says of Qwix that every element of a gradient gets its own noise, as srjit's always
does; by default Qwix draws a number for each row, which its columns share.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import _measuring as measuring
import _programs as programs
from srjit import srjit

try:
    import _qwix_steps as qwix_steps
except ImportError:  # Qwix wants Flax, and does not yet support every version of JAX
    qwix_steps = None

FP32, INT8, NVFP4 = "fp32", "srjit int8", "srjit nvfp4"
QWIX = "qwix int8, per element"
OVER_QWIX = 0.55
LIMITS = {"transformer": {INT8: 0.85, NVFP4: 2.5}, "mlp": {INT8: 0.75, NVFP4: 2.5}}
SMALL = {
    "transformer": {"layers": 1, "width": 32, "heads": 2, "hidden": 64, "batch": 2, "time": 16},
    "mlp": {"sizes": (32, 64, 32), "tokens": 32},
}


def bf16_dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """A product in bf16, its gradients too, of float32 operands."""
    return jnp.matmul(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)).astype(jnp.float32)


def contestants(name: str, small: bool) -> tuple[dict[str, Callable[[], Any]], str]:
    """One call of each step, and what the check of Qwix's says."""
    make = programs.mlp_program if name == "mlp" else programs.transformer_program
    loss, params, batch = make(**SMALL[name] if small else {})
    step, bf16 = programs.sgd_step(loss), programs.sgd_step(loss, bf16_dot)
    calls: dict[str, Callable[[], Any]] = {}

    def add(label: str, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        calls[label] = lambda: fun(*args, **kwargs)

    add(FP32, jax.jit(step), params, *batch)
    add("bf16", jax.jit(bf16), params, *batch)
    for recipe in ("int8", "fp8", "nvfp4"):
        add(f"srjit {recipe}", srjit(step, recipe=recipe), params, *batch, sr_key=0)
    if qwix_steps is None:
        return calls, "Qwix is not installed, or not for this version of JAX: left out"
    heads = SMALL[name]["heads"] if name != "mlp" and small else 8
    module, theirs = (
        qwix_steps.mlp(params) if name == "mlp" else qwix_steps.transformer(params, heads)
    )
    key, every = jax.random.key(0), qwix_steps.EVERY_ELEMENT
    for label, axes, one_scale in (
        ("qwix int8", (0,), False),
        (QWIX, every, False),
        ("qwix int8, per element, scale a tensor", every, True),
    ):
        quantized = qwix_steps.int8(module, axes, one_scale)
        add(
            label,
            jax.jit(programs.sgd_step(qwix_steps.loss_of(quantized))),
            theirs,
            *batch,
            key,
        )
    value = float(jax.jit(loss)(params, *batch))
    return calls, qwix_steps.check(module, theirs, batch, value, every)


def compare(name: str, rounds: int, small: bool) -> dict[str, Any]:
    """Times one program's steps and prints the table."""
    calls, checked = contestants(name, small)
    print(f"\n{name}, one SGD step, {rounds} rounds\n  {checked}")
    times, cpu = measuring.interleaved(calls, rounds)
    limits = {} if small else LIMITS[name]
    rows: dict[str, Any] = {}
    print(f"{'':<40}{'ms':>8}{'fastest':>9}{'to fp32':>9}{'':>8}{'CPU':>7}   goal")
    for label, own in times.items():
        ratio = measuring.median_ratio(own, times[FP32])
        fastest = min(own) / min(times[FP32])
        cpu_ratio = measuring.median_ratio(cpu[label], cpu[FP32])
        rows[label] = {
            "ms": 1e3 * statistics.median(own),
            "fastest_ms": 1e3 * min(own),
            "to_fp32": ratio,
            "fastest_to_fp32": fastest,
            "cpu_to_fp32": cpu_ratio,
        }
        print(
            f"{label:<40}{rows[label]['ms']:8.2f}{rows[label]['fastest_ms']:9.2f}{ratio:9.3f}"
            f" [{fastest:.3f}]{cpu_ratio:7.3f}   "
            f"{measuring.verdict(ratio, limits.get(label))}".rstrip()
        )
    for label in [q for q in times if q.startswith("qwix")]:
        ratio = measuring.median_ratio(times[INT8], times[label])
        fastest = min(times[INT8]) / min(times[label])
        cpu_ratio = measuring.median_ratio(cpu[INT8], cpu[label])
        rows[f"{INT8} / {label}"] = {"ratio": ratio, "fastest": fastest, "cpu": cpu_ratio}
        goal = measuring.verdict(ratio, OVER_QWIX if label == QWIX and not small else None)
        print(f"{INT8} / {label:<44}{ratio:9.3f} [{fastest:.3f}]{cpu_ratio:7.3f}   {goal}".rstrip())
    return rows


def main() -> None:
    parser = measuring.options(__doc__, rounds=40)
    parser.add_argument("--programs", nargs="+", choices=tuple(LIMITS), default=tuple(LIMITS))
    given = parser.parse_args()
    rounds = min(given.rounds, 2) if given.quick else given.rounds
    figures = {name: compare(name, rounds, given.quick) for name in given.programs}
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
