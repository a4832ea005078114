// RUN: srjit-opt %s -p 'srjit-annotate-matmuls{params=0},srjit-insert-quantize{recipe=int8},srjit-legalize{target=cpu}' | filecheck %s
// RUN: srjit-opt %s -p 'srjit-annotate-matmuls{params=0},srjit-insert-quantize{recipe=int8},srjit-legalize{target=portable}' | filecheck %s --check-prefix PORTABLE
// RUN: not srjit-opt %s -p 'srjit-legalize{target=v5f}' 2>&1 | filecheck %s --check-prefix UNKNOWN

// A CPU multiplies int8 codes as bfloat16, which is exact.

// CHECK:       target = "cpu"
// CHECK:       func.func @main
// CHECK-NEXT:    %0:2 = call @srjit.quantize_int8_nearest
// CHECK:         call @srjit.scaled_dot_int8_int8_cpu(%0#0, %0#1, %1#0, %1#1)
// CHECK-NOT:     stablehlo.composite "srjit.q
// CHECK:       func.func private @srjit.scaled_dot_int8_int8_cpu
// CHECK:         stablehlo.dot_general {{.*}}xbf16>

// Portable: the decompositions themselves, in place.

// PORTABLE:       func.func @main
// PORTABLE-NOT:     call @srjit
// PORTABLE:         stablehlo.dot_general {{.*}}(tensor<2x4xi8>, tensor<4x4xi8>) -> tensor<2x4xi32>
// PORTABLE:         stablehlo.composite "srjit.unheard_of"
// PORTABLE:         return

// UNKNOWN: unknown target 'v5f': did you mean 'v5p' or 'v5e'
func.func @main(%w: tensor<4x4xf32>, %x: tensor<2x4xf32>) -> tensor<2x4xf32> {
  %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<2x4xf32>, tensor<4x4xf32>) -> tensor<2x4xf32>
  %1 = stablehlo.composite "srjit.unheard_of" %0 {decomposition = @same} : (tensor<2x4xf32>) -> tensor<2x4xf32>
  return %1 : tensor<2x4xf32>
}
func.func private @same(%x: tensor<2x4xf32>) -> tensor<2x4xf32> {
  return %x : tensor<2x4xf32>
}
