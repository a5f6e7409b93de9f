"""A PyTorch model, float or quantized, behind the interface of an engine's runner.

Numpy feeds in, named numpy outputs out.
"""

from __future__ import annotations

import inspect
from types import TracebackType
from typing import Any

import numpy as np
import torch

from eval.timing.latency import Feeds, time_calls
from quant.models.example_inputs import OUTPUT_NAMES, example_inputs, input_names
from quant.models.pretrained import LoadedModel


class PyTorchRunner:
    """Runs a LoadedModel as a Runner; outputs are named as in its ONNX file.

    Args:
        loaded: the model with its processor; moved to `device`.
        device: "cpu" or "cuda".
    """

    def __init__(self, loaded: LoadedModel, device: str = "cpu") -> None:
        self.model: Any = loaded.model.to(device)  # type: ignore[arg-type]
        self.device = device
        self.has_device_clock = device != "cpu"
        self.input_names = input_names(loaded.model, loaded.processor)
        accepts_cache = "use_cache" in inspect.signature(loaded.model.forward).parameters
        self._options = {"use_cache": False} if accepts_cache else {}
        examples = example_inputs(loaded.model, batch_size=1, processor=loaded.processor)
        self.output_names = tuple(self({name: tensor.cpu().numpy() for name, tensor in examples.items()}))
        if not self.output_names:
            raise ValueError(f"{type(loaded.model).__name__} gives none of the outputs {', '.join(OUTPUT_NAMES)}")

    def __enter__(self) -> PyTorchRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def __call__(self, feeds: Feeds) -> Feeds:
        """Return the outputs for one batch of feeds, float32 on the CPU."""
        return {name: output.float().cpu().numpy() for name, output in self._forward(self._inputs(feeds)).items()}

    def time(self, feeds: Feeds, iterations: int = 50, warmup: int = 5) -> list[float]:
        """Return milliseconds of each call: on a GPU by its events, inputs and outputs lying there."""
        if not self.has_device_clock:
            return time_calls(self, feeds, iterations, warmup)
        inputs, times = self._inputs(feeds), []
        for _ in range(warmup + iterations):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            self._forward(inputs)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        return times[warmup:]

    def _inputs(self, feeds: Feeds) -> dict[str, torch.Tensor]:
        """Return the inputs on the device, pixels in the model's own type (BEiT and Swin do not cast them)."""
        arrays = {name: torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self.input_names}
        return {
            name: array.to(self.device, self.model.dtype if array.is_floating_point() else None)
            for name, array in arrays.items()
        }

    @torch.inference_mode()
    def _forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = self.model(**inputs, **self._options)
        return {name: outputs[name] for name in OUTPUT_NAMES if outputs.get(name) is not None}
