"""Random programs through the passes: no crash, valid, and the same numbers whichever way.

``SRJIT_FUZZ=2000`` tries that many programs, others at every run; CI tries the same few.
"""

from __future__ import annotations

import os
import random
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import srjit
from srjit import passes, recipes
from srjit.passes.annotate_matmuls import AnnotateMatmuls
from srjit.passes.insert_quantize import InsertQuantize

from . import corpus

EXAMPLES = int(os.environ.get("SRJIT_FUZZ", "12"))
N = 8
_MESH = 'sdy.mesh @mesh = <["x"=2, "y"=2]>\n'


class Writer:
    """Writes one random program: every value a square matrix, so that anything fits anything.

    The first of all values is, in every block, a weight.
    """

    def __init__(self, seed: int, size: int, *, is_portable: bool) -> None:
        self.random = random.Random(seed)
        self.size = size
        self.element = self.random.choice(["f32", "f32", "bf16"])
        self.type = f"tensor<{N}x{N}x{self.element}>"
        self.is_portable = is_portable  # runs on one device
        self.functions: list[tuple[str, int, int]] = []  # name, arguments, results
        self.count = 0
        self.lines: list[str] = []

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def fresh(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def pick(self, values: list[str]) -> str:
        """A value, rather a new one, so that little is dead."""
        return self.random.choice(values[-2:] if self.number(0, 2) else values)

    def weight(self, values: list[str]) -> str:
        return values[0] if self.number(0, 3) else self.pick(values)

    def location(self, text: str) -> str:
        if self.number(0, 3):
            return ""
        names = [
            "jit(f)/dot_general", "jit(f)/jvp(layer)/dot_general", "transpose(jvp(a))/dot_general",
            "jit(f)/transpose(jvp(checkpoint))/rematted_computation/a/dot_general",
        ]  # fmt: skip
        forms = ['"{}"', '"{}"("f.py":3:4)']
        if not self.is_portable:
            names += ["((", 'a"b\\/']
            forms += ['callsite("{}" at "g")', 'fused["{}", unknown]', "unknown"]
        elif "dot_general" not in text:  # JAX's inlining joins only names as JAX writes them
            return ""
        name = self.random.choice(names).replace("\\", "\\\\").replace('"', '\\"')
        return f" loc({self.random.choice(forms).format(name)})"

    def operation(self, text: str, results: int = 1) -> list[str]:
        """One operation, and the names of its results."""
        name = self.fresh()
        self.lines.append(
            f"{name}{f':{results}' if results > 1 else ''} = {text}{self.location(text)}"
        )
        return [name] if results == 1 else [f"{name}#{i}" for i in range(results)]

    def integer(self, value: int) -> str:
        return self.operation(f"stablehlo.constant dense<{value}> : tensor<i32>")[0]

    # ------------------------------------------------------------------------------- statements

    def block(self, values: list[str], depth: int, wanted: int) -> list[str]:
        """Statements; then ``wanted`` of the values that there are after them."""
        values = list(values)
        for _ in range(self.number(1, 1 + self.size // (depth + 1))):
            kinds = [self.product, self.product, self.elementwise, self.elementwise, self.call]
            if depth < 2:
                kinds += [self.loop, self.raw_loop, self.case, self.branch]
            if depth == 0 and not self.is_portable:
                kinds += [self.manual]
            values += self.random.choice(kinds)(values, depth)
        return [values[-1], *(self.pick(values) for _ in range(wanted - 1))]

    def product(self, values: list[str], depth: int) -> list[str]:
        x, w = self.pick(values), self.weight(values)
        c = self.number(0, 1), self.number(0, 1)
        y = self.operation(
            f"stablehlo.dot_general {x}, {w}, contracting_dims = [{c[0]}] x [{c[1]}] : "
            f"({self.type}, {self.type}) -> {self.type}"
        )
        return [y[0], *self.operation(f"stablehlo.tanh {y[0]} : {self.type}")]

    def elementwise(self, values: list[str], depth: int) -> list[str]:
        # None that a compiler may fuse with a multiplication into another number.
        name = self.random.choice(["maximum", "minimum", "negate", "tanh", "transpose", "abs"])
        x = self.pick(values)
        if name == "transpose":
            return self.operation(
                f"stablehlo.transpose {x}, dims = [1, 0] : ({self.type}) -> {self.type}"
            )
        operands = f"{x}, {self.pick(values)}" if name in ("maximum", "minimum") else x
        return self.operation(f"stablehlo.{name} {operands} : {self.type}")

    def call(self, values: list[str], depth: int) -> list[str]:
        if not self.functions:
            return self.product(values, depth)
        name, arguments, results = self.random.choice(self.functions)
        given = [self.weight(values), *(self.pick(values) for _ in range(arguments - 1))]
        return self.operation(
            f"func.call @{name}({', '.join(given)}) : ({', '.join([self.type] * arguments)}) -> "
            f"({', '.join([self.type] * results)})",
            results,
        )

    def loop(self, values: list[str], depth: int) -> list[str]:
        return self._while(values, depth, "LT", 0, self.number(0, 3), 1)

    def raw_loop(self, values: list[str], depth: int) -> list[str]:
        return self._while(values, depth, "GT", self.number(0, 3), 0, -1)

    def _while(
        self, values: list[str], depth: int, compare: str, start: int, end: int, step: int
    ) -> list[str]:
        carried = [self.pick(values) for _ in range(self.number(1, 2))]
        inner = [self.fresh() for _ in carried]
        counter, first = self.fresh(), self.integer(start)
        limit, by = self.integer(end), self.integer(step)
        types = ", ".join([*[self.type] * len(carried), "tensor<i32>"])
        pairs = [f"{a} = {v}" for a, v in zip([*inner, counter], [*carried, first], strict=True)]
        name, p = self.fresh(), self.fresh()
        self.lines.append(
            f"{name}:{len(pairs)} = stablehlo.while({', '.join(pairs)}) : {types}\ncond {{\n"
            f"{p} = stablehlo.compare {compare}, {counter}, {limit} : (tensor<i32>, tensor<i32>) "
            f"-> tensor<i1>\nstablehlo.return {p} : tensor<i1>\n}} do {{"
        )
        outs = self.block([*values, *inner, *inner], depth + 1, len(inner))
        if not self.number(0, 3):
            outs[0] = inner[0]  # it stays as it was given
        after = self.operation(f"stablehlo.add {counter}, {by} : tensor<i32>")
        self.lines.append(f"stablehlo.return {', '.join([*outs, *after])} : {types}\n}}")
        return [f"{name}#{i}" for i in range(len(inner))]

    def case(self, values: list[str], depth: int) -> list[str]:
        return self._branches(
            f'"stablehlo.case"({self.integer(self.number(-1, 3))})',
            values, depth, self.number(1, 3), "tensor<i32>",
        )  # fmt: skip

    def branch(self, values: list[str], depth: int) -> list[str]:
        which = self.random.choice(["true", "false"])
        p = self.operation(f"stablehlo.constant dense<{which}> : tensor<i1>")[0]
        return self._branches(f'"stablehlo.if"({p})', values, depth, 2, "tensor<i1>")

    def _branches(
        self, head: str, values: list[str], depth: int, count: int, chooser: str
    ) -> list[str]:
        results, name = self.number(1, 2), self.fresh()
        types = ", ".join([self.type] * results)
        self.lines.append(f"{name}:{results} = {head} ({{")
        for i in range(count):
            outs = self.block(values, depth + 1, results)
            self.lines.append(f"stablehlo.return {', '.join(outs)} : {types}")
            self.lines.append("}, {" if i + 1 < count else f"}}) : ({chooser}) -> ({types})")
        return [f"{name}#{i}" for i in range(results)]

    def manual(self, values: list[str], depth: int) -> list[str]:
        axes = self.random.choice(['"x"', '"y"', '"x", "y"'])
        given = [self.weight(values), self.pick(values)]
        inner = [self.fresh(), self.fresh()]
        whole = "<@mesh, [{}, {}]>"
        name = self.fresh()
        self.lines.append(
            f"{name} = sdy.manual_computation({', '.join(given)}) in_shardings=[{whole}, {whole}] "
            f"out_shardings=[{whole}] manual_axes={{{axes}}} "
            f"({', '.join(f'{a}: {self.type}' for a in inner)}) {{"
        )
        outs = self.block(inner, depth + 1, 1)
        self.lines.append(
            f"sdy.return {outs[0]} : {self.type}\n}} : ({self.type}, {self.type}) -> {self.type}"
        )
        return [name]

    def function(self, name: str, visibility: str, arguments: int, results: int) -> None:
        given = [self.fresh() for _ in range(arguments)]
        signature = ", ".join(f"{a}: {self.type}" for a in given)
        types = ", ".join([self.type] * results)
        self.lines.append(f"func.func {visibility} @{name}({signature}) -> ({types}) {{")
        outs = self.block(given, 0 if name == "main" else 1, results)
        self.lines.append(f"return {', '.join(outs)} : {types}\n}}")
        self.functions.append((name, arguments, results))


def program(seed: int, size: int, is_portable: bool = False) -> str:
    writer = Writer(seed, size, is_portable=is_portable)
    if not is_portable:
        writer.lines.append(_MESH)
    for i in range(writer.number(0, min(size, 3))):
        visibility = writer.random.choice(["private", "private", "public"])
        writer.function(f"f{i}", visibility, writer.number(1, 2), writer.number(1, 2))
    writer.function("main", "public", 3, 2)
    if writer.number(0, 1):  # somebody else that calls what @main calls, and @main
        writer.function("other", "public", 2, 1)
    return "\n".join(writer.lines)


def programs(is_portable: bool = False) -> st.SearchStrategy[str]:
    """Programs; a failure is found in a small one, if there is one."""
    seeds, sizes = st.integers(0, 2**32), st.integers(1, 12)
    return st.builds(program, seeds, sizes, st.just(is_portable))


def recipe(rounding: recipes.Rounding, **options: str) -> str:
    made = recipes.get("int8", **options).with_rounding(
        activations=rounding, weights=rounding, gradients=rounding
    )
    return made.to_toml()


STOCHASTIC = recipe("stochastic")
NOTHING = 'name = "nothing"\n[[rule]]\nkeep = "whatever it is"\n'
settings = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="SRJIT_FUZZ" not in os.environ,
    # Programs are small where they can be: shrinking further takes minutes.
    phases=(hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate),
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("name", corpus.PIPELINES)
@settings
@hypothesis.given(text=programs())
def test_any_program_comes_out_valid_or_as_it_was(name: str, text: str) -> None:
    module = corpus.parsed(text)
    assert module is not None
    outcome = corpus.run_pipeline(module, corpus.PIPELINES[name])
    assert (outcome.status, outcome.message) == ("alone", "")


@settings
@hypothesis.given(text=programs())
def test_noise_reaches_every_quantization_of_any_program(text: str) -> None:
    module = corpus.parsed(text)
    passes.Pipeline(
        "srjit-eliminate-dead-code", AnnotateMatmuls(), InsertQuantize(recipe=STOCHASTIC),
        "srjit-share-quantized,srjit-legalize{target=portable}",
    ).run(module)  # fmt: skip
    assert module.operation.verify()


WAYS = {
    "shared": ("", "srjit-share-quantized", "portable"),
    "on a CPU": ("", "srjit-share-quantized", "cpu"),
    "inlined": ("srjit-inline-calls", "srjit-share-quantized", "portable"),
    "cleaned": ("", "canonicalize,cse", "portable"),
}


def way(first: str, then: str, target: str, recipe: str = STOCHASTIC) -> passes.Pipeline:
    return passes.Pipeline(
        first, "srjit-eliminate-dead-code", AnnotateMatmuls(), InsertQuantize(recipe=recipe), then,
        f"srjit-legalize{{target={target}}}",
    )  # fmt: skip


def ran(text: str, pipeline: passes.Pipeline, args: list[Any], seed: int) -> Any:
    run = srjit.rejit(text, pipeline)
    return run(*args, sr_key=seed) if "srjit.key" in run.as_text() else run(*args)


@hypothesis.settings(settings, max_examples=max(EXAMPLES // 10, 1))
@hypothesis.given(text=programs(is_portable=True), seed=st.integers(0, 2**31))
def test_any_program_gives_the_same_bits_whichever_way_it_is_compiled(text: str, seed: int) -> None:
    dtype = np.dtype("float32") if "xf32" in text else np.dtype("bfloat16")
    args = [
        a.astype(dtype) for a in np.random.default_rng(seed).standard_normal((3, N, N)) / np.sqrt(N)
    ]
    expected = srjit.rejit(text, "")(*args)
    kept = ran(text, way("", "", "portable", NOTHING), args, seed)
    for a, b in zip(expected, kept, strict=True):
        np.testing.assert_array_equal(np.float32(a), np.float32(b), err_msg="nothing")
    reference = ran(text, way("", "", "portable"), args, seed)
    for name, (first, then, target) in WAYS.items():
        outs = ran(text, way(first, then, target), args, seed)
        for a, b in zip(reference, outs, strict=True):
            np.testing.assert_array_equal(np.float32(a), np.float32(b), err_msg=name)
