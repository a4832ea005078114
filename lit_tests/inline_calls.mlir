// RUN: srjit-opt %s --split-input-file --srjit-inline-calls | filecheck %s
// RUN: srjit-opt %s --split-input-file --srjit-inline-calls --mlir-print-debuginfo --mlir-print-local-scope | filecheck %s --check-prefix=LOC
// RUN: srjit-opt %s --split-input-file --srjit-inline-calls --verify-diagnostics -o %t

// A function in a function, called twice; both go.

// CHECK-LABEL: @main
// CHECK-NEXT:    %[[ONE:.*]] = stablehlo.add %arg0, %arg0
// CHECK-NEXT:    %[[TWO:.*]] = stablehlo.negate %[[ONE]]
// CHECK-NEXT:    %[[THREE:.*]] = stablehlo.add %[[TWO]], %[[TWO]]
// CHECK-NEXT:    return %[[THREE]]
// CHECK-NOT:   @double
// CHECK-NOT:   @outer

// Locations say where the call was, and what is called.
// LOC-LABEL: @main
// LOC:         stablehlo.add {{.*}} loc("outer/double/add")
// LOC:         stablehlo.negate {{.*}} loc("outer/negate")
func.func @main(%x: tensor<2xf32>) -> tensor<2xf32> {
  %0 = call @outer(%x) : (tensor<2xf32>) -> tensor<2xf32> loc("outer")
  %1 = call @double(%0) : (tensor<2xf32>) -> tensor<2xf32>
  return %1 : tensor<2xf32>
}
func.func private @outer(%x: tensor<2xf32>) -> tensor<2xf32> {
  %0 = call @double(%x) : (tensor<2xf32>) -> tensor<2xf32> loc("double")
  %1 = stablehlo.negate %0 : tensor<2xf32> loc("negate")
  return %1 : tensor<2xf32>
}
func.func private @double(%x: tensor<2xf32>) -> tensor<2xf32> {
  %0 = stablehlo.add %x, %x : tensor<2xf32> loc("add")
  return %0 : tensor<2xf32>
}

// -----

// In the body of a loop.

// CHECK-LABEL: @loop
// CHECK:         stablehlo.while
// CHECK:         } do {
// CHECK-NEXT:      stablehlo.multiply
// CHECK-NEXT:      stablehlo.return
// CHECK-NOT:   func.func private
func.func @loop(%x: tensor<f32>) -> tensor<f32> {
  %0 = stablehlo.while(%a = %x) : tensor<f32>
    cond {
      %c = stablehlo.compare LT, %a, %a : (tensor<f32>, tensor<f32>) -> tensor<i1>
      stablehlo.return %c : tensor<i1>
    } do {
      %b = func.call @body(%a) : (tensor<f32>) -> tensor<f32>
      stablehlo.return %b : tensor<f32>
    }
  return %0 : tensor<f32>
}
func.func private @body(%x: tensor<f32>) -> tensor<f32> {
  %0 = stablehlo.multiply %x, %x : tensor<f32>
  return %0 : tensor<f32>
}

// -----

// What others may call, or still mention, stays.

// CHECK-LABEL: @kept
// CHECK-NEXT:    call @public
// CHECK-NEXT:    stablehlo.composite "user.f"
// CHECK-NEXT:    stablehlo.negate
// CHECK:       func.func @public
// CHECK:       func.func private @mentioned
func.func @kept(%x: tensor<f32>) -> tensor<f32> {
  %0 = call @public(%x) : (tensor<f32>) -> tensor<f32>
  %1 = stablehlo.composite "user.f" %0 {decomposition = @mentioned} : (tensor<f32>) -> tensor<f32>
  %2 = call @mentioned(%1) : (tensor<f32>) -> tensor<f32>
  return %2 : tensor<f32>
}
func.func @public(%x: tensor<f32>) -> tensor<f32> {
  return %x : tensor<f32>
}
func.func private @mentioned(%x: tensor<f32>) -> tensor<f32> {
  %0 = stablehlo.negate %x : tensor<f32>
  return %0 : tensor<f32>
}

// -----

// What would be lost, and what would never end.

// CHECK-LABEL: @refused
// CHECK-COUNT-6: call @
func.func @refused(%x: tensor<f32>) -> tensor<f32> {
  // expected-remark@+1 {{not inlined: an argument or result of @sharded has 'mhlo.sharding'}}
  %0 = call @sharded(%x) : (tensor<f32>) -> tensor<f32>
  // expected-remark@+1 {{not inlined: @one calls itself}}
  %1 = call @one(%0) : (tensor<f32>) -> tensor<f32>
  // expected-remark@+1 {{not inlined: @elsewhere is only declared}}
  %2 = call @elsewhere(%1) : (tensor<f32>) -> tensor<f32>
  // expected-remark@+1 {{not inlined: the call has the attribute 'mhlo.frontend_attributes'}}
  %3 = call @plain(%2) {mhlo.frontend_attributes = {a = "b"}} : (tensor<f32>) -> tensor<f32>
  return %3 : tensor<f32>
}
func.func private @sharded(%x: tensor<f32> {mhlo.sharding = "{replicated}"}) -> tensor<f32> {
  return %x : tensor<f32>
}
func.func private @one(%x: tensor<f32>) -> tensor<f32> {
  // expected-remark@+1 {{not inlined: @two calls itself}}
  %0 = call @two(%x) : (tensor<f32>) -> tensor<f32>
  return %0 : tensor<f32>
}
func.func private @two(%x: tensor<f32>) -> tensor<f32> {
  // expected-remark@+1 {{not inlined: @one calls itself}}
  %0 = call @one(%x) : (tensor<f32>) -> tensor<f32>
  return %0 : tensor<f32>
}
func.func private @elsewhere(tensor<f32>) -> tensor<f32>
func.func private @plain(%x: tensor<f32>) -> tensor<f32> {
  return %x : tensor<f32>
}
