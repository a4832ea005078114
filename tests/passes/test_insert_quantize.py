"""Modules that JAX did not write: nothing falls over, what is left alone says why, all is valid."""

import pytest

from srjit import passes
from srjit._mlir import ir
from srjit.passes.report import report_of

from . import corpus
from .modules_left_alone import ARGUMENTS, DOT, LEFT_ALONE, PLAIN, TYPES, Foreign, main

REWRITTEN = {
    "odd locations": Foreign(
        main(
            "\n".join(
                f"%{i} = {DOT.replace('%x', f'%{i - 1}' if i else '%x')} : {TYPES} loc({location})"
                for i, location in enumerate(
                    [
                        "unknown",
                        '"a \\22quoted\\22 (name"',
                        '"line\\0Abreak/)("("f.py":1:2)',
                        'fused<"data">["a"("f":1:1), unknown]',
                        'fused[callsite("x"("f":1:1) at unknown), "jit(f)/jvp(a)/dot"]',
                        'callsite(fused["a", "b"] at callsite("c" at "d":3:4))',
                        '"\\FF\\FE"',
                        '""',
                    ]
                )
            )
            + "\nreturn %7 : tensor<4x8xf32>"
        ),
        rewritten=8,
    ),
    "odd names": Foreign(
        main('%0 = call @"a b/\\22c\\22(d)@"(%w, %x) : (tensor<8x8xf32>, tensor<4x8xf32>)'
             " -> tensor<4x8xf32>\nreturn %0 : tensor<4x8xf32>")
        + f"""func.func private @"a b/\\22c\\22(d)@"({ARGUMENTS}) -> tensor<4x8xf32> {{
            {PLAIN}
            return %plain : tensor<4x8xf32>
        }}""",
        rewritten=1,
    ),
    "names that srjit would take": Foreign(
        main(f"{PLAIN}\nreturn %plain : tensor<4x8xf32>")
        + "".join(
            f"func.func private @{name}(%x: tensor<f32>) -> tensor<f32> {{ return %x : tensor<f32> }}\n"
            for name in ("srjit.mix", "srjit.quantize_int8_stochastic", "srjit.scaled_dot_int8_int8")
        ),
        rewritten=1,
    ),
    "a private @main": Foreign(
        main(f"{PLAIN}\nreturn %plain : tensor<4x8xf32>").replace("public", "private"), rewritten=1
    ),
    "arguments with attributes": Foreign(
        main(
            f"{PLAIN}\nreturn %plain : tensor<4x8xf32>",
            '%w: tensor<8x8xf32> {alien.c = dense<(1.0, 2.0)> : tensor<complex<f32>>}, '
            "%x: tensor<4x8xf32> {tf.aliasing_output = 0 : i32}",
        ),
        rewritten=1,
    ),
    "modules in the module": Foreign(
        main(f"{PLAIN}\nreturn %plain : tensor<4x8xf32>")
        + f"module @inner {{ func.func @main({ARGUMENTS}) -> tensor<4x8xf32> {{ {PLAIN}\n"
        "return %plain : tensor<4x8xf32> } }",
        rewritten=1,
    ),
    "unknown dialects around": Foreign(
        "alien.global @g\n".replace("alien.global @g", '"alien.global"() {sym_name = "g"} : () -> ()')
        + main(
            f"""%y = "alien.op"(%x) {{to = @g}} : (tensor<4x8xf32>) -> tensor<4x8xf32>
            {PLAIN}
            "alien.keep"(%plain, %y) : (tensor<4x8xf32>, tensor<4x8xf32>) -> ()
            return %plain : tensor<4x8xf32>"""
        ),
        rewritten=1,
    ),
    "a public function that @main calls too": Foreign(
        main("%0 = call @f(%w, %x) : (tensor<8x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>\n"
             "return %0 : tensor<4x8xf32>")
        + f"func.func public @f({ARGUMENTS}) -> tensor<4x8xf32> {{ {PLAIN}\n"
        "return %plain : tensor<4x8xf32> }",
        rewritten=1,
    ),
    "@main that another function calls": Foreign(
        main(f"{PLAIN}\nreturn %plain : tensor<4x8xf32>")
        + main("%0 = call @main(%w, %x) : (tensor<8x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>\n"
               "return %0 : tensor<4x8xf32>").replace("public @main(", "public @serve("),
        rewritten=1,
    ),
    "@main that an operation of another dialect calls": Foreign(
        main(f"{PLAIN}\nreturn %plain : tensor<4x8xf32>")
        + main('%0 = "alien.call"(%w, %x) {callee = @main} '
               ": (tensor<8x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>\n"
               "return %0 : tensor<4x8xf32>").replace("public @main(", "public @serve("),
        rewritten=1,
    ),
    "a function that a custom call and another dialect's region use too": Foreign(
        main(
            """%0 = call @f(%w, %x) : (tensor<8x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
            %1 = stablehlo.custom_call @alien(%x) {called_computations = [@f]}
              : (tensor<4x8xf32>) -> tensor<4x8xf32>
            %t = arith.constant true
            %2 = scf.if %t -> (tensor<4x8xf32>) {
              %3 = func.call @f(%w, %1) : (tensor<8x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
              scf.yield %3 : tensor<4x8xf32>
            } else {
              scf.yield %1 : tensor<4x8xf32>
            }
            %4 = stablehlo.add %0, %2 : tensor<4x8xf32>
            return %4 : tensor<4x8xf32>"""
        )
        + f"func.func private @f({ARGUMENTS}) -> tensor<4x8xf32> {{ {PLAIN}\n"
        "return %plain : tensor<4x8xf32> }",
        rewritten=1,
        says="inside this operation's region",
    ),
    "a function that calls itself": Foreign(
        main("%0 = call @f(%w, %x) : (tensor<8x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>\n"
             "return %0 : tensor<4x8xf32>")
        + f"""func.func private @f({ARGUMENTS}) -> tensor<4x8xf32> {{
            {PLAIN}
            %0 = call @f(%w, %plain) : (tensor<8x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>
            return %0 : tensor<4x8xf32>
        }}""",
        rewritten=1,
        says="@f calls itself",
    ),
    "a case of many branches": Foreign(
        main(
            """%i = stablehlo.constant dense<2> : tensor<i32>
            %0 = "stablehlo.case"(%i) ("""
            + ", ".join(
                f"{{ %b = {DOT} : {TYPES}\nstablehlo.return %b : tensor<4x8xf32> }}"
                for _ in range(5)
            )
            + """) : (tensor<i32>) -> tensor<4x8xf32>
            return %0 : tensor<4x8xf32>"""
        ),
        rewritten=5,
    ),
    "a loop over a token, without a counter": Foreign(
        main(
            f"""%t = stablehlo.create_token : !stablehlo.token
            %c = stablehlo.constant dense<9.0> : tensor<f32>
            %z = stablehlo.constant dense<0.0> : tensor<f32>
            %0:3 = stablehlo.while(%token = %t, %y = %x, %s = %z)
              : !stablehlo.token, tensor<4x8xf32>, tensor<f32>
            cond {{
              %p = stablehlo.compare LT, %s, %c : (tensor<f32>, tensor<f32>) -> tensor<i1>
              stablehlo.return %p : tensor<i1>
            }} do {{
              %d = stablehlo.dot_general %y, %w, contracting_dims = [1] x [0] : {TYPES}
              %u = stablehlo.add %s, %c : tensor<f32>
              stablehlo.return %token, %d, %u : !stablehlo.token, tensor<4x8xf32>, tensor<f32>
            }}
            return %0#1 : tensor<4x8xf32>"""
        ),
        rewritten=1,
    ),
    "an algorithm": Foreign(
        main(
            f"""%0 = {DOT}, algorithm = <lhs_precision_type = bf16, rhs_precision_type = bf16,
              accumulation_type = f32, lhs_component_count = 1, rhs_component_count = 1,
              num_primitive_operations = 1, allow_imprecise_accumulation = false> : {TYPES}
            return %0 : tensor<4x8xf32>"""
        ),
        rewritten=1,
    ),
    "a result without dimensions": Foreign(
        main(
            """%0 = stablehlo.dot_general %w, %x, contracting_dims = [0] x [0]
              : (tensor<8xf32>, tensor<8xf32>) -> tensor<f32>
            return %0 : tensor<f32>""",
            "%w: tensor<8xf32>, %x: tensor<8xf32>",
            "tensor<f32>",
        ),
        rewritten=1,
    ),
    "negative padding": Foreign(
        main(
            """%0 = "stablehlo.convolution"(%x, %w) {dimension_numbers = #stablehlo.conv<
              [b, f, 0]x[o, i, 0]->[b, f, 0]>, padding = dense<[[-1, -2]]> : tensor<1x2xi64>,
              feature_group_count = 1 : i64, batch_group_count = 1 : i64}
              : (tensor<1x2x8xf32>, tensor<4x2x3xf32>) -> tensor<1x4x3xf32>
            return %0 : tensor<1x4x3xf32>""",
            "%w: tensor<4x2x3xf32>, %x: tensor<1x2x8xf32>",
            "tensor<1x4x3xf32>",
        ),
        rewritten=1,
    ),
    "a narrow result of a convolution": Foreign(
        main(
            """%0 = "stablehlo.convolution"(%x, %w) {dimension_numbers = #stablehlo.conv<
              [b, f, 0]x[o, i, 0]->[b, f, 0]>,
              feature_group_count = 1 : i64, batch_group_count = 1 : i64}
              : (tensor<1x2x8xf32>, tensor<4x2x3xf32>) -> tensor<1x4x6xbf16>
            return %0 : tensor<1x4x6xbf16>""",
            "%w: tensor<4x2x3xf32>, %x: tensor<1x2x8xf32>",
            "tensor<1x4x6xbf16>",
        ),
        rewritten=1,
    ),
    "a mesh with a name that only quotes hold": Foreign(
        'sdy.mesh @"the mesh" = <["x"=2]>\n'
        + main(
            f"""%0 = sdy.manual_computation(%w, %y) in_shardings=[<@"the mesh", [{{}}, {{}}]>,
              <@"the mesh", [{{"x"}}, {{}}]>] out_shardings=[<@"the mesh", [{{"x"}}, {{}}]>]
              manual_axes={{"x"}} (%v: tensor<8x8xf32>, %x: tensor<4x8xf32>) {{ {PLAIN.replace("%w", "%v")}
                sdy.return %plain : tensor<4x8xf32>
              }} : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
            return %0 : tensor<8x8xf32>""",
            "%w: tensor<8x8xf32>, %y: tensor<8x8xf32>",
            "tensor<8x8xf32>",
        ),
        rewritten=1,
    ),
    "no spatial dimension": Foreign(
        main(
            """%0 = "stablehlo.convolution"(%x, %w) {dimension_numbers = #stablehlo.conv<
              [b, f]x[i, o]->[b, f]>, feature_group_count = 1 : i64, batch_group_count = 1 : i64}
              : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
            return %0 : tensor<4x8xf32>"""
        ),
        rewritten=1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("pipeline", corpus.PIPELINES)
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_cannot_be_quantized_comes_out_as_it_was_and_the_report_says_why(
    name: str, pipeline: str
) -> None:
    foreign = LEFT_ALONE[name]
    module = corpus.parsed(foreign.text)
    outcome = corpus.run_pipeline(module, corpus.PIPELINES[pipeline])
    assert (outcome.status, outcome.message, outcome.rewritten) == ("alone", "", 0)
    assert foreign.says in "\n".join(outcome.reasons)


@pytest.mark.parametrize(
    "name",
    [n for n, f in LEFT_ALONE.items() if f.says and f.says not in ("product: only", "zero-size")],
)
def test_what_is_left_alone_is_a_row_a_warning_and_an_error_under_strict(name: str) -> None:
    pipeline = "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8"
    module = corpus.parsed(LEFT_ALONE[name].text)
    with pytest.warns(passes.PassWarning, match="stay in high precision"):
        passes.parse(pipeline + "}").run(module)
    report = report_of(module.operation)
    assert any(s.asked and s.status == "kept" for s in report.sites) and report.coverage() == 0
    with pytest.raises(passes.PipelineError, match="strict"):
        passes.parse(pipeline + " strict=true}").run(corpus.parsed(LEFT_ALONE[name].text))


def test_flops_of_what_is_left_alone_are_of_the_dimensions_that_are_known() -> None:
    module = corpus.parsed(LEFT_ALONE["dynamic shape"].text)
    passes.parse(corpus.PIPELINES["int8"]).run(module)
    (row,) = report_of(module.operation).sites
    assert (row.lhs_shape, row.out_shape, row.flops) == ((-1, 8), (-1, 8), 2 * 8 * 8)
    assert "?x8" in str(report_of(module.operation))


@pytest.mark.parametrize(
    ("target", "is_one"),
    [("lapack_sgeqrf_ffi", False), ("xla_ffi_python_cpu_callback", False), ("mine_gemm", True),
     ("__cublas$lt$matmul", True), ("what_nobody_knows", True), ("ducc_fft", False)],
)  # fmt: skip
def test_a_custom_call_may_multiply_unless_it_is_known_not_to(target: str, is_one: bool) -> None:
    text = main(
        f"""%0 = stablehlo.custom_call @{target}(%x, %w) : {TYPES}
        return %0 : tensor<4x8xf32>"""
    )
    module = corpus.parsed(text)
    passes.parse(corpus.PIPELINES["int8"]).run(module)
    assert len(report_of(module.operation).sites) == is_one


@pytest.mark.parametrize("pipeline", corpus.PIPELINES)
@pytest.mark.parametrize("name", REWRITTEN)
def test_what_is_odd_around_a_multiplication_does_not_stop_it_from_being_quantized(
    name: str, pipeline: str
) -> None:
    foreign = REWRITTEN[name]
    module = corpus.parsed(foreign.text)
    outcome = corpus.run_pipeline(module, corpus.PIPELINES[pipeline])
    assert (outcome.status, outcome.message) == ("alone", "")
    assert outcome.rewritten == foreign.rewritten
    assert foreign.says in "\n".join(outcome.reasons)


ERRORS = {
    "no @main": ("func.func @f() { return }", "no function @main; it has @f"),
    "nothing": ("", "no function @main"),
    "@main that is declared": ("func.func private @main()", "only declared"),
    "versioned": (
        """vhlo.func_v1 @main(%x: !vhlo.tensor_v1<2x!vhlo.f32_v1>) -> (!vhlo.tensor_v1<2x!vhlo.f32_v1>)
        { "vhlo.return_v1"(%x) : (!vhlo.tensor_v1<2x!vhlo.f32_v1>) -> () } {arg_attrs =
        #vhlo.array_v1<[]>, res_attrs = #vhlo.array_v1<[]>, sym_visibility = #vhlo.string_v1<"">}""",
        "VHLO",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_a_module_that_starts_nowhere_is_an_error_that_says_so(name: str) -> None:
    text, message = ERRORS[name]
    for first in ("srjit-eliminate-dead-code", "srjit-annotate-matmuls"):
        with pytest.raises(passes.PipelineError, match=message):
            passes.parse(first).run(corpus.parsed(text))


@pytest.mark.parametrize(
    ("who", "call"),
    [
        ("another function", "call @main_srjit("),
        ("an operation of another dialect", "= @main_srjit"),
    ],
)
def test_callers_that_are_not_rewritten_get_what_they_got_before(who: str, call: str) -> None:
    module = corpus.parsed(REWRITTEN[f"@main that {who} calls"].text)
    passes.parse(corpus.DELAYED).run(module)
    functions = {ir.StringAttr(op.attributes["sym_name"]).value: op for op in module.body}
    serve = str(functions["serve"])
    assert call in serve
    assert "stablehlo.dot_general %arg1, %arg0" in str(functions["main_srjit"])
    assert len(report_of(module.operation).sites) == 1


# Own results' shardings, that the operations which read them check.
_SHARDED = """
sdy.mesh @mesh = <["x"=2, "y"=2]>
func.func @main(%w: tensor<8x16xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"y"}, {}]>},
    %x: tensor<4x8xf32> {sdy.sharding = #sdy.sharding<@mesh, [{"x"}, {"y"}]>}) -> tensor<4x16xf32> {
  %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
    {sdy.sharding = #sdy.sharding_per_value<[<@mesh, [{"x"}, {}]>]>}
    : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
  %1 = sdy.COLLECTIVE %0 out_sharding=<@mesh, OUT> : tensor<4x16xf32>
  return %1 : tensor<4x16xf32>
}
"""


@pytest.mark.parametrize("target", ["cpu", "portable", "v5e"])
@pytest.mark.parametrize(
    ("collective", "out"),
    [
        ('all_reduce {"y"}', '[{"x"}, {}]'),
        ('all_gather [{"x"}, {}]', "[{}, {}]"),
        ('reduce_scatter [{}, {"y"}]', '[{"x"}, {"y"}]'),
    ],
)
def test_what_is_said_of_a_products_sharding_stays(collective: str, out: str, target: str):
    text = _SHARDED.replace("COLLECTIVE", collective).replace("OUT", out)
    pipeline = "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8}"
    module = passes.Pipeline(pipeline).run(text)
    assert 'srjit.scaled_dot" ' in str(module)
    legal = str(passes.Pipeline(f"srjit-legalize{{target={target}}}").run(module))
    assert legal.count('sdy.sharding_per_value<[<@mesh, [{"x"}, {}]>]>') == 1
    assert "composite" not in legal
