"""A program on the GPU: loaded, its ops given their tiles, compiled for one bucket, captured as a CUDA graph."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass
from torch.fx import GraphModule, Node

import kernels.attention
import kernels.linear
import kernels.rows  # noqa: F401  (the ops that a program calls)

TUNED_OPS = {
    torch.ops.int8kit.linear.default: "linear",
    torch.ops.int8kit.attention.default: "attention",
    torch.ops.int8kit.norm_quantize.default: "norm_quantize",
    torch.ops.int8kit.quantize.default: "quantize",
}
CAPTURING = threading.Lock()
Plans = Mapping[str, list[int]]  # node → plan of tiles (`kernels.tiles.store_plan`)


def load_module(source: str | Path | IO[bytes], device: str = "cuda") -> GraphModule:
    """Return a program's graph with its weights on a device.

    `torch.export.load` may unpickle what the file holds, so the file must be trusted as a Python file is.
    """
    program = torch.export.load(source)
    if device != "cpu":
        program = move_to_device_pass(program, device)
    module: Any = program.module(check_guards=False)
    for node in list(module.graph.nodes):
        is_check = node.op == "call_function" and node.target is torch.ops.aten._assert_tensor_metadata.default
        if is_check or (node.op == "call_module" and node.target == "_guards_fn"):
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def tuned_nodes(module: GraphModule) -> list[Node]:
    """Return the calls of ops that take a plan of tiles, in order of running."""
    return [node for node in module.graph.nodes if node.op == "call_function" and node.target in TUNED_OPS]


def with_plans(module: GraphModule, plans: Plans) -> GraphModule:
    """Return a module that shares the weights, whose ops run with these plans of tiles."""
    graph = copy.deepcopy(module.graph)
    for node in graph.nodes:
        if node.name in plans:
            node.kwargs = {**node.kwargs, "tiles": list(plans[node.name])}
    return GraphModule(module, graph)


class Captured:
    """One bucket's compiled program under a CUDA graph, with the memory that it reads and writes.

    Made by one thread of the process at a time: torch captures all graphs on one stream, and which part of torch may
    compute attention is a setting of the process. Other threads may run their graphs meanwhile.

    Args:
        feeds: example inputs on the GPU; the graph reads their memory from then on.
        pool: memory that the graphs of all buckets share: they run one at a time.
    """

    def __init__(self, module: GraphModule, feeds: list[Tensor], pool: Any = None) -> None:
        with CAPTURING:
            self.module, self.inputs = module, feeds
            self.call = torch.compile(module, dynamic=False, fullgraph=True)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.no_grad(), torch.cuda.stream(stream):
                for _ in range(2):
                    self.call(*feeds)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.no_grad(), torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
                self.outputs: tuple[Tensor, ...] = self.call(*feeds)

    def feed(self, arrays: list[Any]) -> None:
        """Copy numpy arrays of the bucket's shape to the GPU."""
        for tensor, array in zip(self.inputs, arrays, strict=True):
            tensor.copy_(torch.from_numpy(array), non_blocking=True)

    def replay(self) -> None:
        """Run the graph once, without waiting for it."""
        self.graph.replay()
