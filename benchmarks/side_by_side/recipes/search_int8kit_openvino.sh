# int8kit's search for OpenVINO: the fastest plan whose logits move by at most 0.06 on sentences that did not calibrate.
MODEL=$1 SAMPLES=$2 OUT=$3  # job
SPLIT="x = pandas.read_parquet(sys.argv[1]); x.to_parquet('train.parquet'); y = x[len(x) // 2 :]"  # job
python -c "import pandas, sys; $SPLIT; y.to_parquet('validation.parquet')" "$SAMPLES"  # job
python -m int8kit search --model "$MODEL" --task sst2 --data . --backend openvino \
    --max-error 0.06 --max-loss 0.02 --out "$OUT"
