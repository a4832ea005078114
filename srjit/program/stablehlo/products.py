"""Matrix multiplications of a module as the JAX equations that they were lowered from."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from srjit._mlir import ir, stablehlo

# Element types by MLIR's text; ml_dtypes has those that NumPy lacks.
_DTYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f8E4M3FN": "float8_e4m3fn",
    "f8E5M2": "float8_e5m2",
    "f8E8M0FNU": "float8_e8m0fnu",
    "f4E2M1FN": "float4_e2m1fn",
    "complex<f32>": "complex64",
    "complex<f64>": "complex128",
    "i1": "bool",
    **{f"{prefix}{bits}": f"{name}{bits}" for prefix, name in (("i", "int"), ("ui", "uint"))
       for bits in (2, 4, 8, 16, 32, 64)},
}  # fmt: skip
RAGGED = "srjit.ragged_dot"
# The attributes of multiplications that say what is multiplied.
_READ = (
    "dot_dimension_numbers", "precision_config", "algorithm", "dimension_numbers", "window_strides",
    "padding", "lhs_dilation", "rhs_dilation", "window_reversal", "feature_group_count",
    "batch_group_count", "composite_attributes",
)  # fmt: skip
_RAGGED_FIELDS = (
    "lhs_contracting", "rhs_contracting", "lhs_batch", "rhs_batch", "lhs_ragged", "rhs_group",
)  # fmt: skip


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


Signature = tuple[tuple[tuple[int, ...], Any], ...]
Equation = tuple[Any, dict[str, Any]]


def equation_of(op: Any) -> Equation | str:
    """The JAX primitive and parameters of a multiplication, or why there is none.

    Args:
      op: a ``stablehlo.dot_general``, ``dot`` or ``convolution``, or a composite of ours.
    """
    for value in (*op.operands, *op.results):
        kind = value.type
        if not isinstance(kind, ir.RankedTensorType):
            return f"{kind}: only tensors of known rank are quantized"
        if not kind.has_static_shape:
            return f"{kind}: only tensors of static shape are quantized"
        if isinstance(dtype_of(kind.element_type), str):
            return f"{kind}: only floating-point products are quantized"
        if kind.encoding is not None:
            return f"{kind}: tensors with an encoding are left alone"
    given = {name: op.attributes[name] for name in _READ if name in op.attributes}
    if "window_reversal" in given and any(_integers(given["window_reversal"])):
        return "a convolution with a reversed window: JAX has none"
    operands = tuple((tuple(v.type.shape), dtype_of(v.type.element_type)) for v in op.operands)
    try:
        name = RAGGED if op.name == "stablehlo.composite" else op.name
        return equation_from(name, given, operands, dtype_of(op.results[0].type.element_type))
    except (TypeError, ValueError, LookupError) as error:
        return f"JAX has no such product: {str(error).partition(chr(10))[0]}"


def equation_from(
    name: str, attributes: dict[str, Any], operands: Signature, dtype: Any
) -> Equation:
    """The JAX primitive and parameters of a multiplication.

    Args:
      name: of the operation, or of the composite ``srjit.ragged_dot``.
      attributes: its own.
      operands: shapes and dtypes.
      dtype: of the result.
    """
    if name in ("stablehlo.dot_general", "stablehlo.dot"):
        return _dot(attributes, len(operands[0][0]))
    if name == "stablehlo.convolution":
        return _convolution(attributes, operands, dtype)
    given = ir.DictAttr(attributes["composite_attributes"])
    numbers = tuple(_integers(given[field]) for field in _RAGGED_FIELDS)
    return _ragged_equation(operands, numbers, dtype)


def _dot(attributes: dict[str, Any], rank: int) -> Equation:
    from jax import lax

    numbers = (((rank - 1,), (0,)), ((), ()))
    if "dot_dimension_numbers" in attributes:
        d = stablehlo.DotDimensionNumbers(attributes["dot_dimension_numbers"])
        numbers = (
            (tuple(d.lhs_contracting_dimensions), tuple(d.rhs_contracting_dimensions)),
            (tuple(d.lhs_batching_dimensions), tuple(d.rhs_batching_dimensions)),
        )
    precision = _precision(attributes)
    return lax.dot_general_p, {"dimension_numbers": numbers, "precision": precision}


def _convolution(attributes: dict[str, Any], operands: Signature, dtype: Any) -> Equation:
    d = stablehlo.ConvDimensionNumbers(attributes["dimension_numbers"])
    rank = len(operands[0][0])
    ones = (1,) * (rank - 2)

    def numbers(name: str) -> tuple[int, ...]:
        return _integers(attributes[name]) if name in attributes else ones

    padding = ((0, 0),) * (rank - 2)
    if "padding" in attributes:
        flat = [int(v) for v in ir.DenseIntElementsAttr(attributes["padding"])]
        padding = tuple(zip(flat[::2], flat[1::2], strict=True))
    return _conv_equation(
        operands,
        numbers("window_strides"),
        padding,
        numbers("lhs_dilation"),
        numbers("rhs_dilation"),
        (
            (d.input_batch_dimension, d.input_feature_dimension, *d.input_spatial_dimensions),
            (
                d.kernel_output_feature_dimension,
                d.kernel_input_feature_dimension,
                *d.kernel_spatial_dimensions,
            ),
            (d.output_batch_dimension, d.output_feature_dimension, *d.output_spatial_dimensions),
        ),
        ir.IntegerAttr(attributes["feature_group_count"]).value,
        ir.IntegerAttr(attributes["batch_group_count"]).value,
        _precision(attributes),
        dtype,
    )


@functools.lru_cache(maxsize=1024)
def _conv_equation(
    operands: Any,
    strides: tuple[int, ...],
    padding: Any,
    lhs_dilation: tuple[int, ...],
    rhs_dilation: tuple[int, ...],
    dimension_numbers: Any,
    feature_groups: int,
    batch_groups: int,
    precision: Any,
    dtype: Any,
) -> tuple[Any, dict[str, Any]]:
    from jax import lax

    def conv(x: Any, w: Any) -> Any:
        return lax.conv_general_dilated(
            x, w, strides, padding, lhs_dilation, rhs_dilation,
            lax.ConvDimensionNumbers(*dimension_numbers),
            feature_groups, batch_groups, precision, dtype,
        )  # fmt: skip

    return _traced(conv, *((shape, dtype) for shape, _ in operands))


def ragged_attributes(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """The composite attributes that ``equation_from`` reads the primitive's parameters from."""
    numbers = params["ragged_dot_dimension_numbers"]
    contracting, batch = numbers.dot_dimension_numbers
    values = (*contracting, *batch, numbers.lhs_ragged_dimensions, numbers.rhs_group_dimensions)
    return {
        name: np.asarray(value, np.int64)
        for name, value in zip(_RAGGED_FIELDS, values, strict=True)
    }


@functools.lru_cache(maxsize=1024)
def _ragged_equation(operands: Any, numbers: Any, dtype: Any) -> tuple[Any, dict[str, Any]]:
    from jax import lax

    lc, rc, lb, rb, ragged, group = numbers
    dimension_numbers = lax.RaggedDotDimensionNumbers(((lc, rc), (lb, rb)), ragged, group)

    def product(x: Any, w: Any, sizes: Any) -> Any:
        return lax.ragged_dot_general(x, w, sizes, dimension_numbers, preferred_element_type=dtype)

    floats = ((shape, dtype) for shape, _ in operands[:2])
    return _traced(product, *floats, operands[2])


def _traced(fun: Any, *operands: Any) -> tuple[Any, dict[str, Any]]:
    """The primitive and all parameters, those of this JAX version too, that a function binds."""
    import jax

    with jax.enable_x64(True):
        structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in operands]
        eqns = jax.make_jaxpr(fun)(*structs).eqns
    if len(eqns) != 1:
        raise ValueError("its operands or its result are of other types than JAX's")
    return eqns[0].primitive, dict(eqns[0].params)


def _precision(attributes: dict[str, Any]) -> Any:
    """As JAX has it: None, or one for each operand."""
    from jax import lax

    if "precision_config" not in attributes:
        return None
    found = [str(a) for a in ir.ArrayAttr(attributes["precision_config"])]
    both = tuple(getattr(lax.Precision, a.split()[-1].rstrip(">")) for a in found)
    return None if set(both) <= {lax.Precision.DEFAULT} else both


def _integers(attribute: Any) -> tuple[int, ...]:
    """A dense array, or a dense tensor, of integers or booleans."""
    for kind in (ir.DenseI64ArrayAttr, ir.DenseBoolArrayAttr, ir.DenseIntElementsAttr):
        try:
            return tuple(int(v) for v in kind(attribute))
        except ValueError:
            continue
    return tuple(ir.IntegerAttr(a).value for a in ir.ArrayAttr(attribute))
