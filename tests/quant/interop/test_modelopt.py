"""Checkpoints that ModelOpt quantized: their ranges, factors, formats and weights."""

import re
import subprocess
import sys

import pytest
import torch

from quant.interop.importer import import_amax
from quant.recipe import Rule
from tests.conftest import batch_for
from tests.quant.interop.test_interop import ROOT, TOLERANCE, logits_of, needs_modelopt, quantized
from tests.quant.peer_models import peer_model


@pytest.fixture(scope="module")
def modelopt_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modelopt")
    command = [sys.executable, "-m", "tests.quant.interop.modelopt_checkpoints", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def expected_logits(folder, case):
    return torch.load(folder / "logits.pt", weights_only=True)[case]


@needs_modelopt
@pytest.mark.parametrize("form", ["", "_state"])
@pytest.mark.parametrize("case", ["bert_linear", "bert_qkv", "vit_qkv", "gpt2_linear", "llama_qkv", "bert_smooth"])
def test_forward_equals_modelopt(case, form, modelopt_folder):
    family, placement = case.split("_")
    off = [Rule(kind="softmax", enable=False)] if placement == "qkv" else []  # ModelOpt has no INT8 softmax
    ours = quantized(peer_model(family, seed=3), "int8_attention" if off else "int8_linear", *off)
    report = import_amax(ours, modelopt_folder / f"{case}{form}.pt")
    assert report.is_complete and report.package == "ModelOpt"
    batch = batch_for(ours, seed=9)
    expected = expected_logits(modelopt_folder, case)
    torch.testing.assert_close(logits_of(ours, batch), expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert (expected - logits_of(peer_model(family), batch)).abs().max() > 100 * TOLERANCE  # quantization is seen


@needs_modelopt
def test_smoothquant_factors_come_along_and_weights_become_float_again(modelopt_folder):
    ours = quantized(peer_model("bert", seed=3))
    import_amax(ours, modelopt_folder / "bert_smooth.pt")
    again = import_amax(quantized(peer_model("bert")), modelopt_folder / "bert_smooth.pt")
    assert not again.notes  # no weight is said to differ
    for name, parameter in peer_model("bert").named_parameters():  # s / s moves a weight by an ulp
        torch.testing.assert_close(ours.get_parameter(name), parameter, atol=0, rtol=3e-7)
    site = next(s for s in ours.quantization.sites if s.name.endswith("layer.0.intermediate.dense.input_quantizer"))
    assert str(site.smoothing) == "explicit, imported" and ours.get_submodule(site.name).pre_quant_scale.shape == (32,)
    full = quantized(peer_model("bert"), "int8_full")
    with pytest.raises(ValueError, match="SmoothQuant on a norm_output site"):
        import_amax(full, modelopt_folder / "bert_smooth.pt")


@needs_modelopt
def test_the_default_preset_is_partial_and_a_folder_of_save_pretrained_is_read(modelopt_folder):
    ours = quantized(peer_model("bert"))
    with pytest.raises(ValueError, match=r"have no place .*LayerNorm\.input_quantizer: int8kit has no quantizer there"):
        import_amax(ours, modelopt_folder / "bert_preset.pt")
    report = import_amax(ours, modelopt_folder / "bert_preset.pt", allow_partial=True)
    assert not report.missing and len(report.unmatched) == 9  # 5 LayerNorms, pooler and classifier
    assert import_amax(ours, modelopt_folder / "bert_linear_folder").is_complete


@needs_modelopt
@pytest.mark.parametrize(
    ("settings", "recipe_format", "reason"),
    [
        ({"_num_bits": 7, "_narrow_range": True}, "int7", None),
        ({"_num_bits": 8, "_narrow_range": True}, "int8", None),  # the code -128 lies half a step outside the range
        ({"_num_bits": 7, "_narrow_range": True}, "int8", "int7 there, int8 by this recipe"),
        ({"_num_bits": 8}, "int7", "int8 there, int7 by this recipe"),
        ({"_num_bits": 7, "_narrow_range": False}, "int7", "not INT8 by channel or tensor: 7 bits"),  # -64 to 63
        ({"_num_bits": (4, 3)}, "int8", "not INT8 by channel or tensor"),
    ],
)
def test_bits_are_kept_as_our_format_or_refused(settings, recipe_format, reason):
    ours = quantized(peer_model("bert"), "int8_linear", Rule(match="*", format=recipe_format))
    names = [site.name for site in ours.quantization.sites if site.enabled]
    state = {f"{name}._amax": torch.tensor(2.0) for name in names}
    metadata = {"metadata": {"quantizer_state": dict.fromkeys(names, settings)}}
    state["modelopt_state"] = {"modelopt_state_dict": [("quantize", metadata)]}
    if reason is None:
        assert len(import_amax(ours, state).matched) == len(names)
    else:
        with pytest.raises(ValueError, match=re.escape(reason)):
            import_amax(ours, state)


def test_a_file_that_does_not_tell_its_bits_gives_ranges_alone_and_that_is_said():
    ours = quantized(peer_model("bert"), "int8_linear", Rule(match="*weight_quantizer", format="int7"))
    names = [site.name for site in ours.quantization.sites if site.enabled]
    report = import_amax(ours, {f"{name}._amax": torch.tensor(2.0) for name in names})
    assert any("weight_quantizer" in note and "the file does not say what they were" in note for note in report.notes)
    quantizer = ours.bert.encoder.layer[0].intermediate.dense.weight_quantizer
    assert torch.equal(quantizer.scale, quantizer.amax / 63)


def test_trained_weights_are_taken_or_kept(modelopt_folder):
    path, batch = modelopt_folder / "bert_trained.pt", batch_for(peer_model("bert"), seed=9)
    ours = quantized(peer_model("bert"))
    report = import_amax(ours, path)
    assert (
        report.num_weights == len(list(ours.parameters())) and "weights differ from the model's own" in report.summary()
    )
    expected = expected_logits(modelopt_folder, "bert_trained")
    torch.testing.assert_close(logits_of(ours, batch), expected, atol=TOLERANCE, rtol=TOLERANCE)
    kept = quantized(peer_model("bert"))
    assert import_amax(kept, path, load_weights=False).num_weights == 0
    assert all(torch.equal(kept.get_parameter(name), value) for name, value in peer_model("bert").named_parameters())


@needs_modelopt
def test_other_formats_than_int8_are_named(modelopt_folder):
    with pytest.raises(ValueError, match="not INT8 by channel or tensor: 4 bits, blocks"):
        import_amax(quantized(peer_model("bert")), modelopt_folder / "bert_int4.pt")
    with pytest.raises(ValueError, match=r"settings without tensors; give the file of mto\.save"):
        import_amax(quantized(peer_model("bert")), modelopt_folder / "settings.pt")
