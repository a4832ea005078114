"""Equations that may multiply matrices where srjit does not look: why they do, and how much.

Both doors read it here. What a jaxpr holds that is left alone, ``layer="stablehlo"`` lowers to a
composite that says so, since its lowering alone would not tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from srjit.products.kinds import KINDS, rules_of
from srjit.program.control_flow import HIGH_LEVEL, ControlFlow, flow_of
from srjit.program.hijax import high_level_program
from srjit.program.protocols import Equation, Program, Variable

COMPOSITE = "srjit.left_alone"  # its attributes are those of ``described``
INNER = "already rewritten by an inner srjit"
REWRITTEN = ("srjit_site", "srjit_lin")  # what an inner srjit makes of a product
KERNEL = "srjit does not look inside kernels and custom calls"
IN_COMPOSITE = "srjit does not look inside composites"
KIND = "srjit does not quantize this kind of multiplication"
# In the names of kernels, and of libraries that multiply.
KERNELS = ("pallas", "mosaic", "triton", "cudnn", "cublas", "ffi_call", "custom_call")
# Words in the names of what multiplies matrices, in JAX, in StableHLO and elsewhere.
_WORDS = frozenset(
    {
        "dot", "conv", "conv2d", "conv3d", "convolution", "matmul", "gemm", "einsum", "contract",
        "syrk", "symm", "trmm", "attention", "fmha", "mma", "wgmma",
    }
)  # fmt: skip
_NAMES = ("symmetric_product",)  # that no word tells


def named_so(name: str) -> bool:
    """True if the name of an operation or a primitive is one of a multiplication."""
    return name in _NAMES or not _WORDS.isdisjoint(name.split("_"))


def is_of_activations(name: str) -> bool:
    """True if what a primitive multiplies is no weight, by its name."""
    return "attention" in name.split("_")


def may_multiply(operands: Iterable[Variable], results: Iterable[Variable]) -> bool:
    """True if a call that nothing is known of takes a matrix of floats and returns floats."""
    matrices = (v.aval for v in operands if len(v.aval.shape) > 1)
    return any(map(_is_float, matrices)) and any(_is_float(v.aval) for v in results)


def _is_float(aval: Any) -> bool:
    return "float" in str(getattr(aval, "dtype", ""))


def why(eqn: Equation) -> str:
    """Why an equation of a jaxpr may multiply where srjit does not look; nothing if it does not."""
    name = eqn.primitive.name
    if name in REWRITTEN:
        return INNER
    if name in KINDS or flow_of(eqn) is not None:
        return ""
    inside = any(map(multiplies, _held(eqn)))
    if any(word in name for word in KERNELS):
        is_open = any(True for _ in _held(eqn))
        return KERNEL if inside or (not is_open and may_multiply(eqn.invars, eqn.outvars)) else ""
    if inside:
        return IN_COMPOSITE if name == "composite" else f"srjit does not look inside {name}"
    return KIND if named_so(name) else ""


def multiplies(program: Any) -> bool:
    """True if any product stands in a jaxpr, however deep."""
    return any(
        eqn.primitive.name in KINDS
        or bool(why(eqn))
        or any(multiplies(region.program) for region in _regions(flow_of(eqn)))
        for eqn in _opened(program).eqns
    )


def found(program: Program) -> Iterator[Equation]:
    """Yields the equations of a jaxpr that are left alone, however deep."""
    for eqn in program.eqns:
        if why(eqn):
            yield eqn
        for region in _regions(flow_of(eqn)):
            yield from found(region.program)


def flops(eqn: Equation) -> int:
    """Multiplications and additions of one execution, as far as shapes tell; otherwise 0.

    Loops of unknown length count once, and of branches the largest.
    """
    name = eqn.primitive.name
    if name in KINDS:
        return rules_of(eqn).flops(eqn)
    flow = flow_of(eqn)
    if flow is not None:
        inside = [flops_of(region.program) for region in flow.regions]
        once = max(inside) if flow.selector is not None else sum(inside)
        return once * (1 if flow.trips is None or flow.trips.length is None else flow.trips.length)
    if name in _BY_SHAPE:
        return _BY_SHAPE[name](eqn)
    cost = getattr(eqn.params.get("cost_estimate"), "flops", None)
    if cost:
        return int(cost)
    grid = getattr(eqn.params.get("grid_mapping"), "grid", ())
    return sum(map(flops_of, _held(eqn))) * math.prod(n for n in grid if isinstance(n, int))


def flops_of(program: Any) -> int:
    """Multiplications and additions of one execution of a program."""
    return sum(map(flops, _opened(program).eqns))


def described(eqn: Equation) -> dict[str, str]:
    """The attributes of the composite that stands for an equation in a module."""
    return {"primitive": eqn.primitive.name, "why": why(eqn), "flops": str(flops(eqn))}


def _regions(flow: ControlFlow | None) -> Iterable[Any]:
    return flow.regions if flow else ()


def _opened(program: Any) -> Program:
    return getattr(program, "jaxpr", program)


def _held(eqn: Equation) -> Iterator[Any]:
    """Yields all programs among the parameters of an equation."""
    params = eqn.params
    if eqn.primitive.name == HIGH_LEVEL and "_prim" in params:
        params = {"program": high_level_program(eqn)}
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(_opened(item), "eqns"):
                yield item


def _last_contracted(eqn: Equation) -> int:
    return 2 * eqn.outvars[0].aval.size * eqn.invars[0].aval.shape[-1]


def _scaled_dot(eqn: Equation) -> int:
    (contract, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2 * eqn.outvars[0].aval.size * math.prod(shape[d] for d in contract)


def _attention(eqn: Equation) -> int:
    query, key = (v.aval for v in eqn.invars[:2])  # (batch, time, heads, features)
    return 4 * query.size * key.shape[1]


# Of primitives that multiply and hold no program.
_BY_SHAPE: dict[str, Callable[[Equation], int]] = {
    "scaled_dot": _scaled_dot,
    "scaled_matmul_wrapper": _last_contracted,
    "scaled_matmul": _last_contracted,
    "symmetric_product": _last_contracted,
    "dot_product_attention_fwd_wrapper": _attention,
    "dot_product_attention_fwd": _attention,
}
