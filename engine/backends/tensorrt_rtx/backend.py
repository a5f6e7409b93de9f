"""TensorRT-RTX as a backend of its own name; all of it is in `trt.py`."""

from engine.backends.tensorrt.backend import TrtBackend

BACKEND = TrtBackend("tensorrt_rtx")
