// RUN: srjit-opt %s -p 'srjit-eliminate-dead-code' --split-input-file | filecheck %s

// A function whose results are not all used by a call becomes, for that call, one that has only those;
// what the dropped result needed goes, and the argument that only it needed.

// CHECK-LABEL: func.func @main
// CHECK-NEXT:    %{{.*}} = call @two_live(%arg0) : (tensor<4x4xf32>) -> tensor<4x4xf32>
// CHECK-NEXT:    return
// CHECK:       func.func private @two_live(%arg0: tensor<4x4xf32>) -> tensor<4x4xf32>
// CHECK-NEXT:    stablehlo.tanh
// CHECK-NEXT:    return
func.func @main(%x: tensor<4x4xf32>, %w: tensor<4x4xf32>) -> tensor<4x4xf32> {
  %0:2 = call @two(%x, %w) : (tensor<4x4xf32>, tensor<4x4xf32>) -> (tensor<4x4xf32>, tensor<4x4xf32>)
  return %0#0 : tensor<4x4xf32>
}
func.func private @two(%x: tensor<4x4xf32>, %w: tensor<4x4xf32>) -> (tensor<4x4xf32>, tensor<4x4xf32>) {
  %0 = stablehlo.tanh %x : tensor<4x4xf32>
  %1 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<4x4xf32>, tensor<4x4xf32>) -> tensor<4x4xf32>
  return %0, %1 : tensor<4x4xf32>, tensor<4x4xf32>
}

// -----

// A loop loses what it carries for nothing.

// CHECK-LABEL: func.func @main
// CHECK:         stablehlo.while(%{{.*}} = %{{.*}}, %{{.*}} = %arg0) : tensor<i32>, tensor<4xf32>
// CHECK-NOT:     stablehlo.exponential
// CHECK:         return
func.func @main(%x: tensor<4xf32>, %y: tensor<4xf32>) -> tensor<4xf32> {
  %zero = stablehlo.constant dense<0> : tensor<i32>
  %0:3 = stablehlo.while(%i = %zero, %a = %x, %b = %y) : tensor<i32>, tensor<4xf32>, tensor<4xf32>
  cond {
    %n = stablehlo.constant dense<3> : tensor<i32>
    %p = stablehlo.compare LT, %i, %n : (tensor<i32>, tensor<i32>) -> tensor<i1>
    stablehlo.return %p : tensor<i1>
  } do {
    %one = stablehlo.constant dense<1> : tensor<i32>
    %j = stablehlo.add %i, %one : tensor<i32>
    %c = stablehlo.tanh %a : tensor<4xf32>
    %d = stablehlo.exponential %b : tensor<4xf32>
    stablehlo.return %j, %c, %d : tensor<i32>, tensor<4xf32>, tensor<4xf32>
  }
  return %0#1 : tensor<4xf32>
}

// -----

// What has effects stays.

// CHECK-LABEL: func.func @main
// CHECK-NEXT:    stablehlo.custom_call @print
// CHECK-NEXT:    return
func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %0 = stablehlo.custom_call @print(%x) {has_side_effect = true} : (tensor<4xf32>) -> tensor<4xf32>
  %1 = stablehlo.custom_call @pure(%x) : (tensor<4xf32>) -> tensor<4xf32>
  return %x : tensor<4xf32>
}
