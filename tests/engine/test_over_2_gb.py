"""A graph of over 2 GB of weights is streamed to two files and linted, each in a process whose memory is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from engine.graph_file import data_path
from engine.passes.qdq import prepare_for_target
from tests.engine.graphs import WIDTH, linear_model

ROOT = Path(__file__).parents[2]
NUM_TABLES, NUM_ROWS = 9, 2**28 // (4 * WIDTH)  # nine tables of 256 MiB each: 2.25 GiB
SAVE = """
import sys
import numpy as np, onnx_ir as ir
from engine.graph_file import save_graph
model = ir.load(sys.argv[1])
for name, value in model.graph.initializers.items():
    if name.startswith("table"):
        # Zeros that nobody wrote take no memory, also when they are read.
        value.const_value = ir.Tensor(np.zeros((int(sys.argv[3]), value.shape[1]), np.float32), name=name)
        value.shape = value.const_value.shape
save_graph(model, sys.argv[2])
"""
LINT = "import sys; from engine.lint.__main__ import main; main([sys.argv[1], '--json'])"
PEAK = """
import atexit, re, sys
def say():  # VmHWM, not getrusage: that begins with what the parent had
    print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1], file=sys.stderr)
atexit.register(say)
"""


def run(code: str, *words: object) -> tuple[str, int]:
    """Return what a process printed, and the most memory that it had, in KiB."""
    command = [sys.executable, "-c", PEAK + code, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout, int(done.stderr.splitlines()[-1])


def tables_model() -> onnx.ModelProto:
    """Return ids -> the sum of a row of each table -> a quantized linear."""
    model = prepare_for_target(linear_model(), "onnxruntime")
    names = [f"table{i}.weight" for i in range(NUM_TABLES)]
    nodes = [helper.make_node("Gather", [name, "ids"], [f"{name}.row"], name=f"look up {name}") for name in names]
    nodes.append(helper.make_node("Sum", [f"{name}.row" for name in names], ["x"], name="sum"))
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"]))
    model.graph.initializer.extend(
        helper.make_tensor(name, TensorProto.FLOAT, [1, WIDTH], [0.0] * WIDTH) for name in names
    )
    return model


@pytest.mark.slow
def test_over_2_gb_is_saved_and_linted(tmp_path):
    onnx.save(tables_model(), tmp_path / "small.onnx")
    _, base = run("import numpy, onnx_ir, engine.graph_file")
    _, peak = run(SAVE, tmp_path / "small.onnx", tmp_path / "m.onnx", NUM_ROWS)
    assert data_path(tmp_path / "m.onnx").stat().st_size == NUM_TABLES * 2**28 > 2**31
    assert (tmp_path / "m.onnx").stat().st_size < 100_000
    assert peak - base < 2**19, (base, peak)  # KiB: less than two of the nine tables are on their way at once
    table = ir.load(tmp_path / "m.onnx").graph.initializers[f"table{NUM_TABLES - 1}.weight"].const_value
    assert isinstance(table, ir.ExternalTensor) and list(table.shape) == [NUM_ROWS, WIDTH]
    out, peak = run(LINT, tmp_path / "m.onnx")
    report = json.loads(out)
    assert report["errors"] == 0 and report["linears_int8"] == 1
    assert peak < 3 * 2.25 * 2**20, peak  # KiB: rules look at weights, and protobuf reads a file before it copies it
