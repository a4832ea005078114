// RUN: srjit-opt %s -p 'builtin.module(srjit-inline-calls,func.func(canonicalize,cse),srjit-strip-annotations{interface=true})' --dump-pass-pipeline | filecheck %s
// RUN: srjit-opt %s -p 'srjit-inline-calls,func.func(cse)' --mlir-print-ir-after=cse --mlir-print-ir-before=srjit-inline-calls -o %t 2>&1 | filecheck %s --check-prefix=PRINT
// RUN: srjit-opt %s --emit-bytecode | srjit-opt --srjit-inline-calls --canonicalize | filecheck %s
// RUN: srjit-opt %s --emit-portable-artifact | srjit-opt --srjit-inline-calls --canonicalize --srjit-strip-annotations=interface=true | filecheck %s
// RUN: not srjit-opt %s -p 'builtin.module(func.func(srjit-inline-calls))' 2>&1 | filecheck %s --check-prefix=NESTED
// RUN: not srjit-opt %s -p 'srjit-inline-cals' 2>&1 | filecheck %s --check-prefix=UNKNOWN

// srjit's passes among MLIR's own.

// CHECK-LABEL: @main
// CHECK-NEXT:    return %arg0
// CHECK-NOT:   @identity

// PRINT:       IR Dump Before srjit-inline-calls
// PRINT:       call @identity
// PRINT:       IR Dump After cse ('func.func' operation: @main)

// NESTED:      'srjit-inline-calls' runs on the whole module and cannot be nested under 'func.func'
// NESTED-NEXT:   builtin.module(func.func(srjit-inline-calls))
// NESTED-NEXT:                           ^

// UNKNOWN:     unknown pass 'srjit-inline-cals'; did you mean 'srjit-inline-calls'
func.func @main(%x: tensor<2xui32> {srjit.key = true}) -> tensor<2xui32> {
  %0 = call @identity(%x) : (tensor<2xui32>) -> tensor<2xui32>
  %1 = stablehlo.add %0, %0 : tensor<2xui32>
  return %0 : tensor<2xui32>
}
func.func private @identity(%x: tensor<2xui32>) -> tensor<2xui32> {
  return %x : tensor<2xui32>
}
