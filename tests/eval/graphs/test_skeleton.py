"""A graph that is filled in is what exporting the model gives."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from calib.apply import apply_statistics
from calib.collect import collect
from eval.graphs import skeleton
from eval.graphs.cut import cut
from eval.graphs.skeleton import constants_of, graph_of, refill
from eval.search.plans import plan_recipe
from eval.search.sensitivity import units_of
from eval.sweep.store import ArtifactStore
from quant.insert import insert_quantizers
from quant.onnx_export import export_onnx
from quant.recipe import load_recipe
from quant.sites.site import quantization_of
from tests.families import get_family

FIRST = "int8_full"


def calibrated(family, recipe, seed, method="max", *, is_short=True):
    """Return a family's model, calibrated on a draw of its own, its biases moved as bias correction moves them."""
    torch.manual_seed(0)
    model = family.model(is_short=is_short)
    batch = family.batch(model, 4, 12, seed)
    insert_quantizers(model, recipe, batch)
    apply_statistics(model, collect(model, [batch], progress=False), method)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data += 0.01 * torch.randn_like(parameter)
    return model


def outputs(graph, batch):
    options = onnxruntime.SessionOptions()
    # Constants are folded: a product with a weight that is transposed at each call may be another kernel.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    return session.run(None, {each.name: np.asarray(batch[each.name]) for each in session.get_inputs()})


def assert_is_the_export(graph, model, batch):
    """Check nodes, constants and outputs against an export. What the exporter transposes, a runtime does at load."""
    wanted = export_onnx(model)
    counts = [Counter(node.op_type for node in each.graph.node) for each in (graph, wanted)]
    for each in counts:
        del each["Transpose"]
    assert counts[0] == counts[1]
    for got, right in zip(outputs(graph, batch), outputs(wanted, batch), strict=True):
        np.testing.assert_array_equal(got, right)


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """Return graph_of for a model, and the count of exports."""
    exports = []
    real = skeleton._export
    monkeypatch.setattr(skeleton, "_export", lambda loaded, out: (exports.append(out), real(loaded, out)))
    store = ArtifactStore(tmp_path)
    return lambda model: graph_of(SimpleNamespace(model=model, processor=None), "m", store), exports


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "llama", "swin", "deberta_v2"])
def test_another_calibration_takes_no_export(filled, name):
    family = get_family(name)
    make, exports = filled
    for seed, (recipe, method) in enumerate([(FIRST, "max"), (FIRST, "mse"), ("int8_linear", "max")]):
        model = calibrated(family, load_recipe(recipe), seed, method)
        graph = make(model)
        assert graph is not None
        assert_is_the_export(graph, model, family.batch(model, 3, 9, 5))
    assert len(exports) <= 2  # int8_linear may read other tensors than int8_full


@pytest.mark.parametrize("start", [0, 1])
def test_a_plan_and_a_recipe_without_smoothquant_are_cut_out_of_one_with_it(filled, start):
    family, whole = get_family("bert"), load_recipe("int8_smoothquant")
    make, exports = filled
    model = calibrated(family, whole, 0)
    assert make(model) is not None
    units = units_of(model)
    kept = frozenset(unit.name for unit in units[start::2])
    plan = plan_recipe(quantization_of(model).sites, whole, units, kept, {}, "plan")
    for seed, recipe in enumerate((plan, load_recipe("int8_linear"), whole), 1):
        other = calibrated(family, recipe, seed)
        graph = make(other)
        assert graph is not None
        assert_is_the_export(graph, other, family.batch(other, 3, 9, 5))
    assert len(exports) == 1


@pytest.mark.parametrize("moved", [("layer.0.attention.self.query.bias",), ("layer.1.output.dense.bias",), ()])
def test_constants_that_the_exporter_kept_once_are_parted_by_an_export_alone(filled, moved):
    """An untrained model's biases are zeros, and one place in the graph stands for all of a size."""
    family, recipe = get_family("bert"), load_recipe("int8_linear")
    make, _ = filled
    model = calibrated(family, recipe, 0, is_short=False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    assert make(model) is not None
    for name, parameter in model.named_parameters():
        if moved and name.endswith(moved):
            parameter.data += 0.5
    graph = make(model)
    assert (graph is None) == bool(moved)
    if graph is not None:
        assert_is_the_export(graph, model, family.batch(model, 3, 9, 5))


def test_tied_weights_that_changed_are_exported(filled):
    """The exporter folds a small table's transpose for the head; the table itself has a place."""
    family, recipe = get_family("gpt2"), load_recipe("int8_linear")
    make, _ = filled
    model = calibrated(family, recipe, 0)
    assert make(model) is not None
    model.get_input_embeddings().weight.data *= 1.5
    graph = make(model)
    if graph is not None:  # a larger table is not folded
        assert_is_the_export(graph, model, family.batch(model, 3, 9, 5))


def test_what_has_no_place_is_never_left_as_it_was():
    family = get_family("bert")
    model = calibrated(family, load_recipe("int8_linear"), 0)
    graph = export_onnx(model)
    constants, shared = constants_of(model)
    bias = next(name for name in constants if name.endswith("query.bias"))
    place = next(each for each in graph.graph.initializer if each.name == bias)
    place.name = "val_1"
    for node in graph.graph.node:
        node.input[:] = ["val_1" if name == bias else name for name in node.input]
    digests = {name: skeleton._digest(x) for name, x in constants.items()}
    refill(graph, constants, shared, digests)  # the same number: nothing to write
    with pytest.raises(LookupError, match=r"query\.bias"):
        refill(graph, constants | {bias: constants[bias] + 1}, shared, digests)


def test_limits_of_a_narrow_format_are_exported(filled, tmp_path):
    make, exports = filled
    (tmp_path / "narrow.yaml").write_text("extends: int8_linear\nrules:\n  - {match: '*', format: int7}\n")
    assert make(calibrated(get_family("bert"), load_recipe(tmp_path / "narrow.yaml"), 0)) is None and not exports


def test_a_quantizer_without_a_pair_of_its_own_is_named():
    with pytest.raises(LookupError, match="no quantizer a of its own"):
        cut(onnx.ModelProto(), [frozenset("a")])
