"""Instructions of NVIDIA's GPUs that kernels use, and models of them for where there are none.

``cvt.rs.satfinite`` rounds four floats with one 32-bit word of noise. NVIDIA's PTX ISA (9.7.9, cvt)
says that it adds random bits to the bits of the mantissa that are cut off, and rounds away from
zero if that carries; that the first two of its four operands share one half of the word and the
last two the other (of E2M1: the upper and the lower bytes of both halves); and where the four
codes stand in the result. It does not say how two operands share 16 bits. What is assumed here was
reported of a B200: the second of them takes the bits as they are and the first takes them in
reverse. Each value then has 16 bits, of which the upper 8 depend on nothing that the other has in
its upper 8. A chip of which that is not true rounds with the same probabilities.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from srjit.numerics.elements import ELEMENTS, Element
from srjit.numerics.rounding import round_to_grid
from srjit.numerics.storage import STORAGES
from srjit.targets.codes import float_code, word_of

_E2M1, _E4M3, _E5M2 = (ELEMENTS[name] for name in ("float4_e2m1fn", "float8_e4m3fn", "float8_e5m2"))
_PTX = {_E2M1.name: "e2m1", _E4M3.name: "e4m3", _E5M2.name: "e5m2"}
_BITS = {name: STORAGES[name].bits for name in _PTX}
SHARING = 4  # values that one word of noise is for


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The codes that values become.

    Attributes:
      element: the grid that they are rounded to.
      carrier: the element whose codes hold the results: this one, or E4M3 for E2M1.
    """

    element: Element
    carrier: Element

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return _BITS[self.carrier.name]

    @property
    def per_word(self) -> int:
        """How many codes 32 bits hold."""
        return 32 // self.bits


class Machine(NamedTuple):
    """Operations that kernels need and their compiler does not offer.

    Attributes:
      divide: of float32, as IEEE 754 has it; the compilers of GPUs approximate.
      narrow: float32 to a smaller float dtype to nearest, and back; saturating if it is E4M3.
      nearest: ``per_word`` float32 arrays, rounded to nearest even, as int32 words of codes; the
        first stands lowest.
      stochastic: the same, rounded with int32 words of noise, one for ``SHARING`` values each.
    """

    divide: Callable[[jax.Array, jax.Array], jax.Array]
    narrow: Callable[[jax.Array, Element], jax.Array]
    nearest: Callable[[Sequence[jax.Array], Conversion], jax.Array]
    stochastic: Callable[[Sequence[jax.Array], Conversion, Sequence[jax.Array]], jax.Array]


def packed(codes: Sequence[jax.Array], conversion: Conversion) -> jax.Array:
    """int32 codes of the element, ``per_word`` of them, as words of codes of the carrier."""
    if conversion.carrier != conversion.element:
        codes = [_e4m3_of_e2m1(code) for code in codes]
    word = codes[0]
    for i, code in enumerate(codes[1:], 1):
        word |= code << i * conversion.bits
    return word


def signed(y: jax.Array, code: jax.Array, element: Element) -> jax.Array:
    """A code with the sign of y."""
    at = _BITS[element.name] - 1
    return code | (word_of(y) >> 31 - at & 1 << at)


def _e4m3_of_e2m1(code: jax.Array) -> jax.Array:
    magnitude = code & 7
    normal = jnp.where(magnitude > 1, (magnitude << 2) + 0x30, magnitude * 0x30)
    return normal | (code & 8) << 4


# --------------------------------------------------------------------------------- the instructions


def _divide(a: jax.Array, b: jax.Array) -> jax.Array:
    result = jax.ShapeDtypeStruct(a.shape, jnp.float32)
    return _assembly("div.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], result)


def _narrow(x: jax.Array, element: Element) -> jax.Array:
    return x.astype(element.name).astype(jnp.float32)  # two instructions: Triton keeps both


def _convert_nearest(values: Sequence[jax.Array], conversion: Conversion) -> jax.Array:
    kind = _PTX[conversion.element.name]
    pairs = range(1, len(values), 2)
    if kind == "e2m1":
        names = [f"b{i}" for i in range(len(pairs))]
        lines = [f".reg .b8 {', '.join(names)};"]
    else:
        names = ["lo", "hi"]
        lines = [".reg .b16 lo, hi;"]
    for name, i in zip(names, pairs, strict=True):
        lines.append(f"cvt.rn.satfinite.{kind}x2.f32 {name}, ${i + 1}, ${i};")
    return _words(lines, names, values, [], conversion)


def _convert_stochastically(
    values: Sequence[jax.Array], conversion: Conversion, noise: Sequence[jax.Array]
) -> jax.Array:
    kind, count = _PTX[conversion.element.name], len(values)
    fours = [", ".join(f"${i + k}" for k in (4, 3, 2, 1)) for i in range(0, count, SHARING)]
    rounds = f"cvt.rs.satfinite.{kind}x4.f32"
    if kind != "e2m1":
        lines = [f"{rounds} $0, {{{fours[0]}}}, $5;"]
        return _words(lines, [], values, noise, conversion)
    names = ["lo", "hi"][: len(fours)]
    lines = [f".reg .b16 {', '.join(names)};"]
    for i, (name, four) in enumerate(zip(names, fours, strict=True)):
        lines.append(f"{rounds} {name}, {{{four}}}, ${count + 1 + i};")
    if conversion.carrier != conversion.element:
        lines += [".reg .b8 b0, b1;", "mov.b16 {b0, b1}, lo;"]
        names = ["b0", "b1"]
    return _words(lines, names, values, noise, conversion)


def _words(
    lines: list[str],
    names: list[str],
    values: Sequence[jax.Array],
    noise: Sequence[jax.Array],
    conversion: Conversion,
) -> jax.Array:
    """Lines of assembly, and then what makes a word of the registers that they leave codes in."""
    if conversion.carrier != conversion.element:  # by way of float16, which has both
        lines.append(".reg .b32 h0, h1; .reg .b16 c0, c1;")
        for i, name in enumerate(names):
            lines.append(f"cvt.rn.f16x2.e2m1x2 h{i}, {name};")
            lines.append(f"cvt.rn.satfinite.e4m3x2.f16x2 c{i}, h{i};")
        names = ["c0", "c1"]
    if names:
        lines.append(f"mov.b32 $0, {{{', '.join(names)}}};")
    constraints = ",".join(["=r", *["f"] * len(values), *["r"] * len(noise)])
    result = jax.ShapeDtypeStruct(values[0].shape, jnp.int32)
    return _assembly("{ " + " ".join(lines) + " }", constraints, [*values, *noise], result)


def _assembly(text: str, constraints: str, args: Sequence[jax.Array], result: Any) -> jax.Array:
    (out,) = plgpu.elementwise_inline_asm(
        text, args=list(args), constraints=constraints, pack=1, result_shape_dtypes=[result]
    )
    return out


PTX = Machine(_divide, _narrow, _convert_nearest, _convert_stochastically)


# ------------------------------------------------------------------------------------- their models


def _model_divide(a: jax.Array, b: jax.Array) -> jax.Array:
    return a / jnp.where(jnp.isnan(a), a, b)  # by a constant, XLA would multiply


def _model_nearest(values: Sequence[jax.Array], conversion: Conversion) -> jax.Array:
    element = conversion.element
    codes = [_or_nan(y, float_code(y, element, None), element) for y in values]
    return packed(codes, conversion)


def _model_stochastic(
    values: Sequence[jax.Array], conversion: Conversion, noise: Sequence[jax.Array]
) -> jax.Array:
    element = conversion.element
    fields = [field for word in noise for field in noise_fields(word, element)]
    codes = [
        _or_nan(y, carried_code(y, field, element), element)
        for y, field in zip(values, fields, strict=True)
    ]
    return packed(codes, conversion)


def _or_nan(y: jax.Array, code: jax.Array, element: Element) -> jax.Array:
    nan = (1 << _BITS[element.name] - 1) - 1  # E2M1 has none: it saturates
    return jnp.where(jnp.isnan(y), nan, signed(y, code, element))


def noise_fields(word: jax.Array, element: Element) -> list[jax.Array]:
    """The 16 bits that each of four values takes of an int32 word of noise, as int32.

    The values are in the order in which memory has their codes: the reverse of the operands'.
    """
    if _BITS[element.name] == 8:
        low, high = word & 0xFFFF, word >> 16 & 0xFFFF
    else:
        low, high = (word >> 8 & 0xFF00 | word & 0xFF), (word >> 16 & 0xFF00 | word >> 8 & 0xFF)
    return [low, _reversed(low), high, _reversed(high)]


def _reversed(field: jax.Array) -> jax.Array:
    for shift, mask in ((1, 0x5555), (2, 0x3333), (4, 0x0F0F), (8, 0x00FF)):
        field = (field >> shift & mask) | (field & mask) << shift
    return field


def carried_code(y: jax.Array, field: jax.Array, element: Element) -> jax.Array:
    """The code, without its sign, that 16 bits of noise give: up if adding them carries.

    Args:
      y: float32; NaN is none of this function's.
      field: int32.
      element: the grid.
    """
    m = element.mantissa_bits
    assert m is not None
    word = word_of(y) & 0x7FFFFFFF
    smallest = element.min_exponent + 127
    exponent = word >> 23
    base = jnp.maximum(exponent, smallest)
    significand = jnp.where(exponent > 0, word & 0x7FFFFF | 0x800000, 0)
    units = significand >> jnp.minimum(7 - m + base - exponent, 31)  # of 2^-16 of a step
    code = (base - smallest << m) + (units + field >> 16)
    largest = float_code(jnp.float32(element.max), element, None)
    return jnp.where(exponent >= element.max_exponent + 128, largest, jnp.minimum(code, largest))


MODEL = Machine(_model_divide, round_to_grid, _model_nearest, _model_stochastic)
