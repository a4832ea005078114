"""Instructions of NVIDIA's GPUs that kernels use beyond what their compiler offers.

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
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from srjit.numerics.elements import ELEMENTS, Element
from srjit.numerics.storage import STORAGES
from srjit.targets.codes import word_of

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
        """The number of codes in 32 bits."""
        return 32 // self.bits


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


def divide(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b as IEEE 754 has it; the compilers of GPUs approximate."""
    result = jax.ShapeDtypeStruct(a.shape, jnp.float32)
    return _assembly("div.rn.f32 $0, $1, $2;", "=f,f,f", [a, b], result)


def narrow(x: jax.Array, element: Element) -> jax.Array:
    """float32 to a smaller float dtype to nearest, and back; saturating if it is E4M3."""
    return x.astype(element.name).astype(jnp.float32)  # two instructions: Triton keeps both


def nearest(values: Sequence[jax.Array], conversion: Conversion) -> jax.Array:
    """``per_word`` float32 arrays, to nearest even, as int32 words of codes; the first lowest."""
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


def stochastic(
    values: Sequence[jax.Array], conversion: Conversion, noise: Sequence[jax.Array]
) -> jax.Array:
    """The same, rounded with int32 words of noise, one for ``SHARING`` values each."""
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
