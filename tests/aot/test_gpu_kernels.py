"""NVIDIA's compilers: every stochastic quantization is one kernel with cvt.rs, and reads twice."""

import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from srjit import srjit

if importlib.util.find_spec("jax_cuda13_plugin") is None:
    pytest.skip("JAX's plugin for CUDA is not installed", allow_module_level=True)

Shape = jax.ShapeDtypeStruct
W, X = Shape((256, 384), jnp.bfloat16), Shape((512, 256), jnp.bfloat16)


def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.tanh(x @ w) ** 2)


SMALL = Shape((96, 80), jnp.bfloat16), Shape((100, 96), jnp.bfloat16)
ODD = Shape((70, 33), jnp.bfloat16), Shape((50, 70), jnp.float32)
LIBRARIES = {"fp8": "__cublas$lt$matmul$f8"}  # others, with scales of blocks: cuDNN's


@pytest.mark.crossed(1, most=1)
@pytest.mark.parametrize(
    ("chip", "recipe", "args", "instruction", "layer"),
    [
        ("b200", "nvfp4", (W, X), "cvt.rs.satfinite.e2m1x4.f32", "stablehlo"),
        pytest.param(
            *("b200", "mxfp8", (W, X), "cvt.rs.satfinite.e4m3x4.f32", "stablehlo"),
            marks=pytest.mark.nightly,
        ),
        ("b200", "nvfp4", ODD, "cvt.rs.satfinite.e2m1x4.f32", "jaxpr"),
        pytest.param(
            *("b300", "nvfp4", (W, X), "cvt.rs.satfinite.e2m1x4.f32", "jaxpr"),
            marks=pytest.mark.nightly,
        ),
        ("b200", "mxfp8", ODD, "cvt.rs.satfinite.e4m3x4.f32", "jaxpr"),
        pytest.param(
            *("b200", "mxfp4", ODD, "cvt.rs.satfinite.e2m1x4.f32", "jaxpr"),
            marks=pytest.mark.nightly,
        ),
        ("b200", "fp8", SMALL, "cvt.rs.satfinite.e5m2x4.f32", "jaxpr"),
        ("h200", "fp8", SMALL, None, "jaxpr"),
        ("rtxpro6000", "nvfp4", (W, X), None, "jaxpr"),
    ],
)
def test_every_stochastic_quantization_is_one_kernel_that_rounds_by_it(
    chip: str, recipe: str, args: Any, instruction: str | None, layer: Any
):
    report = srjit(jax.grad(loss, (0, 1)), recipe=recipe, layer=layer).aot(*args, target=chip)
    assert [(s.plan.status, s.verdict) for s in report.sites] == [("native", "native")] * 3
    libraries = {product.library for site in report.sites for product in site.cost.products}
    assert libraries == {LIBRARIES.get(recipe, "__cudnn$blockScaledDot")}
    kernels = [k for k in report.after.kernels if k.name.startswith("srjit_quantize")]
    stochastic = [k for k in kernels if "stochastic" in k.name]
    assert stochastic and len(stochastic) < len(kernels)
    for kernel in kernels:
        by_hardware = [i for i in kernel.rounds_by if i.startswith("cvt.rs")]
        assert bool(by_hardware) is (kernel in stochastic and instruction is not None)
        assert all(i.startswith(instruction or "-") for i in by_hardware)
    text = str(report)
    assert (instruction is None) is ("has no cvt.rs" in text)
    assert instruction is None or instruction in text
    assert len(stochastic) == 1  # of one gradient: codes for both of its products come together


T, D, F = 4096, 2048, 8192


def layer(x: jax.Array, w: jax.Array, g: jax.Array) -> Any:
    y, pullback = jax.vjp(jnp.dot, x, w)
    return y, *pullback(g)


def test_quantizing_a_layer_moves_little_more_than_it_has_to():
    args = [Shape(shape, jnp.bfloat16) for shape in ((T, D), (D, F), (T, F))]
    report = srjit(layer, recipe="nvfp4").aot(*args, target="b200")
    assert [s.verdict for s in report.sites] == ["native"] * 3
    program = report.after
    # The products and what makes bfloat16 of their float32, by hand.
    codes = {"x": T * D, "w": D * F, "g": T * F}
    outputs = T * F, T * D, D * F
    multiplied = 2 * sum(n // 2 + n // 16 for n in codes.values())
    converted = sum(4 * n + 4 * n + 2 * n for n in outputs)
    quantizing = program.moved - multiplied - converted
    read = 2 * 2 * sum(codes.values())  # bfloat16, once for amax and once for codes
    written = 2 * sum(n // 2 for n in codes.values()) + 2 * (T * D + T * F) // 16 + D * F // 256
    assert 1 <= quantizing / (read + written) < 1.25
    kernels = [k for k in program.kernels if k.name.startswith("srjit_quantize")]
    # x twice: its codes for wgrad are made in the backward pass, and not kept until then.
    assert len(kernels) == 4 and math.prod(k.times for k in kernels) == 1
    assert sum("cvt.rs.satfinite.e2m1x4.f32" in k.rounds_by for k in kernels) == 1
