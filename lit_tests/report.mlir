// RUN: srjit-opt %s -p 'srjit-annotate-matmuls{params=0},srjit-insert-quantize{recipe=int8},srjit-report' -o /dev/null 2>&1 | filecheck %s
// RUN: not srjit-opt %s -p 'srjit-report' 2>&1 | filecheck %s --check-prefix EARLY
// RUN: not srjit-opt %s -p 'srjit-annotate-matmuls{params=0},srjit-insert-quantize{recipe=int8},srjit-report{output=/no/such/folder/report.txt}' 2>&1 | filecheck %s --check-prefix UNWRITABLE

// CHECK: srjit: recipe int8, target portable, mode train: 2 sites, 50.0 % of FLOPs quantized
// CHECK: fprop
// CHECK: emulated
// CHECK: kept: int32 x int32 product

// EARLY: run srjit-insert-quantize before srjit-report
// UNWRITABLE: cannot write /no/such/folder/report.txt
func.func @main(%w: tensor<4x4xf32>, %x: tensor<2x4xf32>, %n: tensor<4x2xi32>) -> (tensor<2x4xf32>, tensor<4x4xi32>) {
  %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
  %1 = stablehlo.dot_general %n, %n, contracting_dims = [1] x [1] : (tensor<4x2xi32>, tensor<4x2xi32>) -> tensor<4x4xi32>
  return %0, %1 : tensor<2x4xf32>, tensor<4x4xi32>
}
