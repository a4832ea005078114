module @jit_call_torch attributes {mhlo.num_partitions = 1 : i32, mhlo.num_replicas = 1 : i32} {
  func.func public @main(%arg0: tensor<40x24xf32>, %arg1: tensor<40xf32>, %arg2: tensor<8x40xf32>, %arg3: tensor<8xf32>, %arg4: tensor<16x24xf32>, %arg5: tensor<16x8xf32>) -> (tensor<40x24xf32> {jax.result_info = "result[0]"}, tensor<40xf32> {jax.result_info = "result[1]"}, tensor<8x40xf32> {jax.result_info = "result[2]"}, tensor<8xf32> {jax.result_info = "result[3]"}) {
    %0 = stablehlo.transpose %arg0, dims = [1, 0] : (tensor<40x24xf32>) -> tensor<24x40xf32>
    %cst = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %1 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<40xf32>
    %2 = stablehlo.multiply %arg1, %1 : tensor<40xf32>
    %3 = stablehlo.dot_general %arg4, %0, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<16x24xf32>, tensor<24x40xf32>) -> tensor<16x40xf32>
    %cst_0 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %4 = stablehlo.broadcast_in_dim %cst_0, dims = [] : (tensor<f32>) -> tensor<16x40xf32>
    %5 = stablehlo.multiply %4, %3 : tensor<16x40xf32>
    %6 = stablehlo.broadcast_in_dim %2, dims = [1] : (tensor<40xf32>) -> tensor<1x40xf32>
    %7 = stablehlo.broadcast_in_dim %6, dims = [0, 1] : (tensor<1x40xf32>) -> tensor<16x40xf32>
    %8 = stablehlo.add %7, %5 : tensor<16x40xf32>
    %9 = call @relu(%8) : (tensor<16x40xf32>) -> tensor<16x40xf32>
    %10 = stablehlo.transpose %arg2, dims = [1, 0] : (tensor<8x40xf32>) -> tensor<40x8xf32>
    %cst_1 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %11 = stablehlo.broadcast_in_dim %cst_1, dims = [] : (tensor<f32>) -> tensor<8xf32>
    %12 = stablehlo.multiply %arg3, %11 : tensor<8xf32>
    %13 = stablehlo.dot_general %9, %10, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<16x40xf32>, tensor<40x8xf32>) -> tensor<16x8xf32>
    %cst_2 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %14 = stablehlo.broadcast_in_dim %cst_2, dims = [] : (tensor<f32>) -> tensor<16x8xf32>
    %15 = stablehlo.multiply %14, %13 : tensor<16x8xf32>
    %16 = stablehlo.broadcast_in_dim %12, dims = [1] : (tensor<8xf32>) -> tensor<1x8xf32>
    %17 = stablehlo.broadcast_in_dim %16, dims = [0, 1] : (tensor<1x8xf32>) -> tensor<16x8xf32>
    %18 = stablehlo.add %17, %15 : tensor<16x8xf32>
    %cst_3 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %19 = stablehlo.broadcast_in_dim %cst_3, dims = [] : (tensor<f32>) -> tensor<16x8xf32>
    %20 = stablehlo.multiply %arg5, %19 : tensor<16x8xf32>
    %21 = stablehlo.subtract %18, %20 : tensor<16x8xf32>
    %cst_4 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %22 = stablehlo.broadcast_in_dim %cst_4, dims = [] : (tensor<f32>) -> tensor<16x8xf32>
    %cst_5 = stablehlo.constant dense<1.280000e+02> : tensor<f32>
    %23 = stablehlo.broadcast_in_dim %cst_5, dims = [] : (tensor<f32>) -> tensor<16x8xf32>
    %24 = stablehlo.divide %22, %23 : tensor<16x8xf32>
    %cst_6 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %25 = stablehlo.broadcast_in_dim %cst_6, dims = [] : (tensor<f32>) -> tensor<16x8xf32>
    %26 = stablehlo.power %21, %25 : tensor<16x8xf32>
    %cst_7 = stablehlo.constant dense<2.000000e+00> : tensor<f32>
    %27 = stablehlo.broadcast_in_dim %cst_7, dims = [] : (tensor<f32>) -> tensor<16x8xf32>
    %28 = stablehlo.multiply %26, %27 : tensor<16x8xf32>
    %29 = stablehlo.multiply %24, %28 : tensor<16x8xf32>
    %30 = stablehlo.transpose %10, dims = [1, 0] : (tensor<40x8xf32>) -> tensor<8x40xf32>
    %31 = stablehlo.dot_general %29, %30, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<16x8xf32>, tensor<8x40xf32>) -> tensor<16x40xf32>
    %32 = stablehlo.transpose %29, dims = [1, 0] : (tensor<16x8xf32>) -> tensor<8x16xf32>
    %33 = stablehlo.dot_general %32, %9, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<8x16xf32>, tensor<16x40xf32>) -> tensor<8x40xf32>
    %34 = stablehlo.transpose %33, dims = [1, 0] : (tensor<8x40xf32>) -> tensor<40x8xf32>
    %cst_8 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %35 = stablehlo.reduce(%29 init: %cst_8) applies stablehlo.add across dimensions = [0] : (tensor<16x8xf32>, tensor<f32>) -> tensor<8xf32>
    %36 = stablehlo.broadcast_in_dim %35, dims = [1] : (tensor<8xf32>) -> tensor<1x8xf32>
    %37 = stablehlo.reshape %36 : (tensor<1x8xf32>) -> tensor<8xf32>
    %38 = stablehlo.transpose %34, dims = [1, 0] : (tensor<40x8xf32>) -> tensor<8x40xf32>
    %cst_9 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %39 = stablehlo.broadcast_in_dim %cst_9, dims = [] : (tensor<f32>) -> tensor<16x40xf32>
    %40 = stablehlo.compare LE, %9, %39, FLOAT : (tensor<16x40xf32>, tensor<16x40xf32>) -> tensor<16x40xi1>
    %cst_10 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %41 = call @_where(%40, %cst_10, %31) : (tensor<16x40xi1>, tensor<f32>, tensor<16x40xf32>) -> tensor<16x40xf32>
    %42 = stablehlo.transpose %41, dims = [1, 0] : (tensor<16x40xf32>) -> tensor<40x16xf32>
    %43 = stablehlo.dot_general %42, %arg4, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<40x16xf32>, tensor<16x24xf32>) -> tensor<40x24xf32>
    %44 = stablehlo.transpose %43, dims = [1, 0] : (tensor<40x24xf32>) -> tensor<24x40xf32>
    %cst_11 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %45 = stablehlo.reduce(%41 init: %cst_11) applies stablehlo.add across dimensions = [0] : (tensor<16x40xf32>, tensor<f32>) -> tensor<40xf32>
    %46 = stablehlo.broadcast_in_dim %45, dims = [1] : (tensor<40xf32>) -> tensor<1x40xf32>
    %47 = stablehlo.reshape %46 : (tensor<1x40xf32>) -> tensor<40xf32>
    %48 = stablehlo.transpose %44, dims = [1, 0] : (tensor<24x40xf32>) -> tensor<40x24xf32>
    %cst_12 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %49 = stablehlo.broadcast_in_dim %cst_12, dims = [] : (tensor<f32>) -> tensor<40x24xf32>
    %50 = stablehlo.multiply %48, %49 : tensor<40x24xf32>
    %cst_13 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %51 = stablehlo.broadcast_in_dim %cst_13, dims = [] : (tensor<f32>) -> tensor<40x24xf32>
    %52 = stablehlo.multiply %50, %51 : tensor<40x24xf32>
    %53 = stablehlo.subtract %arg0, %52 : tensor<40x24xf32>
    %cst_14 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %54 = stablehlo.broadcast_in_dim %cst_14, dims = [] : (tensor<f32>) -> tensor<40xf32>
    %55 = stablehlo.multiply %47, %54 : tensor<40xf32>
    %cst_15 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %56 = stablehlo.broadcast_in_dim %cst_15, dims = [] : (tensor<f32>) -> tensor<40xf32>
    %57 = stablehlo.multiply %55, %56 : tensor<40xf32>
    %58 = stablehlo.subtract %arg1, %57 : tensor<40xf32>
    %cst_16 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %59 = stablehlo.broadcast_in_dim %cst_16, dims = [] : (tensor<f32>) -> tensor<8x40xf32>
    %60 = stablehlo.multiply %38, %59 : tensor<8x40xf32>
    %cst_17 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %61 = stablehlo.broadcast_in_dim %cst_17, dims = [] : (tensor<f32>) -> tensor<8x40xf32>
    %62 = stablehlo.multiply %60, %61 : tensor<8x40xf32>
    %63 = stablehlo.subtract %arg2, %62 : tensor<8x40xf32>
    %cst_18 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %64 = stablehlo.broadcast_in_dim %cst_18, dims = [] : (tensor<f32>) -> tensor<8xf32>
    %65 = stablehlo.multiply %37, %64 : tensor<8xf32>
    %cst_19 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %66 = stablehlo.broadcast_in_dim %cst_19, dims = [] : (tensor<f32>) -> tensor<8xf32>
    %67 = stablehlo.multiply %65, %66 : tensor<8xf32>
    %68 = stablehlo.subtract %arg3, %67 : tensor<8xf32>
    return %53, %58, %63, %68 : tensor<40x24xf32>, tensor<40xf32>, tensor<8x40xf32>, tensor<8xf32>
  }
  func.func private @relu(%arg0: tensor<16x40xf32>) -> tensor<16x40xf32> {
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %0 = stablehlo.broadcast_in_dim %cst, dims = [] : (tensor<f32>) -> tensor<16x40xf32>
    %1 = stablehlo.maximum %arg0, %0 : tensor<16x40xf32>
    return %1 : tensor<16x40xf32>
  }
  func.func private @_where(%arg0: tensor<16x40xi1>, %arg1: tensor<f32>, %arg2: tensor<16x40xf32>) -> tensor<16x40xf32> {
    %0 = stablehlo.broadcast_in_dim %arg1, dims = [] : (tensor<f32>) -> tensor<16x40xf32>
    %1 = stablehlo.select %arg0, %0, %arg2 : tensor<16x40xi1>, tensor<16x40xf32>
    return %1 : tensor<16x40xf32>
  }
}
