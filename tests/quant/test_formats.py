"""Number formats: one entry each, chosen by a recipe's rules, kept by the checkpoint, refused in one line."""

import ast
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from calib.apply import apply_statistics
from calib.collect import collect
from calib.smoothquant import Smoothing, _output_error
from calib.statistics import SiteStatistics
from engine.passes.qdq import prepare_for_target
from quant.checkpoint import CHECKPOINT_FILE, load_checkpoint, save_checkpoint
from quant.fake_quantize import amax_to_scale, fake_quantize, quantize
from quant.formats import FORMATS, INT7, INT8, NumberFormat, get_format
from quant.insert import insert_quantizers
from quant.onnx_export import export_onnx
from quant.recipe import Recipe, Rule, load_recipe, recipe_from_dict
from quant.sites.formats import format_names
from quant.sites.plan import plan_sites
from quant.sites.summary import summarize_sites
from quant.tensor_quantizer import TensorQuantizer, named_quantizers
from tests.conftest import text_batch, tiny_bert, tiny_gpt2
from training.qat import finish_qat, start_qat

WEIGHTS, ALL = {"match": "*weight_quantizer", "format": "int7"}, {"match": "*", "format": "int7"}


def recipe_with(*rules: dict, base: str = "int8_linear") -> Recipe:
    content = load_recipe(base).to_dict()
    return recipe_from_dict({**content, "name": "mine", "rules": [*content["rules"], *rules]})


def calibrated(recipe: Recipe, model=None):
    model = tiny_bert() if model is None else model
    insert_quantizers(model, recipe)
    apply_statistics(model, collect(model, [text_batch(padded=False)], progress=False))
    return model


def codes_of(proto: onnx.ModelProto) -> list[np.ndarray]:
    arrays = [numpy_helper.to_array(i) for i in proto.graph.initializer]
    return [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]


def test_int8_is_what_it_was_and_int7_has_the_codes_of_its_name():
    assert (INT8.qmin, INT8.qmax, INT8.is_narrow, INT8.num_levels) == (-128, 127, False, 128)
    assert (INT7.qmin, INT7.qmax, INT7.is_narrow, INT7.num_levels) == (-63, 63, True, 64)
    x = torch.tensor([0.5, 1.5, -2.5, 62.5, 63.4, 500.0, -63.6, -500.0])
    assert quantize(x, torch.ones(1), INT7).tolist() == [0, 2, -2, 62, 63, 63, -63, -63]
    assert amax_to_scale(torch.tensor([63.0, 0.0]), INT7).tolist() == [1, torch.ones(1).div(63).item()]


def test_the_gradients_stop_at_the_formats_own_codes():
    x = torch.tensor([0.3, 62.4, 64.0, -300.0], requires_grad=True)
    scale = torch.ones(1, requires_grad=True)
    fake_quantize(x, scale, INT7).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0]
    # Esser et al. 2020, eq. 3: round(x) - x inside, the outermost code outside
    assert scale.grad.item() == pytest.approx((0 - 0.3) + (62 - 62.4) + 63 - 63, abs=1e-5)


def test_lsq_damps_by_the_formats_largest_code():
    """LSQ's gradient scale is 1 / sqrt(N qmax): the same slope of the scale, damped for 63 codes."""
    gradients = {}
    for number_format in (INT8, INT7):
        quantizer = TensorQuantizer(number_format=number_format)
        quantizer.set_amax(torch.tensor([float(number_format.qmax)]))  # scale 1
        quantizer.start_learning()
        quantizer(torch.full((100,), 0.25)).sum().backward()
        gradients[number_format.name] = quantizer.log2_amax.grad.item()
        slope = 100 * -0.25 * np.log(2)  # d scale / d log2(amax) = scale ln 2
        assert gradients[number_format.name] == pytest.approx(slope / np.sqrt(100 * number_format.qmax), rel=1e-5)
    assert gradients["int7"] / gradients["int8"] == pytest.approx(np.sqrt(127 / 63), rel=1e-5)


def test_a_compiler_takes_both_directions_of_another_format():
    torch._dynamo.reset()
    quantizer = TensorQuantizer(number_format=INT7)
    quantizer.set_amax(torch.tensor([2.0]))
    quantizer.start_learning()
    x = torch.randn(64, requires_grad=True)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), quantizer(x))
    compiled(x).sum().backward()
    mine = x.grad.clone()
    x.grad = None
    quantizer(x).sum().backward()
    assert torch.equal(mine, x.grad) and (mine == 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("number_format", FORMATS.values(), ids=str)
def test_a_half_scale_survives_its_amax_to_the_bit(dtype, number_format):
    """`rounded_scales` stores scale x qmax and reads it back: over every positive half that can be a scale."""
    halves = torch.arange(1, 2**15, dtype=torch.int16).view(dtype).float()
    halves = halves[torch.isfinite(halves * number_format.qmax)]
    if dtype == torch.bfloat16:
        halves = halves[halves >= 2.0**-126]  # the smallest that `rounded_scales` leaves
    assert torch.equal(amax_to_scale(halves * number_format.qmax, number_format), halves)


def test_a_rule_gives_a_format_and_leaves_on_what_is_on():
    sites = {s.name: s for s in plan_sites(tiny_bert(), recipe_with(WEIGHTS))}
    plain = {s.name: s for s in plan_sites(tiny_bert(), load_recipe("int8_linear"))}
    assert {n: s.enabled for n, s in sites.items()} == {n: s.enabled for n, s in plain.items()}
    on = [s for s in sites.values() if s.enabled]
    assert {(s.is_weight, s.format) for s in on} == {(True, "int7"), (False, "int8")}
    assert "int7" in summarize_sites(tuple(sites.values())) and "int7" not in summarize_sites(tuple(plain.values()))


def test_the_last_rule_that_speaks_of_it_wins():
    recipe = recipe_with(WEIGHTS, {"match": "*layer.0*"}, {"match": "*layer.1*weight_quantizer", "format": "int8"})
    assert recipe.format_of("layer.0.q.weight_quantizer", "linear") == "int7"  # `enable` says nothing of the format
    assert recipe.format_of("layer.1.q.weight_quantizer", "linear") == "int8"
    assert recipe.format_of("layer.0.q.input_quantizer", "linear") == "int8"
    assert Rule(match="x").enable is True and Rule(match="x", format="int7").enable is None
    assert str(recipe.rules[-1]) == "{match: '*layer.1*weight_quantizer', format: int8}"
    assert recipe_from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("name", "digest"),
    [("int8_linear", "d1d0ee27728e9e8f"), ("int8_full", "765f6c5a7bfaf46e"), ("int8_smoothquant", "435c2f42ea8ef7cf")],
)  # fmt: skip
def test_recipes_without_formats_keep_the_digest_of_version_0_1(name, digest):
    assert load_recipe(name).digest == digest
    assert load_recipe(name).digest != recipe_with(WEIGHTS, base=name).digest


def test_unknown_formats_are_refused_with_near_matches():
    with pytest.raises(ValueError, match=r"format 'int9' \(did you mean int8 or int7\?\)\. Allowed: int8, int7"):
        recipe_with({"match": "*", "format": "int9"})


def test_readers_of_one_tensor_must_agree():
    with pytest.raises(ValueError, match=r"key.input_quantizer is int8, .*query.input_quantizer int7.*share one quant"):
        plan_sites(tiny_bert(), recipe_with({"match": "*query.input_quantizer", "format": "int7"}))
    with pytest.raises(ValueError, match=r"query.input_quantizer is int7, .*LayerNorm.output_quantizer int8"):
        plan_sites(tiny_bert(), recipe_with({"kind": "linear", "format": "int7"}, base="int8_full"))
    plan_sites(tiny_bert(), recipe_with({"match": "*encoder*", "format": "int7"}))  # the pooler, which is off, is int8


def test_the_checkpoint_keeps_the_format_and_an_old_one_means_int8(tmp_path):
    model = calibrated(recipe_with(WEIGHTS))
    save_checkpoint(model, tmp_path / "c")
    loaded = load_checkpoint(tmp_path / "c").model
    assert loaded.quantization == model.quantization
    batch = text_batch()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    save_checkpoint(calibrated(load_recipe("int8_linear")), tmp_path / "old")
    edit_sites(tmp_path / "old", lambda fields: fields.pop("format"))
    assert {q.format for _, q in named_quantizers(load_checkpoint(tmp_path / "old").model)} == {INT8}


def edit_sites(folder, change):
    path = folder / CHECKPOINT_FILE
    content = json.loads(path.read_text())
    del content["sites_digest"]  # the first version's files have none
    for fields in content["sites"]:
        change(fields)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int7", r"\d+ sites have another format than recipe 'int8_linear', e\.g\. .* is int7, the recipe says int8"),
        ("int9", r"unknown format 'int9'"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_format_than_its_recipe_is_refused(tmp_path, name, message):
    save_checkpoint(calibrated(load_recipe("int8_linear")), tmp_path / "c")
    edit_sites(tmp_path / "c", lambda fields: fields.update(format=name))
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(tmp_path / "c")
    assert "\n" not in str(error.value)


def test_learned_ranges_that_clip_leave_no_code_outside_and_the_model_as_it_was():
    model = calibrated(recipe_with(WEIGHTS))
    for name, quantizer in named_quantizers(model):
        if quantizer.enabled and name.endswith("weight_quantizer"):
            quantizer.set_amax(quantizer.amax * 0.3)  # as training may leave it
    before = {name: value.clone() for name, value in model.state_dict().items()}
    codes = codes_of(prepare_for_target(export_onnx(model), "onnxruntime"))
    assert codes and all(array.min() == -63 and array.max() == 63 for array in codes)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_an_embedding_that_shares_a_clipped_weight_stays_as_it_is():
    recipe = recipe_from_dict({"name": "head", "rules": [
        {"match": "*", "enable": False}, {"match": "lm_head.*", "enable": True, "format": "int7"}]})  # fmt: skip
    model = calibrated(recipe, tiny_gpt2())  # its head is its embedding table
    dict(named_quantizers(model))["lm_head.weight_quantizer"].amax *= 0.3
    proto = prepare_for_target(export_onnx(model), "openvino")
    assert [(array.min(), array.max()) for array in codes_of(proto)] == [(-63, 63)]
    table = next(numpy_helper.to_array(i) for i in proto.graph.initializer if i.name.endswith("wte.weight"))
    assert np.array_equal(table, model.transformer.wte.weight.detach().numpy())


def test_training_keeps_the_format_and_its_codes(tmp_path):
    """A few steps with learned ranges: they move, and what is saved rounds to 63 codes as the trained model did."""
    model = calibrated(recipe_with(ALL))
    before = {name: q.amax.clone() for name, q in named_quantizers(model) if q.enabled}
    start_qat(model.train(), model.quantization.recipe.qat)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(**text_batch(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
    with torch.no_grad():
        trained = model.eval()(**text_batch()).logits
        finish_qat(model)
        assert torch.equal(model(**text_batch()).logits, trained)
    save_checkpoint(model, tmp_path / "c")
    loaded = load_checkpoint(tmp_path / "c").model
    with torch.no_grad():
        assert torch.equal(loaded(**text_batch()).logits, trained)
    moved = [name for name, q in named_quantizers(loaded) if q.enabled and not torch.equal(q.amax, before[name])]
    assert len(moved) == len(before)
    layer = loaded.bert.encoder.layer[0].intermediate.dense
    codes = layer.weight_quantizer(layer.weight) / layer.weight_quantizer.broadcast_scale(layer.weight)
    assert codes.abs().max().round() == 63


def test_smoothquant_searches_with_the_formats_of_both_operands():
    """Fewer codes on either side cost more in the error that the search compares."""
    generator = torch.Generator().manual_seed(0)
    statistics = SiteStatistics()
    statistics.sample.add(torch.randn(64, 16, generator=generator), generator)
    weights = [torch.randn(8, 16, generator=generator)]
    targets = [statistics.sample.rows @ weights[0].T]
    choice = Smoothing(0.5, torch.ones(16), float(statistics.sample.rows.abs().max()))
    pairs = [(INT8, INT8), (INT7, INT8), (INT8, INT7)]
    plain, narrow_x, narrow_w = (_output_error(statistics, weights, targets, choice, (x, [w])) for x, w in pairs)
    assert narrow_x > 1.1 * plain and narrow_w > 1.1 * plain


@pytest.mark.parametrize(("rules", "names"), [((), "int8"), ((WEIGHTS,), "int7 and int8"), ((ALL,), "int7")])
def test_the_formats_of_a_model_are_named(rules, names):
    model = tiny_bert()
    insert_quantizers(model, recipe_with(*rules))
    assert format_names(model) == names


def test_adding_a_format_is_one_entry(monkeypatch):
    """Four bits in INT8 storage: nothing but this entry knows of it, from insertion to the runtime."""
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setitem(FORMATS, "int4", NumberFormat("int4", -7, 7, "INT8", "int8"))
    assert get_format("int4").num_levels == 8
    model = calibrated(recipe_with({"match": "*", "format": "int4"}, base="int8_full"))
    proto = prepare_for_target(export_onnx(model), "onnxruntime")
    assert all(np.abs(array).max() == 7 for array in codes_of(proto))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    batch = text_batch()
    feeds = {i.name: batch.get(i.name, torch.zeros_like(batch["input_ids"])).numpy() for i in session.get_inputs()}
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
        assert not np.allclose(expected, tiny_bert()(**batch).logits.numpy(), atol=1e-3)  # 15 codes do change it
    named = {entry.key: entry.value for entry in proto.metadata_props}
    assert named["int8kit.formats"] == "int4"
    np.testing.assert_allclose(session.run(None, feeds)[0], expected, atol=1e-5)  # tiny models differ by sums alone


def test_no_other_file_states_a_range():
    """127, 63 and 255 stand in no other code of the packages (128 does: tokens, bins)."""
    root = Path(__file__).parents[2]
    files = [path for room in ("quant", "calib", "eval", "engine") for path in (root / room).rglob("*.py")]
    found = {
        f"{path.relative_to(root)}:{node.lineno}"
        for path in files
        if path.name != "formats.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and node.value in (127, 63, 255)
    }
    assert not found and len(files) > 100
