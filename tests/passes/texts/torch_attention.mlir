module @jit_call_torch attributes {mhlo.num_partitions = 1 : i32, mhlo.num_replicas = 1 : i32} {
  func.func public @main(%arg0: tensor<24xf32>, %arg1: tensor<72x24xf32>, %arg2: tensor<24x24xf32>, %arg3: tensor<24xf32>, %arg4: tensor<40x24xf32>, %arg5: tensor<40xf32>, %arg6: tensor<24x40xf32>, %arg7: tensor<24xf32>, %arg8: tensor<3x10x24xf32>, %arg9: tensor<3x10x24xf32>) -> (tensor<24xf32> {jax.result_info = "result[0]"}, tensor<72x24xf32> {jax.result_info = "result[1]"}, tensor<24x24xf32> {jax.result_info = "result[2]"}, tensor<24xf32> {jax.result_info = "result[3]"}, tensor<40x24xf32> {jax.result_info = "result[4]"}, tensor<40xf32> {jax.result_info = "result[5]"}, tensor<24x40xf32> {jax.result_info = "result[6]"}, tensor<24xf32> {jax.result_info = "result[7]"}) {
    %0 = stablehlo.broadcast_in_dim %arg0, dims = [2] : (tensor<24xf32>) -> tensor<1x1x24xf32>
    %1 = stablehlo.broadcast_in_dim %0, dims = [0, 1, 2] : (tensor<1x1x24xf32>) -> tensor<3x10x24xf32>
    %2 = stablehlo.multiply %1, %arg8 : tensor<3x10x24xf32>
    %3 = stablehlo.multiply %arg8, %arg8 : tensor<3x10x24xf32>
    %cst = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %4 = stablehlo.reduce(%3 init: %cst) applies stablehlo.add across dimensions = [2] : (tensor<3x10x24xf32>, tensor<f32>) -> tensor<3x10xf32>
    %5 = stablehlo.broadcast_in_dim %4, dims = [0, 1] : (tensor<3x10xf32>) -> tensor<3x10x1xf32>
    %cst_0 = stablehlo.constant dense<2.400000e+01> : tensor<f32>
    %6 = stablehlo.broadcast_in_dim %cst_0, dims = [] : (tensor<f32>) -> tensor<3x10x1xf32>
    %7 = stablehlo.divide %5, %6 : tensor<3x10x1xf32>
    %cst_1 = stablehlo.constant dense<9.99999997E-7> : tensor<f32>
    %8 = stablehlo.broadcast_in_dim %cst_1, dims = [] : (tensor<f32>) -> tensor<3x10x1xf32>
    %9 = stablehlo.add %7, %8 : tensor<3x10x1xf32>
    %10 = stablehlo.sqrt %9 : tensor<3x10x1xf32>
    %11 = stablehlo.broadcast_in_dim %10, dims = [0, 1, 2] : (tensor<3x10x1xf32>) -> tensor<3x10x24xf32>
    %12 = stablehlo.divide %2, %11 : tensor<3x10x24xf32>
    %13 = stablehlo.transpose %arg1, dims = [1, 0] : (tensor<72x24xf32>) -> tensor<24x72xf32>
    %14 = stablehlo.reshape %12 : (tensor<3x10x24xf32>) -> tensor<30x24xf32>
    %15 = stablehlo.dot_general %14, %13, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<30x24xf32>, tensor<24x72xf32>) -> tensor<30x72xf32>
    %16 = stablehlo.reshape %15 : (tensor<30x72xf32>) -> tensor<3x10x72xf32>
    %17 = stablehlo.reshape %16 : (tensor<3x10x72xf32>) -> tensor<3x10x3x2x12xf32>
    %18 = stablehlo.transpose %17, dims = [2, 0, 3, 1, 4] : (tensor<3x10x3x2x12xf32>) -> tensor<3x3x2x10x12xf32>
    %19 = stablehlo.slice %18 [0:1, 0:3, 0:2, 0:10, 0:12] : (tensor<3x3x2x10x12xf32>) -> tensor<1x3x2x10x12xf32>
    %20 = stablehlo.slice %18 [1:2, 0:3, 0:2, 0:10, 0:12] : (tensor<3x3x2x10x12xf32>) -> tensor<1x3x2x10x12xf32>
    %21 = stablehlo.slice %18 [2:3, 0:3, 0:2, 0:10, 0:12] : (tensor<3x3x2x10x12xf32>) -> tensor<1x3x2x10x12xf32>
    %22 = stablehlo.reshape %19 : (tensor<1x3x2x10x12xf32>) -> tensor<3x2x10x12xf32>
    %23 = stablehlo.reshape %20 : (tensor<1x3x2x10x12xf32>) -> tensor<3x2x10x12xf32>
    %24 = stablehlo.reshape %21 : (tensor<1x3x2x10x12xf32>) -> tensor<3x2x10x12xf32>
    %25 = stablehlo.transpose %23, dims = [0, 1, 3, 2] : (tensor<3x2x10x12xf32>) -> tensor<3x2x12x10xf32>
    %26 = stablehlo.reshape %22 : (tensor<3x2x10x12xf32>) -> tensor<6x10x12xf32>
    %27 = stablehlo.reshape %25 : (tensor<3x2x12x10xf32>) -> tensor<6x12x10xf32>
    %28 = stablehlo.dot_general %26, %27, batching_dims = [0] x [0], contracting_dims = [2] x [1], precision = [DEFAULT, DEFAULT] : (tensor<6x10x12xf32>, tensor<6x12x10xf32>) -> tensor<6x10x10xf32>
    %29 = stablehlo.reshape %28 : (tensor<6x10x10xf32>) -> tensor<3x2x10x10xf32>
    %cst_2 = stablehlo.constant dense<3.46410155> : tensor<f32>
    %30 = stablehlo.broadcast_in_dim %cst_2, dims = [] : (tensor<f32>) -> tensor<3x2x10x10xf32>
    %31 = stablehlo.divide %29, %30 : tensor<3x2x10x10xf32>
    %cst_3 = stablehlo.constant dense<0xFF800000> : tensor<f32>
    %32 = stablehlo.reduce(%31 init: %cst_3) applies stablehlo.maximum across dimensions = [3] : (tensor<3x2x10x10xf32>, tensor<f32>) -> tensor<3x2x10xf32>
    %cst_4 = stablehlo.constant dense<0xFF800000> : tensor<f32>
    %33 = stablehlo.broadcast_in_dim %cst_4, dims = [] : (tensor<f32>) -> tensor<3x2x10xf32>
    %34 = stablehlo.maximum %33, %32 : tensor<3x2x10xf32>
    %35 = stablehlo.broadcast_in_dim %34, dims = [0, 1, 2] : (tensor<3x2x10xf32>) -> tensor<3x2x10x1xf32>
    %36 = stablehlo.broadcast_in_dim %35, dims = [0, 1, 2, 3] : (tensor<3x2x10x1xf32>) -> tensor<3x2x10x10xf32>
    %37 = stablehlo.subtract %31, %36 : tensor<3x2x10x10xf32>
    %38 = stablehlo.exponential %37 : tensor<3x2x10x10xf32>
    %cst_5 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %39 = stablehlo.reduce(%38 init: %cst_5) applies stablehlo.add across dimensions = [3] : (tensor<3x2x10x10xf32>, tensor<f32>) -> tensor<3x2x10xf32>
    %40 = stablehlo.broadcast_in_dim %39, dims = [0, 1, 2] : (tensor<3x2x10xf32>) -> tensor<3x2x10x1xf32>
    %41 = stablehlo.broadcast_in_dim %40, dims = [0, 1, 2, 3] : (tensor<3x2x10x1xf32>) -> tensor<3x2x10x10xf32>
    %42 = stablehlo.divide %38, %41 : tensor<3x2x10x10xf32>
    %43 = stablehlo.reshape %42 : (tensor<3x2x10x10xf32>) -> tensor<6x10x10xf32>
    %44 = stablehlo.reshape %24 : (tensor<3x2x10x12xf32>) -> tensor<6x10x12xf32>
    %45 = stablehlo.dot_general %43, %44, batching_dims = [0] x [0], contracting_dims = [2] x [1], precision = [DEFAULT, DEFAULT] : (tensor<6x10x10xf32>, tensor<6x10x12xf32>) -> tensor<6x10x12xf32>
    %46 = stablehlo.reshape %45 : (tensor<6x10x12xf32>) -> tensor<3x2x10x12xf32>
    %47 = stablehlo.transpose %46, dims = [0, 2, 1, 3] : (tensor<3x2x10x12xf32>) -> tensor<3x10x2x12xf32>
    %48 = stablehlo.reshape %47 : (tensor<3x10x2x12xf32>) -> tensor<3x10x24xf32>
    %49 = stablehlo.reshape %48 : (tensor<3x10x24xf32>) -> tensor<30x24xf32>
    %50 = stablehlo.transpose %arg2, dims = [1, 0] : (tensor<24x24xf32>) -> tensor<24x24xf32>
    %cst_6 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %51 = stablehlo.broadcast_in_dim %cst_6, dims = [] : (tensor<f32>) -> tensor<24xf32>
    %52 = stablehlo.multiply %arg3, %51 : tensor<24xf32>
    %53 = stablehlo.dot_general %49, %50, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<30x24xf32>, tensor<24x24xf32>) -> tensor<30x24xf32>
    %cst_7 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %54 = stablehlo.broadcast_in_dim %cst_7, dims = [] : (tensor<f32>) -> tensor<30x24xf32>
    %55 = stablehlo.multiply %54, %53 : tensor<30x24xf32>
    %56 = stablehlo.broadcast_in_dim %52, dims = [1] : (tensor<24xf32>) -> tensor<1x24xf32>
    %57 = stablehlo.broadcast_in_dim %56, dims = [0, 1] : (tensor<1x24xf32>) -> tensor<30x24xf32>
    %58 = stablehlo.add %57, %55 : tensor<30x24xf32>
    %59 = stablehlo.reshape %58 : (tensor<30x24xf32>) -> tensor<3x10x24xf32>
    %cst_8 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %60 = stablehlo.broadcast_in_dim %cst_8, dims = [] : (tensor<f32>) -> tensor<3x10x24xf32>
    %61 = stablehlo.multiply %59, %60 : tensor<3x10x24xf32>
    %62 = stablehlo.add %arg8, %61 : tensor<3x10x24xf32>
    %63 = stablehlo.reshape %62 : (tensor<3x10x24xf32>) -> tensor<30x24xf32>
    %64 = stablehlo.transpose %arg4, dims = [1, 0] : (tensor<40x24xf32>) -> tensor<24x40xf32>
    %cst_9 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %65 = stablehlo.broadcast_in_dim %cst_9, dims = [] : (tensor<f32>) -> tensor<40xf32>
    %66 = stablehlo.multiply %arg5, %65 : tensor<40xf32>
    %67 = stablehlo.dot_general %63, %64, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<30x24xf32>, tensor<24x40xf32>) -> tensor<30x40xf32>
    %cst_10 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %68 = stablehlo.broadcast_in_dim %cst_10, dims = [] : (tensor<f32>) -> tensor<30x40xf32>
    %69 = stablehlo.multiply %68, %67 : tensor<30x40xf32>
    %70 = stablehlo.broadcast_in_dim %66, dims = [1] : (tensor<40xf32>) -> tensor<1x40xf32>
    %71 = stablehlo.broadcast_in_dim %70, dims = [0, 1] : (tensor<1x40xf32>) -> tensor<30x40xf32>
    %72 = stablehlo.add %71, %69 : tensor<30x40xf32>
    %73 = stablehlo.reshape %72 : (tensor<30x40xf32>) -> tensor<3x10x40xf32>
    %cst_11 = stablehlo.constant dense<5.000000e-01> : tensor<f32>
    %74 = stablehlo.broadcast_in_dim %cst_11, dims = [] : (tensor<f32>) -> tensor<3x10x40xf32>
    %75 = stablehlo.multiply %74, %73 : tensor<3x10x40xf32>
    %76 = stablehlo.negate %73 : tensor<3x10x40xf32>
    %cst_12 = stablehlo.constant dense<0.707106769> : tensor<f32>
    %77 = stablehlo.broadcast_in_dim %cst_12, dims = [] : (tensor<f32>) -> tensor<3x10x40xf32>
    %78 = stablehlo.multiply %76, %77 : tensor<3x10x40xf32>
    %79 = chlo.erfc %78 : tensor<3x10x40xf32> -> tensor<3x10x40xf32>
    %80 = stablehlo.multiply %75, %79 : tensor<3x10x40xf32>
    %81 = stablehlo.reshape %80 : (tensor<3x10x40xf32>) -> tensor<30x40xf32>
    %82 = stablehlo.transpose %arg6, dims = [1, 0] : (tensor<24x40xf32>) -> tensor<40x24xf32>
    %cst_13 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %83 = stablehlo.broadcast_in_dim %cst_13, dims = [] : (tensor<f32>) -> tensor<24xf32>
    %84 = stablehlo.multiply %arg7, %83 : tensor<24xf32>
    %85 = stablehlo.dot_general %81, %82, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<30x40xf32>, tensor<40x24xf32>) -> tensor<30x24xf32>
    %cst_14 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %86 = stablehlo.broadcast_in_dim %cst_14, dims = [] : (tensor<f32>) -> tensor<30x24xf32>
    %87 = stablehlo.multiply %86, %85 : tensor<30x24xf32>
    %88 = stablehlo.broadcast_in_dim %84, dims = [1] : (tensor<24xf32>) -> tensor<1x24xf32>
    %89 = stablehlo.broadcast_in_dim %88, dims = [0, 1] : (tensor<1x24xf32>) -> tensor<30x24xf32>
    %90 = stablehlo.add %89, %87 : tensor<30x24xf32>
    %91 = stablehlo.reshape %90 : (tensor<30x24xf32>) -> tensor<3x10x24xf32>
    %cst_15 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %92 = stablehlo.broadcast_in_dim %cst_15, dims = [] : (tensor<f32>) -> tensor<3x10x24xf32>
    %93 = stablehlo.multiply %91, %92 : tensor<3x10x24xf32>
    %94 = stablehlo.add %62, %93 : tensor<3x10x24xf32>
    %cst_16 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %95 = stablehlo.broadcast_in_dim %cst_16, dims = [] : (tensor<f32>) -> tensor<3x10x24xf32>
    %96 = stablehlo.multiply %arg9, %95 : tensor<3x10x24xf32>
    %97 = stablehlo.subtract %94, %96 : tensor<3x10x24xf32>
    %cst_17 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %98 = stablehlo.broadcast_in_dim %cst_17, dims = [] : (tensor<f32>) -> tensor<3x10x24xf32>
    %cst_18 = stablehlo.constant dense<7.200000e+02> : tensor<f32>
    %99 = stablehlo.broadcast_in_dim %cst_18, dims = [] : (tensor<f32>) -> tensor<3x10x24xf32>
    %100 = stablehlo.divide %98, %99 : tensor<3x10x24xf32>
    %cst_19 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %101 = stablehlo.broadcast_in_dim %cst_19, dims = [] : (tensor<f32>) -> tensor<3x10x24xf32>
    %102 = stablehlo.power %97, %101 : tensor<3x10x24xf32>
    %cst_20 = stablehlo.constant dense<2.000000e+00> : tensor<f32>
    %103 = stablehlo.broadcast_in_dim %cst_20, dims = [] : (tensor<f32>) -> tensor<3x10x24xf32>
    %104 = stablehlo.multiply %102, %103 : tensor<3x10x24xf32>
    %105 = stablehlo.multiply %100, %104 : tensor<3x10x24xf32>
    %106 = stablehlo.reshape %105 : (tensor<3x10x24xf32>) -> tensor<30x24xf32>
    %107 = stablehlo.transpose %82, dims = [1, 0] : (tensor<40x24xf32>) -> tensor<24x40xf32>
    %108 = stablehlo.dot_general %106, %107, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<30x24xf32>, tensor<24x40xf32>) -> tensor<30x40xf32>
    %109 = stablehlo.transpose %106, dims = [1, 0] : (tensor<30x24xf32>) -> tensor<24x30xf32>
    %110 = stablehlo.dot_general %109, %81, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<24x30xf32>, tensor<30x40xf32>) -> tensor<24x40xf32>
    %111 = stablehlo.transpose %110, dims = [1, 0] : (tensor<24x40xf32>) -> tensor<40x24xf32>
    %cst_21 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %112 = stablehlo.reduce(%106 init: %cst_21) applies stablehlo.add across dimensions = [0] : (tensor<30x24xf32>, tensor<f32>) -> tensor<24xf32>
    %113 = stablehlo.broadcast_in_dim %112, dims = [1] : (tensor<24xf32>) -> tensor<1x24xf32>
    %114 = stablehlo.reshape %113 : (tensor<1x24xf32>) -> tensor<24xf32>
    %115 = stablehlo.transpose %111, dims = [1, 0] : (tensor<40x24xf32>) -> tensor<24x40xf32>
    %116 = stablehlo.reshape %108 : (tensor<30x40xf32>) -> tensor<3x10x40xf32>
    %cst_22 = stablehlo.constant dense<0.707106769> : tensor<f32>
    %117 = stablehlo.broadcast_in_dim %cst_22, dims = [] : (tensor<f32>) -> tensor<3x10x40xf32>
    %118 = stablehlo.multiply %73, %117 : tensor<3x10x40xf32>
    %119 = chlo.erf %118 : tensor<3x10x40xf32> -> tensor<3x10x40xf32>
    %cst_23 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %120 = stablehlo.broadcast_in_dim %cst_23, dims = [] : (tensor<f32>) -> tensor<3x10x40xf32>
    %121 = stablehlo.add %119, %120 : tensor<3x10x40xf32>
    %cst_24 = stablehlo.constant dense<5.000000e-01> : tensor<f32>
    %122 = stablehlo.broadcast_in_dim %cst_24, dims = [] : (tensor<f32>) -> tensor<3x10x40xf32>
    %123 = stablehlo.multiply %121, %122 : tensor<3x10x40xf32>
    %124 = stablehlo.multiply %73, %73 : tensor<3x10x40xf32>
    %cst_25 = stablehlo.constant dense<-5.000000e-01> : tensor<f32>
    %125 = stablehlo.broadcast_in_dim %cst_25, dims = [] : (tensor<f32>) -> tensor<3x10x40xf32>
    %126 = stablehlo.multiply %124, %125 : tensor<3x10x40xf32>
    %127 = stablehlo.exponential %126 : tensor<3x10x40xf32>
    %cst_26 = stablehlo.constant dense<0.398942292> : tensor<f32>
    %128 = stablehlo.broadcast_in_dim %cst_26, dims = [] : (tensor<f32>) -> tensor<3x10x40xf32>
    %129 = stablehlo.multiply %127, %128 : tensor<3x10x40xf32>
    %130 = stablehlo.multiply %73, %129 : tensor<3x10x40xf32>
    %cst_27 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %131 = stablehlo.broadcast_in_dim %cst_27, dims = [] : (tensor<f32>) -> tensor<3x10x40xf32>
    %132 = stablehlo.multiply %130, %131 : tensor<3x10x40xf32>
    %133 = stablehlo.add %123, %132 : tensor<3x10x40xf32>
    %134 = stablehlo.multiply %116, %133 : tensor<3x10x40xf32>
    %135 = stablehlo.reshape %134 : (tensor<3x10x40xf32>) -> tensor<30x40xf32>
    %136 = stablehlo.transpose %64, dims = [1, 0] : (tensor<24x40xf32>) -> tensor<40x24xf32>
    %137 = stablehlo.dot_general %135, %136, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<30x40xf32>, tensor<40x24xf32>) -> tensor<30x24xf32>
    %138 = stablehlo.transpose %135, dims = [1, 0] : (tensor<30x40xf32>) -> tensor<40x30xf32>
    %139 = stablehlo.dot_general %138, %63, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<40x30xf32>, tensor<30x24xf32>) -> tensor<40x24xf32>
    %140 = stablehlo.transpose %139, dims = [1, 0] : (tensor<40x24xf32>) -> tensor<24x40xf32>
    %cst_28 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %141 = stablehlo.reduce(%135 init: %cst_28) applies stablehlo.add across dimensions = [0] : (tensor<30x40xf32>, tensor<f32>) -> tensor<40xf32>
    %142 = stablehlo.broadcast_in_dim %141, dims = [1] : (tensor<40xf32>) -> tensor<1x40xf32>
    %143 = stablehlo.reshape %142 : (tensor<1x40xf32>) -> tensor<40xf32>
    %144 = stablehlo.transpose %140, dims = [1, 0] : (tensor<24x40xf32>) -> tensor<40x24xf32>
    %145 = stablehlo.reshape %137 : (tensor<30x24xf32>) -> tensor<3x10x24xf32>
    %cst_29 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %146 = stablehlo.broadcast_in_dim %cst_29, dims = [] : (tensor<f32>) -> tensor<3x10x24xf32>
    %147 = stablehlo.multiply %145, %146 : tensor<3x10x24xf32>
    %148 = stablehlo.add %105, %147 : tensor<3x10x24xf32>
    %149 = stablehlo.reshape %148 : (tensor<3x10x24xf32>) -> tensor<30x24xf32>
    %150 = stablehlo.transpose %50, dims = [1, 0] : (tensor<24x24xf32>) -> tensor<24x24xf32>
    %151 = stablehlo.dot_general %149, %150, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<30x24xf32>, tensor<24x24xf32>) -> tensor<30x24xf32>
    %152 = stablehlo.transpose %149, dims = [1, 0] : (tensor<30x24xf32>) -> tensor<24x30xf32>
    %153 = stablehlo.dot_general %152, %49, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<24x30xf32>, tensor<30x24xf32>) -> tensor<24x24xf32>
    %154 = stablehlo.transpose %153, dims = [1, 0] : (tensor<24x24xf32>) -> tensor<24x24xf32>
    %cst_30 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %155 = stablehlo.reduce(%149 init: %cst_30) applies stablehlo.add across dimensions = [0] : (tensor<30x24xf32>, tensor<f32>) -> tensor<24xf32>
    %156 = stablehlo.broadcast_in_dim %155, dims = [1] : (tensor<24xf32>) -> tensor<1x24xf32>
    %157 = stablehlo.reshape %156 : (tensor<1x24xf32>) -> tensor<24xf32>
    %158 = stablehlo.transpose %154, dims = [1, 0] : (tensor<24x24xf32>) -> tensor<24x24xf32>
    %159 = stablehlo.reshape %151 : (tensor<30x24xf32>) -> tensor<3x10x24xf32>
    %160 = stablehlo.reshape %159 : (tensor<3x10x24xf32>) -> tensor<3x10x2x12xf32>
    %161 = stablehlo.transpose %160, dims = [0, 2, 1, 3] : (tensor<3x10x2x12xf32>) -> tensor<3x2x10x12xf32>
    %162 = stablehlo.reshape %161 : (tensor<3x2x10x12xf32>) -> tensor<6x10x12xf32>
    %163 = stablehlo.transpose %43, dims = [0, 2, 1] : (tensor<6x10x10xf32>) -> tensor<6x10x10xf32>
    %164 = stablehlo.dot_general %163, %162, batching_dims = [0] x [0], contracting_dims = [2] x [1], precision = [DEFAULT, DEFAULT] : (tensor<6x10x10xf32>, tensor<6x10x12xf32>) -> tensor<6x10x12xf32>
    %165 = stablehlo.transpose %44, dims = [0, 2, 1] : (tensor<6x10x12xf32>) -> tensor<6x12x10xf32>
    %166 = stablehlo.dot_general %162, %165, batching_dims = [0] x [0], contracting_dims = [2] x [1], precision = [DEFAULT, DEFAULT] : (tensor<6x10x12xf32>, tensor<6x12x10xf32>) -> tensor<6x10x10xf32>
    %167 = stablehlo.reshape %164 : (tensor<6x10x12xf32>) -> tensor<3x2x10x12xf32>
    %168 = stablehlo.reshape %166 : (tensor<6x10x10xf32>) -> tensor<3x2x10x10xf32>
    %169 = stablehlo.multiply %168, %42 : tensor<3x2x10x10xf32>
    %cst_31 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %170 = stablehlo.reduce(%169 init: %cst_31) applies stablehlo.add across dimensions = [3] : (tensor<3x2x10x10xf32>, tensor<f32>) -> tensor<3x2x10xf32>
    %171 = stablehlo.broadcast_in_dim %170, dims = [0, 1, 2] : (tensor<3x2x10xf32>) -> tensor<3x2x10x1xf32>
    %172 = stablehlo.broadcast_in_dim %171, dims = [0, 1, 2, 3] : (tensor<3x2x10x1xf32>) -> tensor<3x2x10x10xf32>
    %173 = stablehlo.multiply %42, %172 : tensor<3x2x10x10xf32>
    %cst_32 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %174 = stablehlo.broadcast_in_dim %cst_32, dims = [] : (tensor<f32>) -> tensor<3x2x10x10xf32>
    %175 = stablehlo.multiply %173, %174 : tensor<3x2x10x10xf32>
    %176 = stablehlo.subtract %169, %175 : tensor<3x2x10x10xf32>
    %cst_33 = stablehlo.constant dense<3.46410155> : tensor<f32>
    %177 = stablehlo.broadcast_in_dim %cst_33, dims = [] : (tensor<f32>) -> tensor<3x2x10x10xf32>
    %178 = stablehlo.divide %176, %177 : tensor<3x2x10x10xf32>
    %179 = stablehlo.reshape %178 : (tensor<3x2x10x10xf32>) -> tensor<6x10x10xf32>
    %180 = stablehlo.transpose %26, dims = [0, 2, 1] : (tensor<6x10x12xf32>) -> tensor<6x12x10xf32>
    %181 = stablehlo.dot_general %180, %179, batching_dims = [0] x [0], contracting_dims = [2] x [1], precision = [DEFAULT, DEFAULT] : (tensor<6x12x10xf32>, tensor<6x10x10xf32>) -> tensor<6x12x10xf32>
    %182 = stablehlo.transpose %27, dims = [0, 2, 1] : (tensor<6x12x10xf32>) -> tensor<6x10x12xf32>
    %183 = stablehlo.dot_general %179, %182, batching_dims = [0] x [0], contracting_dims = [2] x [1], precision = [DEFAULT, DEFAULT] : (tensor<6x10x10xf32>, tensor<6x10x12xf32>) -> tensor<6x10x12xf32>
    %184 = stablehlo.reshape %181 : (tensor<6x12x10xf32>) -> tensor<3x2x12x10xf32>
    %185 = stablehlo.reshape %183 : (tensor<6x10x12xf32>) -> tensor<3x2x10x12xf32>
    %186 = stablehlo.transpose %184, dims = [0, 1, 3, 2] : (tensor<3x2x12x10xf32>) -> tensor<3x2x10x12xf32>
    %187 = stablehlo.broadcast_in_dim %185, dims = [1, 2, 3, 4] : (tensor<3x2x10x12xf32>) -> tensor<1x3x2x10x12xf32>
    %188 = stablehlo.broadcast_in_dim %186, dims = [1, 2, 3, 4] : (tensor<3x2x10x12xf32>) -> tensor<1x3x2x10x12xf32>
    %189 = stablehlo.broadcast_in_dim %167, dims = [1, 2, 3, 4] : (tensor<3x2x10x12xf32>) -> tensor<1x3x2x10x12xf32>
    %190 = stablehlo.concatenate %187, %188, %189, dim = 0 : (tensor<1x3x2x10x12xf32>, tensor<1x3x2x10x12xf32>, tensor<1x3x2x10x12xf32>) -> tensor<3x3x2x10x12xf32>
    %191 = stablehlo.transpose %190, dims = [1, 3, 0, 2, 4] : (tensor<3x3x2x10x12xf32>) -> tensor<3x10x3x2x12xf32>
    %192 = stablehlo.reshape %191 : (tensor<3x10x3x2x12xf32>) -> tensor<3x10x72xf32>
    %193 = stablehlo.reshape %192 : (tensor<3x10x72xf32>) -> tensor<30x72xf32>
    %194 = stablehlo.transpose %193, dims = [1, 0] : (tensor<30x72xf32>) -> tensor<72x30xf32>
    %195 = stablehlo.dot_general %194, %14, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<72x30xf32>, tensor<30x24xf32>) -> tensor<72x24xf32>
    %196 = stablehlo.transpose %195, dims = [1, 0] : (tensor<72x24xf32>) -> tensor<24x72xf32>
    %197 = stablehlo.transpose %13, dims = [1, 0] : (tensor<24x72xf32>) -> tensor<72x24xf32>
    %198 = stablehlo.dot_general %193, %197, contracting_dims = [1] x [0], precision = [DEFAULT, DEFAULT] : (tensor<30x72xf32>, tensor<72x24xf32>) -> tensor<30x24xf32>
    %199 = stablehlo.reshape %198 : (tensor<30x24xf32>) -> tensor<3x10x24xf32>
    %200 = stablehlo.transpose %196, dims = [1, 0] : (tensor<24x72xf32>) -> tensor<72x24xf32>
    %201 = stablehlo.broadcast_in_dim %10, dims = [0, 1, 2] : (tensor<3x10x1xf32>) -> tensor<3x10x24xf32>
    %202 = stablehlo.divide %199, %201 : tensor<3x10x24xf32>
    %203 = stablehlo.multiply %202, %arg8 : tensor<3x10x24xf32>
    %cst_34 = stablehlo.constant dense<0.000000e+00> : tensor<f32>
    %204 = stablehlo.reduce(%203 init: %cst_34) applies stablehlo.add across dimensions = [0, 1] : (tensor<3x10x24xf32>, tensor<f32>) -> tensor<24xf32>
    %205 = stablehlo.broadcast_in_dim %204, dims = [2] : (tensor<24xf32>) -> tensor<1x1x24xf32>
    %206 = stablehlo.reshape %205 : (tensor<1x1x24xf32>) -> tensor<24xf32>
    %cst_35 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %207 = stablehlo.broadcast_in_dim %cst_35, dims = [] : (tensor<f32>) -> tensor<24xf32>
    %208 = stablehlo.multiply %206, %207 : tensor<24xf32>
    %cst_36 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %209 = stablehlo.broadcast_in_dim %cst_36, dims = [] : (tensor<f32>) -> tensor<24xf32>
    %210 = stablehlo.multiply %208, %209 : tensor<24xf32>
    %211 = stablehlo.subtract %arg0, %210 : tensor<24xf32>
    %cst_37 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %212 = stablehlo.broadcast_in_dim %cst_37, dims = [] : (tensor<f32>) -> tensor<72x24xf32>
    %213 = stablehlo.multiply %200, %212 : tensor<72x24xf32>
    %cst_38 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %214 = stablehlo.broadcast_in_dim %cst_38, dims = [] : (tensor<f32>) -> tensor<72x24xf32>
    %215 = stablehlo.multiply %213, %214 : tensor<72x24xf32>
    %216 = stablehlo.subtract %arg1, %215 : tensor<72x24xf32>
    %cst_39 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %217 = stablehlo.broadcast_in_dim %cst_39, dims = [] : (tensor<f32>) -> tensor<24x24xf32>
    %218 = stablehlo.multiply %158, %217 : tensor<24x24xf32>
    %cst_40 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %219 = stablehlo.broadcast_in_dim %cst_40, dims = [] : (tensor<f32>) -> tensor<24x24xf32>
    %220 = stablehlo.multiply %218, %219 : tensor<24x24xf32>
    %221 = stablehlo.subtract %arg2, %220 : tensor<24x24xf32>
    %cst_41 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %222 = stablehlo.broadcast_in_dim %cst_41, dims = [] : (tensor<f32>) -> tensor<24xf32>
    %223 = stablehlo.multiply %157, %222 : tensor<24xf32>
    %cst_42 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %224 = stablehlo.broadcast_in_dim %cst_42, dims = [] : (tensor<f32>) -> tensor<24xf32>
    %225 = stablehlo.multiply %223, %224 : tensor<24xf32>
    %226 = stablehlo.subtract %arg3, %225 : tensor<24xf32>
    %cst_43 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %227 = stablehlo.broadcast_in_dim %cst_43, dims = [] : (tensor<f32>) -> tensor<40x24xf32>
    %228 = stablehlo.multiply %144, %227 : tensor<40x24xf32>
    %cst_44 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %229 = stablehlo.broadcast_in_dim %cst_44, dims = [] : (tensor<f32>) -> tensor<40x24xf32>
    %230 = stablehlo.multiply %228, %229 : tensor<40x24xf32>
    %231 = stablehlo.subtract %arg4, %230 : tensor<40x24xf32>
    %cst_45 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %232 = stablehlo.broadcast_in_dim %cst_45, dims = [] : (tensor<f32>) -> tensor<40xf32>
    %233 = stablehlo.multiply %143, %232 : tensor<40xf32>
    %cst_46 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %234 = stablehlo.broadcast_in_dim %cst_46, dims = [] : (tensor<f32>) -> tensor<40xf32>
    %235 = stablehlo.multiply %233, %234 : tensor<40xf32>
    %236 = stablehlo.subtract %arg5, %235 : tensor<40xf32>
    %cst_47 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %237 = stablehlo.broadcast_in_dim %cst_47, dims = [] : (tensor<f32>) -> tensor<24x40xf32>
    %238 = stablehlo.multiply %115, %237 : tensor<24x40xf32>
    %cst_48 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %239 = stablehlo.broadcast_in_dim %cst_48, dims = [] : (tensor<f32>) -> tensor<24x40xf32>
    %240 = stablehlo.multiply %238, %239 : tensor<24x40xf32>
    %241 = stablehlo.subtract %arg6, %240 : tensor<24x40xf32>
    %cst_49 = stablehlo.constant dense<1.000000e-01> : tensor<f32>
    %242 = stablehlo.broadcast_in_dim %cst_49, dims = [] : (tensor<f32>) -> tensor<24xf32>
    %243 = stablehlo.multiply %114, %242 : tensor<24xf32>
    %cst_50 = stablehlo.constant dense<1.000000e+00> : tensor<f32>
    %244 = stablehlo.broadcast_in_dim %cst_50, dims = [] : (tensor<f32>) -> tensor<24xf32>
    %245 = stablehlo.multiply %243, %244 : tensor<24xf32>
    %246 = stablehlo.subtract %arg7, %245 : tensor<24xf32>
    return %211, %216, %221, %226, %231, %236, %241, %246 : tensor<24xf32>, tensor<72x24xf32>, tensor<24x24xf32>, tensor<24xf32>, tensor<40x24xf32>, tensor<40xf32>, tensor<24x40xf32>, tensor<24xf32>
  }
}
