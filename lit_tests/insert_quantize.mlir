// RUN: srjit-opt %s -p 'srjit-annotate-matmuls{params=0},srjit-insert-quantize{recipe=int8}' --split-input-file --verify-diagnostics | filecheck %s

// Forward operands round to nearest: no noise, no key.

// CHECK-LABEL: module
// CHECK-SAME:    srjit.report = {mode = "train", {{.*}}recipe = "int8", target = "portable"}
// CHECK:       func.func @main(%arg0: tensor<4x4xf32>, %arg1: tensor<2x4xf32>) -> tensor<2x4xf32>
// CHECK-NEXT:    %0:2 = stablehlo.composite "srjit.quantize" %arg1
// CHECK-SAME:      spec = {format = "int8"}
// CHECK-NEXT:    %1:2 = stablehlo.composite "srjit.quantize" %arg0
// CHECK-NEXT:    %2 = stablehlo.composite "srjit.scaled_dot" %0#0, %0#1, %1#0, %1#1
// CHECK-SAME:      srjit.sites = [{
// CHECK-NEXT:    return %2
func.func @main(%w: tensor<4x4xf32>, %x: tensor<2x4xf32>) -> tensor<2x4xf32> {
  %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
  return %0 : tensor<2x4xf32>
}

// -----

// Gradients draw noise: @main gets the key, a function that is called twice gets it with what its
// number differs by, and every iteration of a loop has its own.

// CHECK-LABEL: module
// CHECK:       func.func @main(%arg0: tensor<4x4xf32>, %arg1: tensor<4x4xf32>, %arg2: tensor<2xui32> {srjit.key = true})
// CHECK:         call @grad(%arg1, %arg0, %arg2, %{{.*}}) : (tensor<4x4xf32>, tensor<4x4xf32>, tensor<2xui32>, tensor<ui32>) -> tensor<4x4xf32>
// CHECK:         call @grad(%{{.*}}, %arg0, %arg2, %{{.*}}) : (tensor<4x4xf32>, tensor<4x4xf32>, tensor<2xui32>, tensor<ui32>) -> tensor<4x4xf32>
// CHECK:         stablehlo.while
// CHECK:         do {
// CHECK:           stablehlo.convert %{{.*}} : (tensor<i32>) -> tensor<ui32>
// CHECK:           call @srjit.mix(%arg2
// CHECK:           "srjit.quantize"
// CHECK:       func.func private @grad(%arg0: tensor<4x4xf32>, %arg1: tensor<4x4xf32>, %arg2: tensor<2xui32>, %arg3: tensor<ui32>)
// CHECK:         call @srjit.mix(%arg2
// CHECK:         "srjit.quantize" %arg0, %{{.*}} {{.*}}rounding = "stochastic"
func.func @main(%w: tensor<4x4xf32>, %g: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %0 = call @grad(%g, %w) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  %1 = call @grad(%0, %w) : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %2:2 = stablehlo.while(%i = %zero, %a = %1) : tensor<i32>, tensor<4x4xf32>
  cond {
    %n = stablehlo.constant dense<3> : tensor<i32>
    %p = stablehlo.compare LT, %i, %n : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %p : tensor<i1>
  } do {
    %one = stablehlo.constant dense<1> : tensor<i32>
    %j = stablehlo.add %i, %one : tensor<i32>
    %3 = stablehlo.dot_general %a, %w, contracting_dims = [1] x [1] : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32> loc("jit(f)/transpose(jvp())/srjit.role=dgrad;gradient=0/dot_general")
    stablehlo.return %j, %3 : tensor<i32>, tensor<4x4xf32>
  }
  return %2#1 : tensor<4x4xf32>
}
func.func private @grad(%g: tensor<4x4xf32>, %w: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %0 = stablehlo.dot_general %g, %w, contracting_dims = [1] x [1] : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32> loc("transpose(jvp())/srjit.role=dgrad;gradient=0/dot_general")
  return %0 : tensor<4x4xf32>
}

// -----

// Integer products and dynamic shapes stay what they are.

// expected-warning@unknown {{1 of 2 multiplications that recipe 'int8' asks for stay in high precision}}

// CHECK-LABEL: module
// CHECK:       func.func @main
// CHECK:         stablehlo.dot_general {{.*}}tensor<2x2xi32>
// CHECK:         stablehlo.dot_general {{.*}}tensor<?x2xf32>
func.func @main(%a: tensor<2x2xi32>, %b: tensor<?x2xf32>, %c: tensor<2x2xf32>) -> (tensor<2x2xi32>, tensor<?x2xf32>) {
  %0 = stablehlo.dot_general %a, %a, contracting_dims = [1] x [0] : (tensor<2x2xi32>, tensor<2x2xi32>) -> tensor<2x2xi32>
  %1 = stablehlo.dot_general %b, %c, contracting_dims = [1] x [0] : (tensor<?x2xf32>, tensor<2x2xf32>) -> tensor<?x2xf32>
  return %0, %1 : tensor<2x2xi32>, tensor<?x2xf32>
}
