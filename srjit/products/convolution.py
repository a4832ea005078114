"""Convolutions: ``conv_general_dilated``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jax import lax

from srjit.products.dot import precision_of
from srjit.products.kinds import OperandTypes, PrimitiveCall, Rules
from srjit.products.product import PrimitiveProduct, bound


def _product(primitive: Any, params: dict[str, Any], ranks: tuple[int, ...]) -> PrimitiveProduct:
    """Blocks run along the feature, or along the batch for the gradient of a kernel."""
    lhs, rhs, out = params["dimension_numbers"]
    plain = params["feature_group_count"] == params["batch_group_count"] == 1
    pairs = (lhs[1], rhs[1]), (out[1], rhs[0]), (lhs[0], out[0])
    return PrimitiveProduct(primitive, tuple(sorted(params.items())), pairs, (plain,) * 3)


def _flops(eqn: Any) -> int:
    kernel = eqn.invars[1].aval
    features = max(kernel.shape[eqn.params["dimension_numbers"].rhs_spec[0]], 1)
    return 2 * eqn.outvars[0].aval.size * kernel.size // features


def _extents(eqn: Any) -> tuple[int, int, int]:
    params, kernel = eqn.params, eqn.invars[1].aval
    features = max(kernel.shape[params["dimension_numbers"].rhs_spec[0]], 1)
    groups = params["feature_group_count"] * params["batch_group_count"]
    return eqn.outvars[0].aval.size // features, features // groups, kernel.size // features


def _equation(attributes: Mapping[str, Any], operands: OperandTypes, dtype: Any) -> PrimitiveCall:
    window = len(operands[0][0]) - 2
    if any(attributes.get("window_reversal", ())):
        raise ValueError("a reversed window")
    ones = (1,) * window
    padding = attributes.get("padding", (0,) * 2 * window)
    return bound(
        lax.conv_general_dilated,
        tuple((shape, dtype) for shape, _ in operands),
        window_strides=attributes.get("window_strides", ones),
        padding=tuple(zip(padding[::2], padding[1::2], strict=True)),
        lhs_dilation=attributes.get("lhs_dilation", ones),
        rhs_dilation=attributes.get("rhs_dilation", ones),
        dimension_numbers=lax.ConvDimensionNumbers(*attributes["dimension_numbers"]),
        feature_group_count=attributes["feature_group_count"],
        batch_group_count=attributes["batch_group_count"],
        precision=precision_of(attributes),
        preferred_element_type=dtype,
    )


RULES = Rules(product=_product, flops=_flops, extents=_extents, equation=_equation)
