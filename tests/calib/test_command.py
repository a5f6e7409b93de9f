"""`python -m calib --import-amax`: from a peer's file to a checkpoint, and the ways to use it wrongly."""

import re

import pytest
import torch

from calib.__main__ import main
from quant.checkpoint import load_checkpoint
from quant.insert import insert_quantizers
from quant.interop.importer import import_amax
from quant.recipe import load_recipe
from tests.conftest import tiny_bert


@pytest.fixture
def files(tmp_path):
    """A float model's folder, and a state dict with the names of pytorch-quantization."""
    model = tiny_bert()
    model.save_pretrained(tmp_path / "model")
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "encoder" in name:
            state[f"{name}._input_quantizer._amax"] = torch.tensor(2.5)
            state[f"{name}._weight_quantizer._amax"] = module.weight.detach().abs().amax(1, keepdim=True)
    torch.save(state, tmp_path / "peer.pt")
    return tmp_path


def run(files, *more):
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(files / "model"), "--import-amax", str(files / "peer.pt"),
              "--out", str(files / "ckpt"), *more])  # fmt: skip
    return ended.value.code


def test_a_checkpoint_comes_out_that_holds_the_imported_ranges(files, capsys):
    assert run(files) == 0
    printed = capsys.readouterr()
    assert "20 quantizers and 41 weights from" in printed.out and "(pytorch-quantization)" in printed.out
    assert "20 sites matched, 41 weights taken; 0 of its entries have no place" in printed.err
    loaded = load_checkpoint(files / "ckpt").model
    expected = tiny_bert()
    insert_quantizers(expected, load_recipe("int8_linear"))
    import_amax(expected, files / "peer.pt")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in expected.state_dict().items())


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--samples", "x"], 2, "not allowed with argument"),
        (["--method", "mse", "--num-samples", "8"], 2, "--method, --num-samples is not used with --import-amax"),
        (["--recipe", "int8_smoothquant"], 2, "an import brings its own factors, or none: take int8_linear"),
        (["--recipe", "int8_attention"], 1, "it says nothing of 8 .*--allow-partial"),
    ],
)
def test_wrong_combinations(files, more, code, message, capsys):
    assert run(files, *more) == code
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
    assert not (files / "ckpt").exists()


def test_its_flags_need_it(files, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--model", "digits", "--samples", "digits", "--allow-partial", "--out", str(files / "ckpt")])
    assert ended.value.code == 2 and "--allow-partial is for --import-amax" in capsys.readouterr().err


def calibrate(*flags):
    with pytest.raises(SystemExit) as ended:
        main([*flags])
    return ended.value.code


def test_statistics_serve_their_model_and_are_refused_by_the_one_that_smoothquant_changed(tmp_path, capsys):
    first, statistics = tmp_path / "first", str(tmp_path / "first" / "statistics.safetensors")
    model = ["--model", "digits"]
    assert calibrate(*model, "--samples", "digits", "--num-samples", "8", "--out", str(first)) == 0
    again = ["--statistics", statistics, "--method", "mse", "--out", str(tmp_path / "again")]
    assert calibrate(*model, *again) == 0
    capsys.readouterr()
    assert calibrate("--model", str(first), *again, "--force") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search("statistics were taken from other weights .* or SmoothQuant was folded into them. Give the", error)
    assert calibrate(*model, "--statistics", statistics, statistics, "--out", str(tmp_path / "twice")) == 1
    assert "is given twice" in capsys.readouterr().err


RULES = "extends: int8_linear\nrules:\n  - {{match: '*input_quantizer', {}}}\n"


def test_a_method_that_would_change_no_site_is_refused(files, capsys):
    recipe = files / "own.yaml"
    recipe.write_text(RULES.format("method: entropy"))
    flags = ["--model", "digits", "--samples", "digits", "--recipe", str(recipe), "--out", str(files / "c")]
    assert calibrate(*flags, "--method", "mse") == 2
    assert "--method mse changes no site: the rules of recipe 'own' give each" in capsys.readouterr().err
    assert not (files / "c").exists()


@pytest.mark.parametrize("setting", ["method: max", "method: percentile, percentile: 99", "alpha: search"])
def test_an_import_cannot_follow_rules_of_calibration(files, setting, capsys):
    (files / "own.yaml").write_text(RULES.format(setting))
    assert run(files, "--recipe", str(files / "own.yaml")) == 1
    assert f"of its own and cannot follow {{match: '*input_quantizer', {setting}}}" in capsys.readouterr().err
    (files / "own.yaml").write_text(RULES.format("alpha: off"))
    assert run(files, "--recipe", str(files / "own.yaml")) == 0  # the file brings no factors
    state = torch.load(files / "peer.pt")
    for name in [key for key in state if key.endswith("_input_quantizer._amax")]:
        state[name.replace("_amax", "_pre_quant_scale")] = torch.ones(32)
    torch.save(state, files / "peer.pt")
    assert run(files, "--recipe", str(files / "own.yaml"), "--force") == 1
    assert "SmoothQuant there, alpha off by this recipe" in capsys.readouterr().err
