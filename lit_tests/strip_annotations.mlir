// RUN: srjit-opt %s --srjit-strip-annotations | filecheck %s
// RUN: srjit-opt %s --srjit-strip-annotations=interface=true | filecheck %s --check-prefix=ALL

// Arguments that a caller has to give stay marked, unless asked.

// CHECK:      module attributes {mhlo.num_partitions = 1 : i32} {
// CHECK-NEXT:   func.func @main(%arg0: tensor<2x2xf32> {jax.buffer_donor = true}, %arg1: tensor<2xui32> {srjit.key})
// CHECK-SAME:     -> (tensor<2x2xf32>, tensor<2x2xf32> {srjit.state = "layer"}) {
// CHECK-NEXT:     %[[DOT:.*]] = stablehlo.dot_general %arg0, %arg0, contracting_dims = [1] x [0] :
// CHECK-NEXT:     return %[[DOT]], %arg0
// ALL:          func.func @main(%arg0: tensor<2x2xf32> {jax.buffer_donor = true}, %arg1: tensor<2xui32>)
// ALL-SAME:       -> (tensor<2x2xf32>, tensor<2x2xf32>) {
module attributes {mhlo.num_partitions = 1 : i32, srjit.report = "..."} {
  func.func @main(
      %x: tensor<2x2xf32> {jax.buffer_donor = true, srjit.kind = "weight"}, %key: tensor<2xui32> {srjit.key})
      -> (tensor<2x2xf32>, tensor<2x2xf32> {srjit.state = "layer"}) {
    %0 = stablehlo.dot_general %x, %x, contracting_dims = [1] x [0] {srjit.sites = [{number = 0 : i64}]}
      : (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>
    return %0, %x : tensor<2x2xf32>, tensor<2x2xf32>
  }
}
