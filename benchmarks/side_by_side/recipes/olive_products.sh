# Olive's workflow for BERT on a CPU as its example has it, but for matrix products alone, per channel, of uint8 inputs.
MODEL=$1 SAMPLES=$2 OUT=$3  # job
cat > "$OUT/olive.json" <<END
{
    "input_model": {
        "type": "HfModel",
        "model_path": "$MODEL",
        "task": "text-classification",
        "load_kwargs": {"torch_dtype": "float32"}
    },
    "data_configs": [
        {
            "name": "samples",
            "type": "HuggingfaceContainer",
            "load_dataset_config": {"data_name": "parquet", "data_files": "$SAMPLES", "split": "train"},
            "pre_process_data_config": {"model_name": "$MODEL", "input_cols": ["sentence"]},
            "dataloader_config": {"batch_size": 1}
        }
    ],
    "passes": {
        "conversion": {"type": "OnnxConversion"},
        "transformers_optimization": {"type": "OrtTransformersOptimization"},
        "quantization": {
            "type": "OnnxQuantization",
            "data_config": "samples",
            "per_channel": true,
            "activation_type": "uint8",
            "op_types_to_quantize": ["MatMul", "Gemm"]
        }
    },
    "output_dir": "$OUT"
}
END
olive run --config "$OUT/olive.json"
