"""What the sweep's report shows beside the rows."""

import zipfile
from types import SimpleNamespace

import onnx
from onnx import TensorProto, helper

from eval.sweep.analysis import _lint


def row(system, path):
    return SimpleNamespace(system=system, row=SimpleNamespace(recipe="int8"), details=SimpleNamespace(onnx_path=path))


def test_the_linter_reads_the_first_graph_and_no_torch_program(tmp_path):
    with zipfile.ZipFile(tmp_path / "program.onnx", "w") as archive:
        archive.writestr("model", b"")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "g.onnx")
    run = SimpleNamespace(artifacts=tmp_path, rows=lambda: [row("on a GPU", "program.onnx"), row("on a CPU", "g.onnx")])
    found = _lint(run)
    assert found is not None and found["system"] == "on a CPU" and "no product was found" in found["text"]
    assert _lint(SimpleNamespace(artifacts=tmp_path, rows=lambda: run.rows()[:1])) is None
