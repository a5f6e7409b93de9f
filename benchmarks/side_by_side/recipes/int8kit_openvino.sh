# int8kit for OpenVINO, whatever it would choose for this CPU.
MODEL=$1 SAMPLES=$2 OUT=$3  # job
python -m int8kit quantize "$MODEL" --samples "$SAMPLES" --column sentence --backend openvino --out "$OUT"
