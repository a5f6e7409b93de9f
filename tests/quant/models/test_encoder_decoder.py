"""Encoder-decoders: two parts that compute what the whole model does, each file checked in its consumer."""

import onnx
import pytest
import torch

from calib.apply import apply_statistics
from calib.collect import collect
from engine.backend import BuildOptions
from engine.lint.report import lint
from engine.passes.qdq import prepare_for_target
from engine.products import find_products
from engine.shapes import ShapeRange
from eval.parity.check import check_parity
from eval.parity.random_feeds import random_feeds
from quant.checkpoint import load_checkpoint, save_checkpoint
from quant.insert import insert_quantizers
from quant.models.encoder_decoder import PARTS, decoder_inputs, is_encoder_decoder, model_part, part_of, write_greedily
from quant.models.example_inputs import example_inputs
from quant.models.pretrained import LoadedModel
from quant.onnx_export import export_onnx
from quant.recipe import load_recipe
from quant.sites.plan import plan_sites
from quant.tensor_quantizer import named_quantizers, quantizers_disabled
from tests.families import ENCODER_DECODERS

CROSS = {"t5": "decoder.block.0.layer.1.EncDecAttention", "whisper": "model.decoder.layers.0.encoder_attn"}


def calibrated(name, recipe, is_short=False):
    model = ENCODER_DECODERS[name].model(is_short=is_short)
    insert_quantizers(model, load_recipe(recipe))
    batches = [example_inputs(model, batch_size=4, seq_length=12, seed=seed) for seed in range(2)]
    apply_statistics(model, collect(model, batches, progress=False))
    return model


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_the_parts_compute_what_the_whole_model_does_and_hold_each_module_once(name):
    model = ENCODER_DECODERS[name].model()
    inputs = example_inputs(model)
    ids = inputs.pop("decoder_input_ids")
    encoder, decoder = (model_part(model, part) for part in PARTS)
    with torch.no_grad():
        expected = model(**inputs, decoder_input_ids=ids)
        assert torch.equal(encoder(**inputs).last_hidden_state, expected.encoder_last_hidden_state)
        assert torch.equal(decoder(**decoder_inputs(decoder, inputs, ids)).logits, expected.logits)
    names = [{n for n, m in part.named_modules() if isinstance(m, torch.nn.Linear)} for part in (encoder, decoder)]
    assert names[0].isdisjoint(names[1])
    assert names[0] | names[1] == {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert is_encoder_decoder(model) and not is_encoder_decoder(decoder)


# Name, recipe and whether each part has one layer alone, which halves the export. T5's case keeps two: its layers share
# a position bias, and all of a decoder's read one encoder output.
EXPORTS = [
    pytest.param(("t5", "int8_full", False), marks=pytest.mark.slow),
    ("t5_gated", "int8_smoothquant", True),
    ("whisper", "int8_full", True),
    pytest.param(("t5_gated", "int8_smoothquant", False), marks=pytest.mark.slow),
    pytest.param(("whisper", "int8_full", False), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=EXPORTS, ids=lambda case: "-".join([*case[:2], "short" if case[2] else "long"]))
def exported(request):
    """Name and recipe of a calibrated model, and each part with its exported graph: exporting takes seconds."""
    name, recipe, is_short = request.param
    model = calibrated(name, recipe, is_short=is_short)
    parts = [LoadedModel(model_part(model, part), None, name) for part in PARTS]
    return name, recipe, [(part, export_onnx(part.model)) for part in parts]


def test_both_files_agree_in_onnx_runtime_and_have_all_their_products_in_int8(tmp_path, exported):
    _, recipe, parts = exported
    for loaded, graph in parts:
        proto, is_decoder = prepare_for_target(graph, "onnxruntime"), part_of(loaded.model) == "decoder"
        onnx.save(proto, tmp_path / "m.onnx")
        report = check_parity(tmp_path / "m.onnx", loaded, feeds=[next(random_feeds(loaded))])
        assert report.engine_error_max <= 1e-5
        linears = [product for product in find_products(proto) if product.is_linear]
        left = [product.name for product in linears if not product.is_quantized]
        assert len(left) == is_decoder, left  # the head alone
        attentions = [product for product in find_products(proto) if not product.is_linear]
        assert all(product.is_quantized == (recipe == "int8_full") for product in attentions)
        num_layers = loaded.model.config.num_hidden_layers
        assert len(attentions) == (4 if is_decoder else 2) * num_layers


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "tensorrt8"])
def test_the_other_targets_take_both_parts(tmp_path, exported, target):
    for loaded, graph in exported[2]:
        onnx.save(prepare_for_target(graph, target), tmp_path / "m.onnx")
        verdict = lint(onnx.load(tmp_path / "m.onnx"))
        assert verdict.count("error") == 0, verdict.findings
        if target != "tensorrt":  # in fp16 a rounding falls to the other side here and there
            report = check_parity(tmp_path / "m.onnx", loaded, feeds=[next(random_feeds(loaded))], backend=target)
            assert report.engine_error_max <= 1e-5


def test_tensorrt_rtx_builds_both_parts(tmp_path, exported, rtx):
    for loaded, graph in exported[2]:
        onnx.save(prepare_for_target(graph, "tensorrt"), tmp_path / "m.onnx")
        shapes = {name: tuple(x.shape) for name, x in example_inputs(loaded.model, seq_length=16).items()}
        ranges = {name: ShapeRange(shape, shape, shape) for name, shape in shapes.items()}
        rtx.build(tmp_path / "m.onnx", tmp_path / f"{part_of(loaded.model)}.engine", BuildOptions(shapes=ranges))
    assert sorted(path.name for path in tmp_path.glob("*.engine")) == ["decoder.engine", "encoder.engine"]


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_cross_attention_is_quantized_and_rounds_what_it_reads_in_its_own_file(name):
    sites = {site.name: site for site in plan_sites(ENCODER_DECODERS[name].model(), load_recipe("int8_full"))}
    cross = CROSS[name]
    assert all(sites[f"{cross}.{q}_quantizer"].enabled for q in ("q_bmm", "k_bmm", "v_bmm", "softmax"))
    reads = sites[f"{cross}.{'k' if name == 't5' else 'k_proj'}.input_quantizer"]
    assert reads.enabled and len(reads.consumers) == 4  # K and V of both layers read one tensor
    norm = sites[
        "encoder.final_layer_norm.output_quantizer" if name == "t5" else "model.encoder.layer_norm.output_quantizer"
    ]
    assert not norm.enabled and norm.reason == "the decoder reads it and rounds it for itself"
    assert not [site.name for site in sites.values() if "does not reach" in site.reason]


def test_padding_of_either_side_is_not_counted():
    model = ENCODER_DECODERS["t5"].model()
    insert_quantizers(model, load_recipe("int8_full"))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    decoder_mask = torch.tensor([[1] * 3 + [0] * 3, [1] * 6])  # as long as the other: lengths alone cannot tell them
    ids = {name: torch.randint(10, 99, (2, 6)) for name in ("input_ids", "decoder_input_ids")}
    batch = {**ids, "attention_mask": mask, "decoder_attention_mask": decoder_mask}
    counts = {name: site.histogram.num_values for name, site in collect(model, [batch], progress=False).sites.items()}
    cross = CROSS["t5"]
    assert counts["encoder.block.0.layer.0.layer_norm.output_quantizer"] == 10 * 32
    assert counts[f"{cross}.k.input_quantizer"] == counts[f"{cross}.k_bmm_quantizer"] == 10 * 32
    assert counts[f"{cross}.q_bmm_quantizer"] == counts[f"{cross}.o.input_quantizer"] == 9 * 32


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_without_decoder_ids_the_float_model_writes_them(name):
    model = ENCODER_DECODERS[name].model()
    inputs = {k: v for k, v in example_inputs(model).items() if k != "decoder_input_ids"}
    written = write_greedily(model, inputs, max_tokens=10)
    if name == "t5":  # Whisper's own generate() adds prompts and rules
        expected = model.generate(**inputs, do_sample=False, max_new_tokens=9)
        assert torch.equal(written["decoder_input_ids"], expected)
    assert written["decoder_attention_mask"].shape == written["decoder_input_ids"].shape
    insert_quantizers(model, load_recipe("int8_linear"))
    statistics = collect(model, [inputs], progress=False)
    assert statistics.num_samples == 2 and all(s.histogram.num_values for s in statistics.sites.values())


def test_the_end_token_ends_a_row():
    model = ENCODER_DECODERS["t5"].model()
    inputs = {k: v for k, v in example_inputs(model).items() if k != "decoder_input_ids"}
    first = write_greedily(model, inputs, max_tokens=4)["decoder_input_ids"]
    model.config.eos_token_id = int(first[0, 1])
    mask = write_greedily(model, inputs, max_tokens=4)["decoder_attention_mask"]
    assert mask[0].tolist()[:2] == [1, 1] and mask[0, 2:].sum() == 0


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_a_checkpoint_comes_back_and_smoothing_leaves_the_float_model(tmp_path, name):
    inputs = example_inputs(ENCODER_DECODERS[name].model())
    with torch.no_grad():
        before = ENCODER_DECODERS[name].model()(**inputs).logits
        model = calibrated(name, "int8_smoothquant")
        with quantizers_disabled(model):
            after = model(**inputs).logits
        assert (after - before).abs().max() < 1e-5 * before.abs().max()
        assert (model(**inputs).logits - before).abs().max() > 1e-5 * before.abs().max()
        save_checkpoint(model, tmp_path / "c")
        assert torch.equal(load_checkpoint(tmp_path / "c").model(**inputs).logits, model(**inputs).logits)


def test_training_reaches_the_encoder_through_cross_attention():
    model = calibrated("t5", "int8_full").train()
    inputs = example_inputs(model)
    model(input_ids=inputs["input_ids"], labels=inputs["decoder_input_ids"]).loss.backward()
    gradients = [
        model.encoder.block[0].layer[0].SelfAttention.k.weight.grad,
        model.decoder.block[0].layer[1].EncDecAttention.v.weight.grad,
    ]
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
    assert any("EncDecAttention" in name for name, _ in named_quantizers(model))


def test_the_command_writes_two_files_or_none(tmp_path, capsys, monkeypatch):
    import export

    save_checkpoint(calibrated("t5", "int8_full"), tmp_path / "c")
    arguments = ["--checkpoint", str(tmp_path / "c"), "--target", "onnxruntime", "--out", str(tmp_path / "m.onnx")]
    monkeypatch.setattr("eval.parity.random_feeds.NUM_ROUNDS", 1)
    with pytest.raises(SystemExit, match="0"):
        export.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(tmp_path / f"m.{part}.onnx") for part in PARTS]
    assert sorted(p.name for p in tmp_path.glob("*.onnx")) == ["m.decoder.onnx", "m.encoder.onnx"]
    parts = [
        {e.key: e.value for e in onnx.load(tmp_path / f"m.{p}.onnx").metadata_props}["int8kit.part"] for p in PARTS
    ]
    assert parts == list(PARTS)
    with pytest.raises(SystemExit, match="1"):
        export.main(arguments)
    assert "m.encoder.onnx exists" in capsys.readouterr().err


def test_the_whole_model_is_refused_with_the_way_to_its_parts():
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is exported in two parts"):
        export_onnx(ENCODER_DECODERS["t5"].model())
    with pytest.raises(ValueError, match="unknown part 'head'; the parts are encoder, decoder"):
        model_part(ENCODER_DECODERS["t5"].model(), "head")
