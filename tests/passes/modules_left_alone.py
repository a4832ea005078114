"""Modules that JAX did not write, and of which nothing can be quantized."""

import dataclasses

DOT = "stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]"
TYPES = "(tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>"
ARGUMENTS = "%w: tensor<8x8xf32>, %x: tensor<4x8xf32>"
SPARSE = "#sparse_tensor.encoding<{map = (i, j) -> (i : dense, j : compressed)}>"
# One multiplication that the recipe quantizes, for modules of which something else is odd.
PLAIN = f"%plain = {DOT} : {TYPES}"


@dataclasses.dataclass
class Foreign:
    """A module; how many multiplications are quantized; what the report or the error says."""

    text: str
    rewritten: int = 0
    says: str = ""


def main(body: str, arguments: str = ARGUMENTS, results: str = "tensor<4x8xf32>") -> str:
    return f"func.func public @main({arguments}) -> ({results}) {{\n{body}\n}}\n"


LEFT_ALONE = {
    "dynamic shape": Foreign(
        main(
            """%0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
              : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
            return %0 : tensor<?x8xf32>""",
            "%w: tensor<8x8xf32>, %x: tensor<?x8xf32>",
            "tensor<?x8xf32>",
        ),
        says="static shape",
    ),
    "complex numbers of dynamic shape": Foreign(
        main(
            """%0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
              : (tensor<?x8xcomplex<f32>>, tensor<8x8xcomplex<f32>>) -> tensor<?x8xcomplex<f32>>
            return %0 : tensor<?x8xcomplex<f32>>""",
            "%w: tensor<8x8xcomplex<f32>>, %x: tensor<?x8xcomplex<f32>>",
            "tensor<?x8xcomplex<f32>>",
        ),
        says="static shape",
    ),
    "bounded shape": Foreign(
        main(
            """%0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
              : (tensor<?x8xf32, #stablehlo.bounds<4, ?>>, tensor<8x8xf32>)
              -> tensor<?x8xf32, #stablehlo.bounds<4, ?>>
            return %0 : tensor<?x8xf32, #stablehlo.bounds<4, ?>>""",
            "%w: tensor<8x8xf32>, %x: tensor<?x8xf32, #stablehlo.bounds<4, ?>>",
            "tensor<?x8xf32, #stablehlo.bounds<4, ?>>",
        ),
        says="static shape",
    ),
    "integers": Foreign(
        main(
            f"""%0 = {DOT} : (tensor<4x8xi8>, tensor<8x8xi8>) -> tensor<4x8xi32>
            return %0 : tensor<4x8xi32>""",
            "%w: tensor<8x8xi8>, %x: tensor<4x8xi8>",
            "tensor<4x8xi32>",
        ),
        says="product: only",
    ),
    "complex, with a constant of them": Foreign(
        main(
            """%c = stablehlo.constant dense<(1.0, 2.0)> : tensor<8x8xcomplex<f32>>
            %s = stablehlo.add %w, %c : tensor<8x8xcomplex<f32>>
            %0 = stablehlo.dot_general %x, %s, contracting_dims = [1] x [0]
              : (tensor<4x8xcomplex<f32>>, tensor<8x8xcomplex<f32>>) -> tensor<4x8xcomplex<f32>>
            return %0 : tensor<4x8xcomplex<f32>>""",
            "%w: tensor<8x8xcomplex<f32>>, %x: tensor<4x8xcomplex<f32>>",
            "tensor<4x8xcomplex<f32>>",
        ),
        says="product: only",
    ),
    "an encoding": Foreign(
        main(
            f"""%0 = {DOT} : (tensor<4x8xf32, {SPARSE}>, tensor<8x8xf32>) -> tensor<4x8xf32>
            return %0 : tensor<4x8xf32>""",
            f"%w: tensor<8x8xf32>, %x: tensor<4x8xf32, {SPARSE}>",
        ),
        says="encoding",
    ),
    "nothing to multiply: a zero-size operand": Foreign(
        main(
            """%0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0]
              : (tensor<0x8xf32>, tensor<8x8xf32>) -> tensor<0x8xf32>
            return %0 : tensor<0x8xf32>""",
            "%w: tensor<8x8xf32>, %x: tensor<0x8xf32>",
            "tensor<0x8xf32>",
        ),
        says="zero-size",
    ),
    "a reversed window": Foreign(
        main(
            """%0 = "stablehlo.convolution"(%x, %w) {dimension_numbers = #stablehlo.conv<
              [b, f, 0]x[o, i, 0]->[b, f, 0]>, window_reversal = array<i1: true>,
              feature_group_count = 1 : i64, batch_group_count = 1 : i64}
              : (tensor<1x2x8xf32>, tensor<4x2x3xf32>) -> tensor<1x4x6xf32>
            return %0 : tensor<1x4x6xf32>""",
            "%w: tensor<4x2x3xf32>, %x: tensor<1x2x8xf32>",
            "tensor<1x4x6xf32>",
        ),
        says="reversed window",
    ),
    "a convolution of dynamic padding": Foreign(
        main(
            """%0 = "stablehlo.dynamic_conv"(%x, %w, %pads) {dimension_numbers = #stablehlo.conv<
              [b, f, 0]x[o, i, 0]->[b, f, 0]>,
              feature_group_count = 1 : i64, batch_group_count = 1 : i64}
              : (tensor<1x2x8xf32>, tensor<4x2x3xf32>, tensor<1x2xi64>) -> tensor<1x4x?xf32>
            return %0 : tensor<1x4x?xf32>""",
            "%w: tensor<4x2x3xf32>, %x: tensor<1x2x8xf32>, %pads: tensor<1x2xi64>",
            "tensor<1x4x?xf32>",
        ),
        says="this kind of multiplication",
    ),
    "@main of several blocks": Foreign(
        main(
            f"""{PLAIN}
              %t = arith.constant true
              cf.cond_br %t, ^bb1, ^bb2
            ^bb1:
              return %plain : tensor<4x8xf32>
            ^bb2:
              return %x : tensor<4x8xf32>"""
        ),
        says="@main has more than one block",
    ),
    "a call of several blocks": Foreign(
        main("%0 = call @f(%w, %x) : (tensor<8x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>\n"
             "return %0 : tensor<4x8xf32>")
        + f"""func.func private @f({ARGUMENTS}) -> tensor<4x8xf32> {{
            {PLAIN}
            %t = arith.constant true
            cf.cond_br %t, ^bb1(%plain : tensor<4x8xf32>), ^bb1(%x : tensor<4x8xf32>)
          ^bb1(%y: tensor<4x8xf32>):
            return %y : tensor<4x8xf32>
        }}""",
        says="@f has more than one block",
    ),
    "a function that is only declared": Foreign(
        main("%0 = call @f(%w, %x) : (tensor<8x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>\n"
             "return %0 : tensor<4x8xf32>")
        + f"func.func private @f({ARGUMENTS.replace('%w: ', '').replace('%x: ', '')})"
        " -> tensor<4x8xf32>",
        says="@f is only declared",
    ),
    "@main that calls itself": Foreign(
        main(
            "%0 = call @main(%w, %x) : (tensor<8x8xf32>, tensor<4x8xf32>) -> tensor<4x8xf32>\n"
            "return %0 : tensor<4x8xf32>"
        ),
        says="@main calls itself",
    ),
    "a multiplication in the region of a reduction": Foreign(
        main(
            """%c = stablehlo.constant dense<0.0> : tensor<f32>
            %0 = "stablehlo.reduce"(%x, %c) ({
              ^bb0(%a: tensor<f32>, %b: tensor<f32>):
                %d = stablehlo.dot_general %a, %b, contracting_dims = [] x []
                  : (tensor<f32>, tensor<f32>) -> tensor<f32>
                stablehlo.return %d : tensor<f32>
              }) {dimensions = array<i64: 1>} : (tensor<4x8xf32>, tensor<f32>) -> tensor<4xf32>
            return %0 : tensor<4xf32>""",
            results="tensor<4xf32>",
        ),
        says="inside this operation's region",
    ),
    "a multiplication of an unknown dialect": Foreign(
        main(
            """%0 = "alien.dot_general"(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32>)
              -> tensor<4x8xf32>
            return %0 : tensor<4x8xf32>"""
        ),
        says="this kind of multiplication",
    ),
    "a multiplication deep in regions of an unknown dialect": Foreign(
        main(
            f"""%0 = "alien.region"() ({{
              "alien.region"() ({{ {PLAIN} "alien.yield"() : () -> () }}) : () -> ()
              "alien.yield"(%x) : (tensor<4x8xf32>) -> ()
            }}) : () -> tensor<4x8xf32>
            return %0 : tensor<4x8xf32>"""
        ),
        says="inside this operation's region",
    ),
    "a kernel": Foreign(
        main(
            """%0 = stablehlo.custom_call @tpu_custom_call(%x, %w) : (tensor<4x8xf32>,
              tensor<8x8xf32>) -> tensor<4x8xf32>
            return %0 : tensor<4x8xf32>"""
        ),
        says="kernels",
    ),
    "another's composite": Foreign(
        main(
            f"""%0 = stablehlo.composite "alien.linear" %x, %w {{decomposition = @linear}} : {TYPES}
            return %0 : tensor<4x8xf32>"""
        )
        + f"""func.func private @linear(%x: tensor<4x8xf32>, %w: tensor<8x8xf32>) -> tensor<4x8xf32> {{
            {PLAIN}
            return %plain : tensor<4x8xf32>
        }}""",
        says="inside composites",
    ),
    "a ragged product of another": Foreign(
        main(
            """%0 = "chlo.ragged_dot"(%x, %w, %n) {ragged_dot_dimension_numbers =
              #chlo.ragged_dot<lhs_contracting_dimensions = [1], rhs_contracting_dimensions = [1],
              lhs_ragged_dimensions = [0], rhs_group_dimensions = [0]>}
              : (tensor<4x8xf32>, tensor<2x8x8xf32>, tensor<2xi32>) -> tensor<4x8xf32>
            return %0 : tensor<4x8xf32>""",
            "%w: tensor<2x8x8xf32>, %x: tensor<4x8xf32>, %n: tensor<2xi32>",
        ),
        says="ragged product that was lowered elsewhere",
    ),
    "a mesh whose devices are in an order of their own": Foreign(
        'sdy.mesh @mesh = <["x"=2], device_ids=[1, 0]>\n'
        + main(
            f"""%0 = sdy.manual_computation(%w, %y) in_shardings=[<@mesh, [{{}}, {{}}]>,
              <@mesh, [{{"x"}}, {{}}]>] out_shardings=[<@mesh, [{{"x"}}, {{}}]>] manual_axes={{"x"}}
              (%v: tensor<8x8xf32>, %x: tensor<4x8xf32>) {{ {PLAIN.replace("%w", "%v")}
                sdy.return %plain : tensor<4x8xf32>
              }} : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
            return %0 : tensor<8x8xf32>""",
            "%w: tensor<8x8xf32>, %y: tensor<8x8xf32>",
            "tensor<8x8xf32>",
        ),
        says="devices in an order of its own",
    ),
    "a mesh that stands in the shardings": Foreign(
        main(
            f"""%0 = sdy.manual_computation(%w, %y) in_shardings=[<mesh<["x"=2]>, [{{}}, {{}}]>,
              <mesh<["x"=2]>, [{{"x"}}, {{}}]>] out_shardings=[<mesh<["x"=2]>, [{{"x"}}, {{}}]>]
              manual_axes={{"x"}} (%v: tensor<8x8xf32>, %x: tensor<4x8xf32>) {{ {PLAIN.replace("%w", "%v")}
                sdy.return %plain : tensor<4x8xf32>
              }} : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
            return %0 : tensor<8x8xf32>""",
            "%w: tensor<8x8xf32>, %y: tensor<8x8xf32>",
            "tensor<8x8xf32>",
        ),
        says="shardings srjit cannot read",
    ),
    "no multiplication at all": Foreign(main("return %x : tensor<4x8xf32>")),
    "no result": Foreign(main("return", results="")),
    "tuples and tokens": Foreign(
        main(
            """%t = stablehlo.create_token : !stablehlo.token
            %u = stablehlo.tuple %x, %t : tuple<tensor<4x8xf32>, !stablehlo.token>
            %0 = stablehlo.get_tuple_element %u[0]
              : (tuple<tensor<4x8xf32>, !stablehlo.token>) -> tensor<4x8xf32>
            %1 = "stablehlo.infeed"(%t) {infeed_config = ""}
              : (!stablehlo.token) -> !stablehlo.token
            return %0 : tensor<4x8xf32>"""
        )
    ),
    "a loop that counts with the number of the next iteration": Foreign(
        main(
            """%zero = stablehlo.constant dense<0> : tensor<i32>
            %n = stablehlo.constant dense<5> : tensor<i32>
            %one = stablehlo.constant dense<1> : tensor<i32>
            %0:2 = stablehlo.while(%i = %zero, %a = %zero) : tensor<i32>, tensor<i32>
            cond {
              %p = stablehlo.compare LT, %i, %n : (tensor<i32>, tensor<i32>) -> tensor<i1>
              stablehlo.return %p : tensor<i1>
            } do {
              %next = stablehlo.add %i, %one : tensor<i32>
              %b = stablehlo.multiply %a, %next : tensor<i32>
              stablehlo.return %next, %b : tensor<i32>, tensor<i32>
            }
            return %0#1 : tensor<i32>""",
            results="tensor<i32>",
        )
    ),
    "a collective over the axes of a mesh": Foreign(
        'sdy.mesh @mesh = <["x"=2]>\n'
        + main(
            """%0 = "stablehlo.all_gather"(%x) {all_gather_dim = 0 : i64, replica_groups =
              #stablehlo.replica_group_mesh_axes<mesh = @mesh, axes = [
              #stablehlo.axis_ref<name = "x">]>, channel_handle = #stablehlo.channel_handle<
              handle = 1, type = 0>} : (tensor<4x8xf32>) -> tensor<8x8xf32>
            return %0 : tensor<8x8xf32>""",
            results="tensor<8x8xf32>",
        )
    ),
    "a symbol and attributes with our prefix": Foreign(
        "module @srjit.module attributes {mhlo.num_replicas = 1 : i32} {\n"
        + main("%0 = call @srjit.mine(%x) : (tensor<4x8xf32>) -> tensor<4x8xf32>\n"
               "return %0 : tensor<4x8xf32>")
        + """func.func private @srjit.mine(%x: tensor<4x8xf32>) -> tensor<4x8xf32> {
            return %x : tensor<4x8xf32>
        }
        func.func private @srjit.unused(%x: tensor<4x8xf32>) -> tensor<4x8xf32> {
            return %x : tensor<4x8xf32>
        }}"""
    ),
}  # fmt: skip
