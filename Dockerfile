# int8kit on a GPU box: NVIDIA's TensorRT image (Python 3.12, trtexec and the tensorrt module) and our pinned requirements.
# Not run: nobody could run Docker where this was written. Build and use it so:
#   docker build -t int8kit .
#   docker run --rm -it --gpus all -v "$PWD/work:/workspace/work" int8kit
# Other TensorRT: docker build --build-arg BASE=nvcr.io/nvidia/tensorrt:<tag>-py3 -t int8kit .
ARG BASE=nvcr.io/nvidia/tensorrt:25.10-py3
FROM ${BASE}

# venv and pip for the image's own Python; make for the two commands.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv python3-pip make git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace/int8kit

# The pins first, so that a change of code does not install them again. --system-site-packages keeps the image's tensorrt.
COPY requirements*.txt ./
RUN python3 -m venv --system-site-packages .venv \
    && .venv/bin/python -m pip install --no-cache-dir -r requirements-dev.txt \
    && touch .venv/.installed

COPY . .

ENV PATH=/workspace/int8kit/.venv/bin:$PATH
CMD ["bash"]
