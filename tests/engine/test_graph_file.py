"""Graphs as files: one, or two where the weights are too many for one."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from engine.backend import BuildOptions, get_backend
from engine.cli import whole_output
from engine.graph_file import data_path, save_graph
from engine.source import read_onnx
from eval.parity.check import check_parity
from quant.models.pretrained import LoadedModel
from quant.onnx_export import export_graph, export_onnx
from tests.conftest import tiny_llama


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()


@pytest.fixture(scope="module")
def exported(llama):
    return export_graph(llama)


def test_a_small_graph_is_one_file_equal_to_the_copied_one(tmp_path, llama, exported, monkeypatch):
    size = save_graph(exported, tmp_path / "m.onnx")
    assert size == (tmp_path / "m.onnx").stat().st_size and not data_path(tmp_path / "m.onnx").exists()
    monkeypatch.setattr("quant.onnx_export.export_graph", lambda model, **_: exported)  # exporting takes seconds
    copied = {i.name: onnx.numpy_helper.to_array(i) for i in export_onnx(llama).graph.initializer}
    written = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert written.keys() == copied.keys() and all(np.array_equal(written[name], copied[name]) for name in copied)


def test_a_large_graph_streams_its_weights_beside_it_and_runs_as_the_model(tmp_path, llama, exported):
    weight = exported.graph.initializers["model.model.embed_tokens.weight"].const_value
    assert np.shares_memory(
        weight.numpy(), llama.model.embed_tokens.weight.detach().numpy()
    )  # nothing is copied on the way
    with whole_output(tmp_path / "m.onnx") as path:
        size = save_graph(exported, path, limit=1000)
        assert check_parity(path, LoadedModel(llama, None, "llama")).engine_error_max <= 1e-5
    parts = [(tmp_path / name).stat().st_size for name in ("m.onnx", "m.onnx.data")]
    assert sum(parts) == size and parts[0] < parts[1] and len(list(tmp_path.iterdir())) == 2
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer)
    assert ir.load(tmp_path / "m.onnx").graph.initializers["model.model.embed_tokens.weight"].const_value.shape == (
        99,
        32,
    )


def test_an_engine_is_built_from_the_two_files(tmp_path, exported):
    save_graph(exported, tmp_path / "m.onnx", limit=1000)
    assert len(read_onnx(tmp_path / "m.onnx").graph.initializer) > 20
    get_backend("onnxruntime").build(tmp_path / "m.onnx", tmp_path / "engine", BuildOptions())
    (tmp_path / "m.onnx.data").unlink()  # the engine holds what it needs
    ids = np.array([[3, 4, 5]], dtype=np.int64)
    with get_backend("onnxruntime").load(tmp_path / "engine") as runner:
        assert runner({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"].shape == (1, 3, 99)
    with pytest.raises(ValueError, match="is not a whole ONNX file"):
        read_onnx(tmp_path / "m.onnx")


def test_older_weights_are_not_overwritten(tmp_path, exported):
    (tmp_path / "m.onnx.data").write_text("mine")
    with pytest.raises(FileExistsError, match=r"m\.onnx\.data exists"), whole_output(tmp_path / "m.onnx") as path:
        save_graph(exported, path, limit=1000)
    assert (tmp_path / "m.onnx.data").read_text() == "mine" and not (tmp_path / "m.onnx").exists()
