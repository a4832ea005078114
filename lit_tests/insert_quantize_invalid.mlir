// RUN: srjit-opt %s -p 'srjit-insert-quantize{recipe=int8}' --split-input-file --verify-diagnostics

func.func @main(%w: tensor<4x4xf32>, %x: tensor<2x4xf32>) -> tensor<2x4xf32> {
  // expected-error @+1 {{not annotated: run srjit-annotate-matmuls before this pass}}
  %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
  return %0 : tensor<2x4xf32>
}

// -----

// expected-error @+1 {{the module has no function @main; it has @other}}
module {
  func.func @other(%x: tensor<2x4xf32>) -> tensor<2x4xf32> {
    return %x : tensor<2x4xf32>
  }
}

// -----

// expected-error @+1 {{the module is quantized already}}
module attributes {srjit.report = {recipe = "int8", target = "portable", mode = "train"}} {
  func.func @main(%x: tensor<2x4xf32>) -> tensor<2x4xf32> {
    return %x : tensor<2x4xf32>
  }
}
