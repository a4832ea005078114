"""Modules that name nothing have the roles that names tell: the backward pass is found."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import jax
import pytest

from planning import programs
from planning import test_roles_from_structure as structure
from small_programs import PARAMS, X, explain, normal
from srjit import passes
from srjit.passes.report import report_of

from . import corpus

PIPELINE = (
    "srjit-eliminate-dead-code,srjit-annotate-matmuls{{params={}}},"
    "srjit-insert-quantize{{recipe=int8}}"
)

# A training step as another producer writes it: no name says what is a gradient.
STEP = """
func.func @main(%w1: tensor<32x64xf32>, %w2: tensor<64x8xf32>, %x: tensor<16x32xf32>,
    %y: tensor<16x8xf32>) -> (tensor<32x64xf32>, tensor<64x8xf32>) {
  %h = stablehlo.dot %x, %w1 : (tensor<16x32xf32>, tensor<32x64xf32>) -> tensor<16x64xf32>
  %a = stablehlo.tanh %h : tensor<16x64xf32>
  %o = stablehlo.dot %a, %w2 : (tensor<16x64xf32>, tensor<64x8xf32>) -> tensor<16x8xf32>
  %e = stablehlo.subtract %o, %y : tensor<16x8xf32>
  %at = stablehlo.transpose %a, dims = [1, 0] : (tensor<16x64xf32>) -> tensor<64x16xf32>
  %g = stablehlo.dot %at, %e : (tensor<64x16xf32>, tensor<16x8xf32>) -> tensor<64x8xf32>
  %d1 = stablehlo.dot_general %e, %w2, contracting_dims = [1] x [1]
    : (tensor<16x8xf32>, tensor<64x8xf32>) -> tensor<16x64xf32>
  %d2 = stablehlo.multiply %d1, %a : tensor<16x64xf32>
  %g2 = stablehlo.dot_general %x, %d2, contracting_dims = [0] x [0]
    : (tensor<16x32xf32>, tensor<16x64xf32>) -> tensor<32x64xf32>
  %n1 = stablehlo.subtract %w1, %g2 : tensor<32x64xf32>
  %n2 = stablehlo.subtract %w2, %g : tensor<64x8xf32>
  return %n1, %n2 : tensor<32x64xf32>, tensor<64x8xf32>
}
"""

# The decoder of an autoencoder has the encoder's weight, and looks like its gradient.
TIED = """
func.func @main(%w: tensor<32x8xf32>, %x: tensor<16x32xf32>) -> tensor<16x32xf32> {
  %h = stablehlo.dot %x, %w : (tensor<16x32xf32>, tensor<32x8xf32>) -> tensor<16x8xf32>
  %y = stablehlo.dot_general %h, %w, contracting_dims = [1] x [1]
    : (tensor<16x8xf32>, tensor<32x8xf32>) -> tensor<16x32xf32>
  return %y : tensor<16x32xf32>
}
"""

# Statistics of activations: shaped as a weight, and no gradient.
COVARIANCE = """
func.func @main(%w: tensor<32x32xf32>, %x: tensor<16x32xf32>) -> tensor<32x32xf32> {
  %h = stablehlo.dot %x, %w : (tensor<16x32xf32>, tensor<32x32xf32>) -> tensor<16x32xf32>
  %c = stablehlo.dot_general %x, %x, contracting_dims = [0] x [0]
    : (tensor<16x32xf32>, tensor<16x32xf32>) -> tensor<32x32xf32>
  %d = stablehlo.dot_general %h, %h, contracting_dims = [0] x [0]
    : (tensor<16x32xf32>, tensor<16x32xf32>) -> tensor<32x32xf32>
  %s = stablehlo.add %c, %d : tensor<32x32xf32>
  return %s : tensor<32x32xf32>
}
"""


def _report(text: str, params: str) -> Any:
    module = corpus.parsed(text)
    passes.parse(PIPELINE.format(params)).run(module)
    return report_of(module.operation)


def _found(report: Any) -> list[tuple[str, str, str, str]]:
    return [(s.role, s.lhs_kind, s.rhs_kind, s.status) for s in report.sites]


def test_a_step_of_another_producer_has_its_roles():
    report = _report(STEP, "0-1")
    forward = ("fprop", "activation", "weight", "emulated")
    wgrad = ("wgrad", "activation", "gradient", "emulated")
    assert _found(report) == [
        forward, forward, wgrad, ("dgrad", "gradient", "weight", "emulated"), wgrad,
    ]  # fmt: skip
    for site in report.sites:
        for kind, spec in ((site.lhs_kind, site.lhs), (site.rhs_kind, site.rhs)):
            assert spec.rounding == ("stochastic" if kind == "gradient" else "nearest")


@pytest.mark.parametrize("text", [TIED, COVARIANCE], ids=["a tied decoder", "covariances"])
def test_a_forward_pass_has_no_gradients(text: str):
    assert {role for role, *_ in _found(_report(text, "0"))} == {"fprop"}


CASES = {name: case[:2] for name, case in programs.CASES.items()} | {
    "two readers": (jax.grad(structure._disentangled), structure.DISENTANGLED),
    "a tied decoder, trained": (
        jax.grad(lambda w, x: ((x @ w @ w.T - x) ** 2).mean()),
        (normal(6, 4), normal(3, 6)),
    ),
    "MAML": (jax.grad(structure._adapted), programs.STEP),
    "a Hessian by two backward passes": (structure._hessian_vector, (PARAMS, *programs.STEP)),
    "a Hessian, forward over reverse": (
        structure._forward_over_reverse,
        (PARAMS, *programs.STEP),
    ),
    "forces": (jax.grad(structure._forces), structure.FORCES),
    "a tangent kernel": (structure._tangent_kernel, (PARAMS, X)),
    **{
        f"a backward loop, {rule.__name__}": (
            jax.grad(structure._solver(rule)),
            (structure.FIELD, normal(3, structure.D)),
        )
        for rule in (structure._recursive, structure._reversed, structure._stacked)
    },
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_roles_are_the_same_without_locations(name: str):
    fun, args = CASES[name]
    count = len(jax.tree.leaves(args[0]))
    text = jax.jit(lambda *a: fun(*a), keep_unused=True).lower(*args).as_text()
    assert "jvp" not in text
    counted = lambda report: collections.Counter(  # noqa: E731
        (s.role, *sorted([s.lhs_kind, s.rhs_kind]), s.op, s.flops) for s in report.sites
    )
    assert counted(_report(text, f"0-{count - 1}")) == counted(explain(fun, *args))


# What PyTorch's own differentiation wrote of training steps in PyTorch, lowered by torchax: a
# two-layer perceptron, and a block of attention and a perceptron. In the order of the modules.
OF_A_LAYER = ["dgrad gradient weight", "wgrad gradient activation"]
OF_ATTENTION = ["dgrad activation gradient", "dgrad gradient activation"]
FORWARD, SCORES = "fprop activation weight", "fprop activation activation"
TORCH = {
    "mlp": (4, [FORWARD] * 2 + OF_A_LAYER + ["wgrad gradient activation"]),
    "attention": (
        8,
        [
            *(FORWARD, SCORES, SCORES, FORWARD, FORWARD, FORWARD),
            *(*OF_A_LAYER * 3, *OF_ATTENTION * 2, *OF_A_LAYER[::-1]),
        ],
    ),
}


@pytest.mark.parametrize("name", TORCH)
def test_steps_of_pytorch_have_their_roles(name: str):
    parameters, expected = TORCH[name]
    text = (Path(__file__).parent / "texts" / f"torch_{name}.mlir").read_text(encoding="utf-8")
    sites = _report(text, f"0-{parameters - 1}").sites
    assert [f"{s.role} {s.lhs_kind} {s.rhs_kind}" for s in sites] == expected
