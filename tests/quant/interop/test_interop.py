"""Ranges of pytorch-quantization and ModelOpt, from checkpoints that the two packages write here."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from quant.fake_quantize import quantize
from quant.formats import INT8
from quant.insert import insert_quantizers
from quant.interop.files import read_foreign
from quant.interop.importer import import_amax
from quant.recipe import Rule, load_recipe, recipe_from_dict
from tests.conftest import batch_for, tiny_bert
from tests.quant.peer_models import peer_model

ROOT = Path(__file__).parents[3]
needs_modelopt = pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason="nvidia-modelopt is not installed (requirements-dev.txt)"
)
# Both packages round x * (127 / amax), ours x / (amax / 127). In float32 the two differ only where a value lies within
# an ulp of a rounding tie, which these inputs do not; what is left is the order of additions in the float products.
TOLERANCE = 1e-6


def quantized(model, recipe="int8_linear", *more: Rule):
    """Return the model with the recipe's quantizers, and further rules appended."""
    content = load_recipe(recipe).to_dict()
    content["rules"] += [vars(rule) for rule in more]
    insert_quantizers(model, recipe_from_dict(content))
    return model


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch).logits


# pytorch-quantization ------------------------------------------------------------------------------------------------


def peer_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Attention as NVIDIA's QDQBERT example quantizes it: Q before the scaling, probabilities after the softmax."""
    scores = module.matmul_q_input_quantizer(query) @ module.matmul_k_input_quantizer(key.transpose(-1, -2)) * scaling
    weights = torch.softmax(scores if attention_mask is None else scores + attention_mask, -1)
    output = module.matmul_a_input_quantizer(weights) @ module.matmul_v_input_quantizer(value)
    return output.transpose(1, 2).contiguous(), weights


AttentionInterface.register("peer", peer_attention)
AttentionMaskInterface.register("peer", eager_mask)


def calibrated_peer(family, attention=False, off=("pooler", "classifier")):
    """Return the tiny model built, calibrated and switched on by pytorch-quantization itself."""
    pytest.importorskip("pytorch_quantization", reason="pytorch-quantization 2.1.3 is not installed")
    from pytorch_quantization import nn as quant_nn
    from pytorch_quantization import quant_modules
    from pytorch_quantization.tensor_quant import QuantDescriptor

    quant_modules.initialize()  # as its users do: torch.nn.Linear is QuantLinear while the model is built
    try:
        model = peer_model(family)
    finally:
        quant_modules.deactivate()
    if attention:
        for module in model.modules():
            if type(module).__name__ in ("BertSelfAttention", "ViTAttention"):
                for side in "qkva":
                    setattr(module, f"matmul_{side}_input_quantizer", quant_nn.TensorQuantizer(QuantDescriptor()))
        model.set_attn_implementation("peer")
    quantizers = [(n, m) for n, m in model.named_modules() if isinstance(m, quant_nn.TensorQuantizer)]
    active = [m for n, m in quantizers if not any(part in n for part in off)]
    for _, quantizer in quantizers:
        quantizer.disable()
    for quantizer in active:
        quantizer.enable()
        quantizer.disable_quant()
        quantizer.enable_calib()
    with torch.no_grad():
        for seed in range(3):
            model(**batch_for(model, seed=seed))
    for quantizer in active:
        quantizer.load_calib_amax()
        quantizer.disable_calib()
        quantizer.enable_quant()
    return model


@pytest.mark.parametrize("family", ["bert", "vit"])
@pytest.mark.parametrize("recipe", ["int8_linear", "int8_attention"])
def test_forward_equals_pytorch_quantization(family, recipe, tmp_path):
    theirs = calibrated_peer(family, attention=recipe == "int8_attention")
    torch.save(theirs.state_dict(), tmp_path / "peer.pth")
    ours = quantized(peer_model(family, seed=3), recipe)  # other weights: the checkpoint's are taken
    report = import_amax(ours, tmp_path / "peer.pth")
    assert report.is_complete and report.package == "pytorch-quantization"
    assert {site for site, _ in report.matched} == {s.name for s in ours.quantization.sites if s.enabled}
    batch = batch_for(ours, seed=9)
    expected = logits_of(theirs, batch)
    torch.testing.assert_close(logits_of(ours, batch), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert (expected - logits_of(peer_model(family), batch)).abs().max() > 100 * TOLERANCE  # quantization is seen


def test_integers_equal_those_of_pytorch_quantization():
    pytest.importorskip("pytorch_quantization", reason="pytorch-quantization 2.1.3 is not installed")
    from pytorch_quantization.tensor_quant import tensor_quant

    x, amax = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0)), torch.tensor(3.7)
    theirs = tensor_quant(x, amax, 8, False, False)[0]
    difference = (quantize(x, amax / 127, INT8) - theirs).abs()
    assert (difference == 0).float().mean() >= 0.9999 and difference.max() <= 1


def test_shapes_are_converted_and_q_is_scaled():
    theirs = calibrated_peer("bert", attention=True)
    state = theirs.state_dict()
    ours = quantized(peer_model("bert"), "int8_attention")
    report = import_amax(ours, state)
    name = "bert.encoder.layer.0.attention.self"
    layer = ours.get_submodule(name)
    assert torch.equal(layer.query.weight_quantizer.amax, state[f"{name}.query._weight_quantizer._amax"].flatten())
    assert layer.query.input_quantizer.amax.shape == (1,)
    assert layer.q_bmm_quantizer.amax == state[f"{name}.matmul_q_input_quantizer._amax"] * 8**-0.5
    assert layer.softmax_quantizer.amax == state[f"{name}.matmul_a_input_quantizer._amax"] != 1
    assert any(f"{name}.softmax_quantizer is taken as" in note for note in report.notes)
    assert layer.key.input_quantizer is layer.query.input_quantizer


def test_one_quantizer_for_q_k_v_takes_the_largest_of_theirs_and_says_so():
    state = calibrated_peer("bert").state_dict()
    key = "bert.encoder.layer.1.attention.self.key._input_quantizer._amax"
    state[key] = state[key] * 2
    ours = quantized(peer_model("bert"))
    report = import_amax(ours, state)
    query = ours.bert.encoder.layer[1].attention.self.query
    assert query.input_quantizer.amax == state[key] and report.is_complete
    assert (
        len(report.notes) == 1 and "layer.1.attention.self.query.input_quantizer takes the largest" in report.summary()
    )


def test_norm_outputs_take_the_amax_of_the_layers_that_read_them():
    ours = quantized(
        peer_model("bert"), "int8_full", Rule(kind="bmm", enable=False), Rule(kind="softmax", enable=False)
    )
    state = calibrated_peer("bert").state_dict()
    report = import_amax(ours, state)
    assert report.is_complete
    norm = ours.bert.encoder.layer[0].attention.output.LayerNorm
    assert norm.output_quantizer.amax == state["bert.encoder.layer.0.intermediate.dense._input_quantizer._amax"]


def test_a_partial_match_is_refused_and_changes_nothing():
    state = calibrated_peer("bert", off=("pooler",)).state_dict()  # their classifier is quantized
    missing = "bert.encoder.layer.0.intermediate.dense._input_quantizer._amax"
    del state[missing]
    ours = quantized(peer_model("bert", seed=3))
    before = ours.classifier.weight.clone()
    message = (
        r"2 of its entries have no place \(e\.g\. classifier\._input_quantizer: off here: rule .*classifier.*\); "
        r"it says nothing of 1 \(bert\.encoder\.layer\.0\.intermediate\.dense\.input_quantizer\).*--allow-partial"
    )
    with pytest.raises(ValueError, match=message):
        import_amax(ours, state)
    layer = ours.bert.encoder.layer[1].intermediate.dense
    assert layer.input_quantizer.amax is None and torch.equal(ours.classifier.weight, before)
    report = import_amax(ours, state, allow_partial=True, load_weights=False)
    assert [name for name, _ in report.unmatched] == ["classifier._input_quantizer", "classifier._weight_quantizer"]
    assert report.missing == ("bert.encoder.layer.0.intermediate.dense.input_quantizer",)
    assert layer.input_quantizer.amax is not None and torch.equal(ours.classifier.weight, before)
    assert "no place: 2 (classifier._input_quantizer" in report.summary()
    assert "not in it: 1 (bert.encoder.layer.0.intermediate" in report.summary()


def test_output_quantizers_have_no_site_and_learned_clips_are_the_amax():
    state = calibrated_peer("bert").state_dict()
    layer = "bert.encoder.layer.0.intermediate.dense"
    state[f"{layer}._output_quantizer._amax"] = torch.tensor(2.0)
    state |= {
        f"{layer}._input_quantizer.clip.clip_value_{end}": torch.tensor(v) for end, v in (("min", -1.5), ("max", 1.25))
    }
    ours = quantized(peer_model("bert"))
    report = import_amax(ours, state, allow_partial=True)
    assert report.unmatched == ((f"{layer}._output_quantizer", "int8kit has no quantizer there"),)
    assert ours.get_submodule(layer).input_quantizer.amax == 1.5


def test_names_of_older_transformers_of_wrappers_and_of_a_base_model_are_found():
    state = calibrated_peer("vit", attention=True).state_dict()
    renamed = {}
    for key, value in state.items():  # as transformers 4 called them, under DistributedDataParallel
        for new, old in (("vit.layers.", "vit.encoder.layer."), ("attention.o_proj", "attention.output.dense"),
                         ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
                         ("attention.matmul", "attention.attention.matmul"), ("q_proj", "attention.query"),
                         ("k_proj", "attention.key"), ("v_proj", "attention.value")):  # fmt: skip
            key = key.replace(new, old)
        renamed[f"module.{key}"] = value
    assert not set(renamed) & set(state)
    ours, same = quantized(peer_model("vit"), "int8_attention"), quantized(peer_model("vit"), "int8_attention")
    assert import_amax(ours, renamed).is_complete and import_amax(same, state).is_complete
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in ours.state_dict().items())
    base = {key.removeprefix("vit."): value for key, value in state.items() if key.startswith("vit.")}
    assert import_amax(same, base, allow_partial=True).missing == ("classifier.weight", "classifier.bias")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, r"holds no amax \(0 tensors\)"),
        ({"a.weight": torch.ones(1)}, r"holds no amax \(1 tensors, e\.g\. a\.weight\)"),
        (torch.ones(1), "holds a Tensor, not a state dict"),
        (tiny_bert, r"holds more than tensors \(.*torch\.save\(model\.state_dict\(\)"),
        (b"PK\x03\x04 cut", r"cannot be read \(.*Copy it again"),
        (b"# A text\n", r"is neither \.safetensors nor a file of torch\.save"),
        ({"modelopt_state_dict": [], "modelopt_version": "0.47.0"}, "settings without tensors"),
    ],
)
def test_unusable_files_are_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "peer.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content() if callable(content) else content, path)
    with pytest.raises(ValueError, match=message):
        read_foreign(path)


def test_folders_and_safetensors(tmp_path):
    amax = {"a.input_quantizer._amax": torch.ones(())}
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        read_foreign(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; looked for"):
        read_foreign(tmp_path)
    torch.save(amax, tmp_path / "one.pt")
    assert set(read_foreign(tmp_path).tensors) == set(amax)
    torch.save(amax, tmp_path / "two.pt")
    with pytest.raises(ValueError, match=r"holds 2 checkpoints \(one.pt, two.pt"):
        read_foreign(tmp_path)
    for part in "12":  # shards
        save_file({f"{part}.input_quantizer._amax": torch.ones(1)}, tmp_path / f"model-{part}.safetensors")
    assert set(read_foreign(tmp_path).tensors) == {"1.input_quantizer._amax", "2.input_quantizer._amax"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_broken_ranges_are_refused(value):
    state = calibrated_peer("bert").state_dict()
    state["bert.encoder.layer.0.intermediate.dense._input_quantizer._amax"] = torch.tensor(value)
    with pytest.raises(ValueError, match=r"intermediate\.dense\._input_quantizer has an amax of .* was it calibrated"):
        import_amax(quantized(peer_model("bert")), state)


def test_another_models_checkpoint_is_refused():
    state = calibrated_peer("bert").state_dict()
    with pytest.raises(
        ValueError, match=r"intermediate\.dense\.weight: its shape differs here: a checkpoint of another model"
    ):
        import_amax(quantized(peer_model("bert", intermediate_size=48)), state)
    with pytest.raises(ValueError, match=r"has no quantizer that fits this model .* is it of another model"):
        import_amax(quantized(peer_model("vit")), state, allow_partial=True)
