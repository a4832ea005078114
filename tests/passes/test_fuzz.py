"""Generated modules go through all passes: nothing crashes, and what comes out is valid."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from srjit import passes
from srjit._mlir import ir, new_context

PIPELINES = [
    "srjit-eliminate-dead-code,srjit-annotate-matmuls,srjit-insert-quantize{recipe=RECIPE},"
    "srjit-share-quantized,srjit-legalize{target=portable},srjit-strip-annotations",
    "srjit-inline-calls,srjit-annotate-matmuls,srjit-insert-quantize{recipe=RECIPE},cse,"
    "srjit-legalize{target=cpu}",
]
TYPE = "tensor<4x4xf32>"
BACKWARD = 'loc("jit(f)/transpose(jvp())/srjit.role=dgrad;gradient=0/dot_general")'


@st.composite
def bodies(draw: st.DrawFn, values: tuple[str, ...], functions: int, depth: int) -> str:
    """Operations on some 4x4 matrices that end in ``%last``."""
    lines: list[str] = []
    known = list(values)
    for i in range(draw(st.integers(1, 4))):
        a, b = draw(st.sampled_from(known)), draw(st.sampled_from(known))
        name = f"%v{depth}_{i}"
        kind = draw(st.sampled_from(["dot", "gradient", "tanh", "add", "call", "while", "case"]))
        if kind in ("dot", "gradient"):
            where = BACKWARD if kind == "gradient" else ""
            lines.append(
                f"{name} = stablehlo.dot_general {a}, {b}, contracting_dims = [1] x [0] : "
                f"({TYPE}, {TYPE}) -> {TYPE} {where}"
            )
        elif kind == "call" and functions:
            callee = draw(st.integers(0, functions - 1))
            lines.append(f"{name} = func.call @f{callee}({a}, {b}) : ({TYPE}, {TYPE}) -> {TYPE}")
        elif kind in ("while", "case") and depth < 2:
            lines += _region(draw, kind, name, a, b, functions, depth)
        elif kind == "add":
            lines.append(f"{name} = stablehlo.add {a}, {b} : {TYPE}")
        else:
            lines.append(f"{name} = stablehlo.tanh {a} : {TYPE}")
        known.append(name)
    return "\n".join([*lines, f"%last{depth} = stablehlo.tanh {known[-1]} : {TYPE}"])


def _region(
    draw: st.DrawFn, kind: str, name: str, a: str, b: str, functions: int, depth: int
) -> list[str]:
    inner = depth + 1
    if kind == "case":
        index = f"{name}_i = stablehlo.constant dense<1> : tensor<i32>"
        body = draw(bodies((a, b), functions, inner))
        end = f"stablehlo.return %last{inner} : {TYPE}"
        branches = f"({{\n{body}\n{end}\n}}, {{\nstablehlo.return {b} : {TYPE}\n}})"
        return [index, f'{name} = "stablehlo.case"({name}_i) {branches} : (tensor<i32>) -> {TYPE}']
    step = draw(st.integers(1, 2))  # by 2 it is no scan's trip count
    counter, carried = f"%i{inner}{name[1:]}", f"%c{inner}{name[1:]}"
    body = draw(bodies((carried, b), functions, inner))
    return [
        f"{name}_z = stablehlo.constant dense<0> : tensor<i32>",
        f"{name}_n = stablehlo.constant dense<3> : tensor<i32>",
        f"{name}_s = stablehlo.constant dense<{step}> : tensor<i32>",
        f"{name}_r:2 = stablehlo.while({counter} = {name}_z, {carried} = {a}) "
        f": tensor<i32>, {TYPE}",
        "cond {",
        f"%p = stablehlo.compare LT, {counter}, {name}_n "
        ": (tensor<i32>, tensor<i32>) -> tensor<i1>",
        "stablehlo.return %p : tensor<i1>",
        "} do {",
        body,
        f"%j = stablehlo.add {counter}, {name}_s : tensor<i32>",
        f"stablehlo.return %j, %last{inner} : tensor<i32>, {TYPE}",
        "}",
        f"{name} = stablehlo.tanh {name}_r#1 : {TYPE}",
    ]


@st.composite
def modules(draw: st.DrawFn) -> str:
    """A main function, and others that call those before them."""
    count = draw(st.integers(0, 3))
    parts = [
        f"func.func {draw(st.sampled_from(['private', 'public']))} @f{i}(%a: {TYPE}, %b: {TYPE}) "
        f"-> {TYPE} {{\n{draw(bodies(('%a', '%b'), i, 0))}\nreturn %last0 : {TYPE}\n}}"
        for i in range(count)
    ]
    main = draw(bodies(("%a", "%b"), count, 0))
    head = f"func.func @main(%a: {TYPE}, %b: {TYPE}) -> {TYPE} {{"
    return "\n".join([*parts, f"{head}\n{main}\nreturn %last0 : {TYPE}\n}}"])


@pytest.mark.parametrize("recipe", ["int8", "nvfp4", "fp8-delayed"])
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(text=modules())
def test_generated_modules_come_out_valid(recipe: str, text: str):
    for pipeline in PIPELINES:
        with new_context() as context, ir.Location.unknown():
            module = ir.Module.parse(text, context)
            passes.parse(pipeline.replace("RECIPE", recipe)).run(module)
            assert module.operation.verify()
            ir.Module.parse(str(module), context)
