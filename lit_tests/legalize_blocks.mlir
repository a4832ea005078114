// RUN: srjit-opt %s -p 'srjit-annotate-matmuls{params=0,1},srjit-insert-quantize{recipe=nvfp4},srjit-legalize{target=b200}' | filecheck %s
// RUN: srjit-opt %s -p 'srjit-annotate-matmuls{params=0,1},srjit-insert-quantize{recipe=nvfp4},srjit-legalize{target=h200}' | filecheck %s --check-prefix MERGED

// A B200 multiplies codes with the scales of their blocks beside them. What is quantized along both
// of its dimensions is read once for both.

// CHECK:       func.func @main(%arg0: {{.*}}, %arg1: {{.*}}, %[[X:[^ :]*]]:
// CHECK:         %[[Q:[^ :]*]]:6 = call @srjit.quantize_nvfp4_together_b200(%[[X]])
// CHECK-SAME:      -> (tensor<32x64xf4E2M1FN>, tensor<32x4xf8E4M3FN>, tensor<f32>, tensor<32x64xf4E2M1FN>, tensor<2x64xf8E4M3FN>, tensor<f32>)
// CHECK-NOT:     call @srjit.quantize{{.*}}(%[[X]])
// CHECK:         call @srjit.scaled_dot_nvfp4_nvfp4_b200(%[[Q]]#0, %[[Q]]#1, %[[Q]]#2,
// CHECK:         call @srjit.scaled_dot_nvfp4_nvfp4_b200{{.*}}, %[[Q]]#3, %[[Q]]#4, %[[Q]]#5)

// MERGED:      call @srjit.quantize_nvfp4_nearest_h200{{.*}} -> (tensor<{{[0-9x]*}}xbf16>, tensor<f32>)
// MERGED:      call @srjit.scaled_dot_nvfp4_nvfp4_h200(%{{[0-9]*}}#0, %{{[0-9]*}}#1, %{{[0-9]*}}#0, %{{[0-9]*}}#1)
module attributes {mhlo.num_partitions = 1 : i32, mhlo.num_replicas = 1 : i32} {
  func.func @main(%w: tensor<64x16xf32>, %v: tensor<16x32xf32>, %x: tensor<32x64xf32>) -> (tensor<32x16xf32>, tensor<16x64xf32>) {
    %0 = stablehlo.dot_general %x, %w, contracting_dims = [1] x [0] : (tensor<32x64xf32>, tensor<64x16xf32>) -> tensor<32x16xf32>
    %1 = stablehlo.dot_general %v, %x, contracting_dims = [1] x [0] : (tensor<16x32xf32>, tensor<32x64xf32>) -> tensor<16x64xf32>
    return %0, %1 : tensor<32x16xf32>, tensor<16x64xf32>
  }
}
