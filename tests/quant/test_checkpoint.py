"""Checkpoints: to the bit and back, loadable by plain Transformers, and refused when damaged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from calib.apply import apply_statistics
from calib.collect import collect
from quant.checkpoint import is_checkpoint, load_checkpoint, save_checkpoint
from quant.insert import insert_quantizers
from quant.recipe import load_recipe
from quant.sites.site import Why
from quant.sites.stored import identity
from tests.conftest import batch_for, tiny_bert


def calibrated(model, recipe="int8_smoothquant"):
    insert_quantizers(model, load_recipe(recipe))
    apply_statistics(model, collect(model, [batch_for(model)], progress=False))
    return model


@pytest.mark.parametrize("recipe", ["int8_smoothquant", "int8_full"])
def test_round_trip_to_the_bit_and_plain_transformers_loads_the_float_model(tmp_path, tiny_model, recipe):
    batch = batch_for(tiny_model)
    model_class = type(tiny_model)
    with torch.no_grad():
        float_logits = tiny_model(**batch).logits
        calibrated(tiny_model, recipe)
        save_checkpoint(tiny_model, tmp_path / "c")
        loaded = load_checkpoint(tmp_path / "c")
        assert torch.equal(loaded.model(**batch).logits, tiny_model(**batch).logits)
        plain = model_class.from_pretrained(tmp_path / "c").eval()
        torch.testing.assert_close(plain(**batch).logits, float_logits, rtol=1e-4, atol=1e-5)
    before, after = tiny_model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert loaded.model.quantization == tiny_model.quantization


def test_the_folder_holds_safetensors_and_json_only(tmp_path):
    save_checkpoint(calibrated(tiny_bert()), tmp_path / "c", provenance={"seed": 3})
    assert {path.suffix for path in (tmp_path / "c").iterdir()} == {".safetensors", ".json"}
    content = json.loads((tmp_path / "c" / "quantization.json").read_text())
    assert content["provenance"] == {"seed": 3} and content["recipe"]["name"] == "int8_smoothquant"
    assert is_checkpoint(tmp_path / "c") and not is_checkpoint(tmp_path)


def test_uncalibrated_quantizers_are_refused(tmp_path):
    model = tiny_bert()
    insert_quantizers(model, load_recipe("int8_linear"))
    with pytest.raises(RuntimeError, match=r"20 quantizers have no amax: bert\.encoder.* Run 'python -m calib'"):
        save_checkpoint(model, tmp_path / "c")


def test_damage_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no int8kit checkpoint"):
        load_checkpoint(tmp_path)
    folder = tmp_path / "c"
    save_checkpoint(calibrated(tiny_bert()), folder)
    whole = (folder / "quantizers.safetensors").read_bytes()
    (folder / "quantizers.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"quantizers\.safetensors is missing or not what was saved"):
        load_checkpoint(folder)
    (folder / "quantization.json").write_text("{")
    with pytest.raises(ValueError, match=r"quantization\.json is damaged"):
        load_checkpoint(folder)
    (folder / "quantization.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="has schema 99, this version reads 1"):
        load_checkpoint(folder)


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("quant.checkpoint.save_file", full)
    with pytest.raises(OSError, match=r"cannot write .*No space left on device"):
        save_checkpoint(calibrated(tiny_bert()), tmp_path / "c")
    assert not is_checkpoint(tmp_path / "c")


def rewritten(folder, change):
    """Write a checkpoint's description as `change` leaves it."""
    path = folder / "quantization.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def keep_three(content):
    del content["sites"][3:]


def switch_one_off(content):
    next(site for site in content["sites"] if site["enabled"] and site["kind"] == "bmm")["enabled"] = False


def other_recipe(content):
    content["recipe"]["rules"].append({"match": "*layer.0*", "enable": False})


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (keep_three, r"was changed: \d+ sites \(bert\.\S+, bert\.\S+, .*\.\.\.\) are not what recipe 'int8_full'"),
        (switch_one_off, r"was changed: the site bert\.\S+_bmm_quantizer is not what recipe 'int8_full'"),
        (other_recipe, r"was changed: \d+ sites"),
        (lambda content: content["sites"][0].update(module="bert.x", name=f"bert.x.{content['sites'][0]['role']}"),
         "the site bert.x.* of no layer of"),
        (lambda content: content["sites"][0].update(name="bert.x.input_quantizer"),
         r"is damaged: site bert\.x\.input_quantizer is told to be bert\."),
        (lambda content: content["sites"][0].pop("consumers"), "is damaged: 'consumers'; calibrate again"),
        (lambda content: content["sites"][0].update(colour=1), "is damaged: .*colour"),
        (lambda content: content.pop("digests"), "is damaged: it has no digests; calibrate again"),
        (lambda content: content.update(sites=5), "is damaged: 'int' object is not iterable"),
    ],
)  # fmt: skip
def test_sites_that_are_not_those_of_recipe_and_model_are_refused(tmp_path, change, message, is_old):
    save_checkpoint(calibrated(tiny_bert(), "int8_full"), tmp_path / "c")
    rewritten(tmp_path / "c", change)
    if is_old:
        rewritten(tmp_path / "c", lambda content: content.pop("sites_digest"))
    with pytest.raises(ValueError, match=message) as raised:
        load_checkpoint(tmp_path / "c")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("recipe", ["int8_smoothquant", "int8_full"])
def test_a_checkpoint_of_the_first_version_still_loads(tmp_path, tiny_model, recipe):
    batch = batch_for(tiny_model)
    save_checkpoint(calibrated(tiny_model, recipe), tmp_path / "c")
    rewritten(tmp_path / "c", lambda content: content.pop("sites_digest"))
    loaded = load_checkpoint(tmp_path / "c").model
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, tiny_model(**batch).logits)


OLD = sorted((Path(__file__).parents[1] / "fixtures" / "checkpoints").iterdir())


@pytest.mark.parametrize("folder", OLD, ids=lambda folder: folder.name)
def test_checkpoints_of_older_versions_compute_what_they_did(folder, tmp_path):
    """Made by the first version that wrote a checkpoint (019702f) and by the last one whose sites had no roles."""
    expected = load_file(folder / "expected.safetensors")
    model = load_checkpoint(folder).model
    with torch.no_grad():
        logits = model(input_ids=expected["input_ids"], attention_mask=expected["attention_mask"]).logits
    # To the bit where they were made; another processor adds a product's terms in another order.
    torch.testing.assert_close(logits, expected["logits"], rtol=0, atol=1e-6)
    stored = json.loads((folder / "quantization.json").read_text())["sites"]
    told = [(s["name"], s["kind"], s["enabled"], s["reason"], s["smoothing"]) for s in stored]
    sites = model.quantization.sites
    assert told == [(s.name, s.kind, s.enabled, s.reason, str(s.smoothing or "")) for s in sites]
    assert not [site.name for site in sites if site.why is Why.OLDER]  # every reason has become fields
    save_checkpoint(model, tmp_path / "again")
    again = load_checkpoint(tmp_path / "again").model
    assert again.quantization == model.quantization
    saved = json.loads((tmp_path / "again" / "quantization.json").read_text())["sites"]
    assert [identity(site) for site in saved] == [
        {"producer_channels": None, **identity(site)} for site in stored
    ]  # so a run folder of then still knows the model


def test_a_reason_that_no_fields_make_is_kept_as_it_was_told(tmp_path):
    save_checkpoint(calibrated(tiny_bert(), "int8_full"), tmp_path / "c")

    def worded(content):
        del content["sites_digest"]
        for site in content["sites"]:
            for key in ("module", "role", "why", "rule", "reads", "smoothed", "told"):
                del site[key]
            site["reason"] = "someone said so"

    rewritten(tmp_path / "c", worded)
    sites = load_checkpoint(tmp_path / "c").model.quantization.sites
    assert {site.why for site in sites} == {Why.OLDER} and {site.reason for site in sites} == {"someone said so"}
