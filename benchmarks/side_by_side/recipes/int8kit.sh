# int8kit, as its README begins.
MODEL=$1 SAMPLES=$2 OUT=$3  # job
python -m int8kit quantize "$MODEL" --samples "$SAMPLES" --column sentence --out "$OUT"
