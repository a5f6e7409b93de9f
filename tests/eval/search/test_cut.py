"""A plan's graph cut out of the whole one is what exporting the plan gives."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from calib.apply import apply_statistics
from calib.collect import collect
from eval.search.cut import cut, names_in_file, tell_apart
from eval.search.plans import plan_recipe
from eval.search.sensitivity import units_of
from quant.insert import insert_quantizers
from quant.onnx_export import export_onnx
from quant.recipe import load_recipe
from quant.sites.site import quantization_of
from tests.families import get_family


def exported(family, recipe, path, change=lambda model: None):
    """Return the graph of a family's model under a recipe, and the model."""
    torch.manual_seed(0)
    model = family.model(is_short=True)
    batch = family.batch(model, 4, 12, 0)
    insert_quantizers(model, recipe, batch)
    apply_statistics(model, collect(model, [batch], progress=False))
    change(model)
    export_onnx(model, path)
    return onnx.load(path), model


def outputs(graph, batch):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    return session.run(None, {each.name: np.asarray(batch[each.name]) for each in session.get_inputs()})[0]


@pytest.mark.parametrize(("name", "recipe"), [("bert", "int8_full"), ("vit", "int8_smoothquant")])
def test_a_cut_is_what_exporting_the_plan_gives(tmp_path, name, recipe):
    family, whole = get_family(name), load_recipe(recipe)
    graph, model = exported(family, whole, tmp_path / "whole.onnx", tell_apart)
    units = units_of(model)
    kept = frozenset(unit.name for unit in units[::2])
    plan = plan_recipe(quantization_of(model).sites, whole, units, kept, {}, "plan")
    wanted, _ = exported(family, plan, tmp_path / "plan.onnx")
    off = {site for unit in units[1::2] for site in unit.sites}
    cut(graph, [names_in_file(site) for site in quantization_of(model).sites if site.name in off])
    count = [Counter(node.op_type for node in each.graph.node) for each in (graph, wanted)]
    for each in count:
        del each["Transpose"]  # of a constant weight: the exporter does it at once, a runtime when it loads
    assert count[0] == count[1] and count[0]["QuantizeLinear"]
    if recipe == "int8_full":  # no SmoothQuant, whose weights are those of the whole recipe
        batch = family.batch(model, 4, 12, 1)
        np.testing.assert_allclose(outputs(graph, batch), outputs(wanted, batch), atol=0.03)  # other roundings at ties


def test_a_quantizer_without_a_pair_of_its_own_is_named():
    with pytest.raises(LookupError, match="no quantizer a of its own"):
        cut(onnx.ModelProto(), [frozenset("a")])
