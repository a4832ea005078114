"""One linear layer of experts on TPUs, as codes and in bfloat16, by estimates, on no TPU.

    pip install libtpu
    python benchmarks/tpu_experts.py [--chips v5e] [--layers mixtral] [--kernels] [--quick]

A layer is its three products: forward, and the gradients of the rows and of the weights. Each is
a kernel, and takes the larger of its schedule and its bytes (see _tpu_expert_kernels.py; in
bfloat16 by the same kernel). What quantizes is what XLA estimates of everything else in the
compiled program, and its kernels by what chips.py has of an element. None of it is a measurement.
``--kernels`` leaves quantizations out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import _measuring as measuring
import srjit
from srjit.targets.tpu.chips import CHIPS

# Rows, two dimensions of a weight, experts.
LAYERS = {"mixtral": (16384, 4096, 14336, 8), "deepseek": (49152, 2048, 1408, 64)}
SMALL = {"small": (1024, 256, 256, 4)}
E4M3, E5M2 = "float8_e4m3fn", "float8_e5m2"
# Recipe, and elements of rows and weights, and of cotangents.
CODES = {"v5e": ("int8", "int8", "int8"), "v6e": ("int8", "int8", "int8")} | {
    "tpu7x": ("fp8", E4M3, E5M2)
}


def kernels(chip: str, elements: tuple[str, str], layer: str) -> dict[str, Any]:
    """See _tpu_expert_kernels.py, a process of its own."""
    script = Path(__file__).with_name("_tpu_expert_kernels.py")
    command = [sys.executable, str(script), chip, *elements, *map(str, (LAYERS | SMALL)[layer])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def quantizing(chip: str, recipe: str, layer: str) -> tuple[float, list[str]]:
    """Cycles of what multiplies nothing, and what enters the unit at each site."""
    rows, inner, columns, groups = (LAYERS | SMALL)[layer]

    def step(w: Any, x: Any, sizes: Any, ct: Any) -> Any:
        y, pullback = jax.vjp(lambda w, x: jax.lax.ragged_dot(x, w, sizes), w, x)
        return y, pullback(ct)

    shapes = (groups, inner, columns), (rows, inner), (groups,), (rows, columns)
    dtypes = jnp.bfloat16, jnp.bfloat16, jnp.int32, jnp.bfloat16
    args = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, dtypes, strict=True)]
    report = srjit.srjit(step, recipe=recipe).aot(*args, target=chip)
    # A kernel reads two bytes of an element and writes one; see benchmarks/tpu_kernels.py.
    each = max(CHIPS[chip].codes["stochastic"], 3 * CHIPS[chip].cycles_per_byte)
    kernels = sum(k.moved / 3 * each for k in report.after.kernels if not k.operations)
    return (report.after.cycles or 0.0) + kernels, [
        f"{s.verdict}: {s.became()}" for s in report.sites
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--chips", nargs="+", choices=tuple(CODES), default=tuple(CODES))
    parser.add_argument("--layers", nargs="+", choices=tuple(LAYERS), default=tuple(LAYERS))
    parser.add_argument("--kernels", action="store_true", help="of the products alone")
    parser.add_argument("--quick", action="store_true", help="a small layer instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    given = parser.parse_args()
    figures: dict[str, dict[str, Any]] = {}
    print(f"{'millions of cycles':<18}{'':<22}{'fprop':>8}{'dgrad':>8}{'wgrad':>8}{'sum':>8}")
    for layer in SMALL if given.quick else given.layers:
        for chip in given.chips:
            recipe, *elements = CODES[chip]
            sums: list[float] = []
            for name, pair in (("bfloat16", ("bfloat16",) * 2), (recipe, tuple(elements))):
                found = kernels(chip, pair, layer)
                each = [max(k["profile"] or 0, k["bytes"]) / 1e6 for k in found.values()]
                sums.append(sum(each))
                figures[f"{layer} {chip} {name}"] = found
                shown = "".join(f"{n:8.2f}" for n in (*each, sums[-1]))
                print(f"{layer:<10}{chip:<8}{name:<22}{shown}", flush=True)
            print(f"{'':18}products: {sums[0] / sums[1]:.2f} times as fast", flush=True)
            if given.kernels:
                continue
            cycles, entering = quantizing(chip, recipe, layer)
            figures[f"{layer} {chip} {recipe}"] |= {"quantizing": cycles, "entering": entering}
            gain = sums[0] / (sums[1] + cycles / 1e6)
            print(f"{'':18}quantizing: {cycles / 1e6:.2f}; all: {gain:.2f} times as fast")
            print(f"{'':18}{'; '.join(entering)}", flush=True)
    measuring.write_json(given.json, figures)


if __name__ == "__main__":
    main()
