"""TensorRT-RTX as a backend of its own name; all that it does is in `engine/backends/tensorrt/`."""

from dataclasses import replace

from engine.backends.tensorrt.backend import INFO, TrtBackend

BACKEND = TrtBackend(replace(INFO, name="tensorrt_rtx", title="TensorRT-RTX", packages=("tensorrt-rtx",)))
