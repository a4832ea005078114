// RUN: srjit-opt %s -p 'srjit-annotate-matmuls{params=0}' --split-input-file --verify-diagnostics | filecheck %s

// Of an activation and a weight: a forward product. In a function that is called twice it has two
// entries, in execution order.

// CHECK-LABEL: func.func private @layer
// CHECK:         stablehlo.dot_general
// CHECK-SAME:      srjit.sites = [{lhs = "activation", noise = 0 : i64, number = 0 : i64, rhs = "weight", role = "fprop", why = "forward"},
// CHECK-SAME:      {lhs = "activation", noise = 1 : i64, number = 1 : i64, rhs = "weight", role = "fprop", why = "forward"}]
func.func @main(%w: tensor<4x4xf32>, %x: tensor<2x4xf32>) -> tensor<2x4xf32> {
  %0 = call @layer(%x, %w) : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
  %1 = call @layer(%0, %w) : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
  return %1 : tensor<2x4xf32>
}
func.func private @layer(%x: tensor<2x4xf32>, %w: tensor<4x4xf32>) -> tensor<2x4xf32> {
  %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
  return %0 : tensor<2x4xf32>
}

// -----

// JAX's locations tell the backward pass; provenance tells dgrad and wgrad apart.

// CHECK-LABEL: func.func @main
// CHECK:         stablehlo.dot_general
// CHECK-SAME:      path = "layer", rhs = "weight", role = "fprop"
// CHECK:         stablehlo.dot_general
// CHECK-SAME:      lhs = "gradient"
// CHECK-SAME:      partner = 0 : i64, path = "layer", phase = "backward", rhs = "weight", role = "dgrad"
// CHECK:         stablehlo.dot_general
// CHECK-SAME:      lhs = "gradient"
// CHECK-SAME:      rhs = "activation", role = "wgrad"
#forward = loc("jit(step)/jvp(layer)/dot_general")
#backward = loc("jit(step)/transpose(jvp(layer))/dot_general")
func.func @main(%w: tensor<4x3xf32>, %x: tensor<2x4xf32>) -> (tensor<2x4xf32>, tensor<3x4xf32>) {
  %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<2x4xf32>, tensor<4x3xf32>) -> tensor<2x3xf32> loc(#forward)
  %1 = stablehlo.multiply %0, %0 : tensor<2x3xf32> loc("jit(step)/transpose(jvp())/mul")
  %2 = stablehlo.dot_general %1, %w, contracting_dims = [1] x [1] : (tensor<2x3xf32>, tensor<4x3xf32>) -> tensor<2x4xf32> loc(#backward)
  %3 = stablehlo.dot_general %1, %x, contracting_dims = [0] x [0] : (tensor<2x3xf32>, tensor<2x4xf32>) -> tensor<3x4xf32> loc(#backward)
  return %2, %3 : tensor<2x4xf32>, tensor<3x4xf32>
}

// -----

// A function that calls itself is read once: there is one entry, not one for every call.

// CHECK-LABEL: func.func private @again
// CHECK:         call @again
// CHECK:         srjit.sites = [{lhs = "activation", noise = 0 : i64, number = 0 : i64, rhs = "weight", role = "fprop", why = "forward"}]}
func.func @main(%x: tensor<2x2xf32>) -> tensor<2x2xf32> {
  %0 = call @again(%x) : (tensor<2x2xf32>) -> tensor<2x2xf32>
  return %0 : tensor<2x2xf32>
}
func.func private @again(%x: tensor<2x2xf32>) -> tensor<2x2xf32> {
  %0 = call @again(%x) : (tensor<2x2xf32>) -> tensor<2x2xf32>
  %1 = stablehlo.dot_general %0, %x, contracting_dims = [1] x [0] : (tensor<2x2xf32>, tensor<2x2xf32>) -> tensor<2x2xf32>
  return %1 : tensor<2x2xf32>
}

// -----

// A position that @main does not have.

// expected-error @+1 {{params=0 is no argument: @main has 0 arguments}}
func.func @main() -> tensor<2xf32> {
  %0 = stablehlo.constant dense<0.0> : tensor<2xf32>
  return %0 : tensor<2xf32>
}
