"""Names of real kernels, as TensorRT and the profilers tell them, with what they multiply.

The cuBLAS, CUTLASS and cuBLASLt ones of sm_90 were traced on an H100 (torch 2.11, CUDA 13.0: `torch.mm`,
`torch._scaled_mm`, `torch._int_mm`, `linear`, at 1, 32, 256 and 8,192 rows; cut after the first parameters); the others
stand in public profiles and issues.
"""

INT8_TACTIC = "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x64_stage4_warpsize2x2x1_tensor16x8x32"
HALF_TACTIC = "sm80_xmma_gemm_f16f16_f16f16_f16_tn_n_tilesize128x64x32_stage4_warpsize2x2x1_tensor16x8x16"

# Architecture → (name, whether it multiplies, what).
KERNELS = {
    "sm_70": [
        ("volta_fp16_s884gemm_fp16_64x128_ldg8_f2f_tn", True, "fp16"),
        ("volta_h884gemm_256x64_ldg8_tn", True, "fp16"),
        ("cutlass_70_tensorop_f16_s884gemm", True, "fp16"),
        ("void cutlass::Kernel2<cutlass_70_tensorop_s884gemm_f16_128x128_tn_align8>", True, "fp16"),
        ("volta_sgemm_128x64_nn", True, "fp32"),
    ],
    "sm_75 to sm_89": [
        (INT8_TACTIC, True, "int8"),
        (HALF_TACTIC, True, "fp16"),
        ("sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize128x128x64_stage3_warpsize2x2x1_tensor16x8x32_fused", True,
         "int8"),
        ("sm80_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x64x32_stage4_warpsize2x2x1_tensor16x8x16", True,
         "bf16"),
        ("sm80_xmma_gemm_tf32tf32_tf32f32_f32_nt_n_tilesize128x128x16_stage4_warpsize2x2x1_tensor16x8x8", True,
         "fp32"),
        ("ampere_int8_i16832gemm_int8_256x128_ldg16_relu_stages_64x3_tn_v1", True, "int8"),
        ("ampere_fp16_s16816gemm_fp16_128x128_ldg8_f2f_stages_32x5_tn", True, "fp16"),
        ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x5_nn", True, "bf16"),
        ("ampere_fp16_s884gemm_fp16_256x128_ldg8", True, "fp16"),
        ("ampere_h16816gemm_128x128_ldg8_stages_32x5_tn", True, "fp16"),
        ("ampere_sgemm_128x64_tn", True, "fp32"),
        ("turing_fp16_i8816cudnn_int8_256x64_ldg16_relu_singleBuffer_small_nt_v1", True, "int8"),
        ("turing_fp16_s1688gemm_fp16_128x128_ldg8_f2f_tn", True, "fp16"),
        ("void cutlass::Kernel<cutlass_80_tensorop_s8_i16832gemm_s8_256x128_128x3_tn_align16>", True, "int8"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_64x64_64x6_tn_align8>", True, "bf16"),
        ("sm86_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32_nchw_vect_c_32", True,
         "int8"),
        ("sm89_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x64_stage3_warpsize2x2x1_tensor16x8x32", True, "fp8"),
        ("fmha_v2_flash_attention_fp16_64_32_S_qkv_128_causal_sm86_kernel_nl", True, "fp16"),
        ("fmha_v2_int8_128_64_sm80_kernel", True, "int8"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention)", True, "bf16"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, cutlass::h"
         "alf_t>>", True, "fp16"),
    ],
    "sm_90, traced": [
        ("nvjet_sm90_hsh_192x128_64x5_1x2_h_bz_coopB_NNT", True, "fp16"),
        ("nvjet_sm90_hsh_40x64_64x16_4x2_h_bz_bias_TNN", True, "fp16"),
        ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_NNT", True, "bf16"),
        ("nvjet_sm90_tst_192x128_64x5_1x2_h_bz_coopB_bias_TNT", True, "bf16"),
        ("nvjet_sm90_qqtst_128x128_128x6_1x2_h_bz_coopA_algo2_TNT", True, "fp8"),
        ("nvjet_sm90_qqhsh_40x64_128x16_4x2_h_bz_algo2_TNN", True, "fp8"),
        ("nvjet_sm90_qqsss_8x64_128x16_4x1_v_bz_algo2_TNN", True, "fp8"),
        ("nvjet_sm90_qqhsq_48x64_128x15_4x2_h_bz_algo2_TNN", True, "fp8"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_i16832gemm_s8_128x64_128x3_tn_align16>(Params)", True, "int8"),
        ("void cutlass::Kernel2<cutlass_80_simt_sgemm_128x32_8x5_nn_align1>(Params)", True, "fp32"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_64x128_32x6_nn_align4>(Params)", True, "fp32"),
        ("void cutlass::Kernel2<cutlass_80_tensorop_d884gemm_32x32_16x5_nn_align1>(Params)", True, "fp64"),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_nn_n_tilesize64x64x8_stage3_warpsize1x4x1_ffma_aligna4_alignc4_execute_kernel"
         "__5x_cublas", True, "fp32"),
        ("sm90_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize128x128x32_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x"
         "_cublas", True, "fp32"),
        ("sm90_xmma_gemm_f64f64_f64f64_f64_nn_n_tilesize128x64x16_stage3_warpsize2x2x1_tensor16x8x8_execute_kernel"
         "__5x_cublas", True, "fp64"),
        ("std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, float, float, float, float, false>",
         True, "fp32"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, float, float, float, false, float>", False, "fp32"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, double, double, double, double, false>", False, "fp64"),
    ],
    "sm_90 and later, public": [
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_warpgroupsize1x1x1_execute_segment_k_off_kernel__5x"
         "_cublas", True, "bf16"),
        ("sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1", True, "fp16"),
        ("nvjet_hsh_128x128_64x8_2x1_v_bz_TNT", True, "fp16"),
        ("nvjet_tst_256x256_64x4_2x1_v_bz_coopA_TNT", True, "bf16"),
        ("nvjet_sm90_hss_320x128_64x3_1x2_h_bz_coopB_NTT", True, "fp16"),
        ("nvjet_sm100_tst_64x32_64x16_2x1_2cta_v_bz_TNT", True, "bf16"),
        ("nvjet_sm120_tst_mma_64x64x128_3_32x32x128_tmaAB_alignCD4_bz_TNNN", True, "bf16"),
        ("nvjet_sm100_ootst_64x32_64x16", True, "unknown"),  # FP4: not one of our words
        ("void cutlass::device_kernel<flash::FlashAttnFwdSm90<cutlass::bfloat16_t>>", True, "bf16"),
        ("bmm_E4m3_E4m3E4m3_Fp32_t128x64x128u2_s6_et64x64", True, "fp8"),
        ("_gemm_mha_v2", True, "unknown"),
    ],
    "Triton and Inductor": [
        ("triton_tem_fused_bmm_7", True, "unknown"),
        ("triton_tem_fused_addmm_t_view", True, "unknown"),
        ("triton_tem_fused__to_copy_addmm_gelu_t_view_9", True, "unknown"),
        ("triton_red_fused_native_layer_norm_2", False, "unknown"),
        ("triton_poi_fused_gelu_addmm_4", False, "unknown"),
        ("triton_per_fused__softmax_1", False, "unknown"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<BFloat16>>", False, "bf16"),
    ],
    "no product": [
        ("void cublasLt::splitKreduce_kernel<32, 16, int, __half>", False, "fp16"),
        ("__myl_AddResMeanSubMul_0x1234", False, "unknown"),
        ("Memset (Device)", False, "unknown"),
    ],
}  # fmt: skip
