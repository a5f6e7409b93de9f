# int8kit's search, as NNCF's: one half calibrates, the other checks that the logits move by at most 0.06.
MODEL=$1 SAMPLES=$2 OUT=$3 BACKEND=$4  # job
python - "$SAMPLES" <<END
import sys
import pandas
samples = pandas.read_parquet(sys.argv[1])
samples[: len(samples) // 2].to_parquet("train.parquet")
samples[len(samples) // 2 :].to_parquet("validation.parquet")
END
python -m int8kit search --model "$MODEL" --task sst2 --data . --backend "$BACKEND" \
    --max-error 0.06 --max-loss 1 --out "$OUT"
