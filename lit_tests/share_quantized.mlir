// RUN: srjit-opt %s -p 'srjit-annotate-matmuls{params=0},srjit-insert-quantize{recipe=int8},srjit-share-quantized' --split-input-file | filecheck %s

// One tensor, two products, one quantization; also of what a loop hands on as it was given.

// CHECK-LABEL: func.func @main
// CHECK-COUNT-3: stablehlo.composite "srjit.quantize"
// CHECK-NOT:     stablehlo.composite "srjit.quantize"
// CHECK:       func.func private
func.func @main(%w: tensor<4x4xf32>, %x: tensor<2x4xf32>) -> (tensor<2x4xf32>, tensor<2x4xf32>) {
  %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %1:3 = stablehlo.while(%i = %zero, %v = %w, %a = %0) : tensor<i32>, tensor<4x4xf32>, tensor<2x4xf32>
  cond {
    %n = stablehlo.constant dense<3> : tensor<i32>
    %p = stablehlo.compare LT, %i, %n : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %p : tensor<i1>
  } do {
    %one = stablehlo.constant dense<1> : tensor<i32>
    %j = stablehlo.add %i, %one : tensor<i32>
    %2 = stablehlo.dot_general %a, %v, contracting_dims = [1] x [0] : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
    stablehlo.return %j, %v, %2 : tensor<i32>, tensor<4x4xf32>, tensor<2x4xf32>
  }
  %3 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [1] : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
  return %1#2, %3 : tensor<2x4xf32>, tensor<2x4xf32>
}
