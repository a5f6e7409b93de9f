"""Names of real kernels, as TensorRT and the profilers tell them."""

INT8_TACTIC = "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x64_stage4_warpsize2x2x1_tensor16x8x32"
HALF_TACTIC = "sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize128x64x32_stage4_warpsize2x2x1_tensor16x8x16"
