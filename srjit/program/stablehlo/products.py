"""Matrix multiplications of a module as the JAX equations that they were lowered from."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from srjit._mlir import ir, stablehlo
from srjit.products import kinds
from srjit.products.kinds import OperandTypes, PrimitiveCall
from srjit.program.stablehlo import operations

# Element types by MLIR's text; ml_dtypes has those that NumPy lacks.
_DTYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f8E4M3FN": "float8_e4m3fn",
    "f8E5M2": "float8_e5m2",
    "f8E4M3": "float8_e4m3",
    "f8E3M4": "float8_e3m4",
    "f8E4M3B11FNUZ": "float8_e4m3b11fnuz",
    "f8E4M3FNUZ": "float8_e4m3fnuz",
    "f8E5M2FNUZ": "float8_e5m2fnuz",
    "f8E8M0FNU": "float8_e8m0fnu",
    "f4E2M1FN": "float4_e2m1fn",
    "complex<f32>": "complex64",
    "complex<f64>": "complex128",
    "i1": "bool",
    **{f"{prefix}{bits}": f"{name}{bits}" for prefix, name in (("i", "int"), ("ui", "uint"))
       for bits in (2, 4, 8, 16, 32, 64)},
}  # fmt: skip


def dtype_of(element_type: Any) -> Any:
    """The NumPy dtype of an MLIR element type, or its text where NumPy has none."""
    return _dtype(str(element_type))


@functools.cache
def _dtype(text: str) -> Any:
    import ml_dtypes

    name = _DTYPES.get(text)
    if name is None:
        return text
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)


def element_type_of(dtype: Any) -> str:
    """MLIR's text for the element type of a NumPy dtype."""
    name = np.dtype(dtype).name
    return next(text for text, known in _DTYPES.items() if known == name)


class Attributes(Mapping[str, Any]):
    """Attributes of an operation by name, as Python has such values: converted where read."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def __getitem__(self, name: str) -> Any:
        return _as_python(self._given[name])

    def __contains__(self, name: object) -> bool:
        return name in self._given

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


def _as_python(attribute: Any) -> Any:
    for kind, convert in _CONVERSIONS:
        try:
            return convert(kind(attribute))
        except ValueError:
            continue
    raise ValueError(f"srjit does not read attributes like {attribute}")


def _integers(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(map(int, values))


# For each class of attribute, what it holds.
_CONVERSIONS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (ir.DenseI64ArrayAttr, _integers),
    (ir.DenseBoolArrayAttr, _integers),
    (ir.DenseIntElementsAttr, _integers),
    (ir.IntegerAttr, lambda a: a.value),
    (ir.StringAttr, lambda a: a.value),
    (stablehlo.PrecisionAttr, lambda a: a.value),
    (ir.ArrayAttr, lambda a: tuple(map(_as_python, a))),
    (ir.DictAttr, Attributes),
    (
        stablehlo.DotDimensionNumbers,
        lambda d: (
            (tuple(d.lhs_contracting_dimensions), tuple(d.rhs_contracting_dimensions)),
            (tuple(d.lhs_batching_dimensions), tuple(d.rhs_batching_dimensions)),
        ),
    ),
    (
        stablehlo.ConvDimensionNumbers,
        lambda d: (
            (d.input_batch_dimension, d.input_feature_dimension, *d.input_spatial_dimensions),
            (
                d.kernel_output_feature_dimension,
                d.kernel_input_feature_dimension,
                *d.kernel_spatial_dimensions,
            ),
            (d.output_batch_dimension, d.output_feature_dimension, *d.output_spatial_dimensions),
        ),
    ),
)


def equation_of(op: Any) -> PrimitiveCall | str:
    """The JAX primitive and parameters of a multiplication, or why there is none.

    Args:
      op: an operation, or a composite, that the table of products knows.
    """
    for value in (*op.operands, *op.results):
        kind = value.type
        if not isinstance(kind, ir.RankedTensorType):
            return f"{kind}: only tensors of known rank are quantized"
        if not kind.has_static_shape:
            return (
                f"{kind}: only tensors of static shape are quantized in modules; srjit() itself "
                "takes symbolic shapes: export what it returns"
            )
        if isinstance(dtype_of(kind.element_type), str):
            return f"{kind}: only floating-point products are quantized"
        if kind.encoding is not None:
            return f"{kind}: tensors with an encoding are left alone"
    operands = tuple((tuple(v.type.shape), dtype_of(v.type.element_type)) for v in op.operands)
    dtype = dtype_of(op.results[0].type.element_type)
    name = operations.text(op, "name") if op.name == "stablehlo.composite" else op.name
    try:
        return equation_from(name, Attributes(op.attributes), operands, dtype)
    except (TypeError, ValueError, LookupError) as error:
        return f"JAX has no such product: {str(error).partition(chr(10))[0]}"


def equation_from(
    name: str, attributes: Mapping[str, Any], operands: OperandTypes, dtype: Any
) -> PrimitiveCall:
    """The JAX primitive and parameters of a multiplication.

    Args:
      name: of the operation, or of the composite.
      attributes: its own.
      operands: shapes and dtypes.
      dtype: of the result.

    Raises:
      LookupError: srjit knows no such product.
    """
    kind = kinds.of_operation(name)
    if kind is None or kind.rules.equation is None:
        raise LookupError(f"{name} is no product that srjit knows")
    return kind.rules.equation(attributes, operands, dtype)
