"""A whole search on a tiny model: what it leaves behind, that it goes on after a kill, what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from calib.apply import apply_statistics
from calib.collect import collect
from engine.cli import EXIT_INTERRUPTED
from engine.inspect.__main__ import main as inspect_main
from eval.report.__main__ import check, write_report
from eval.search.__main__ import main
from eval.search.answer import answer_of
from eval.search.fixes import FIXES, fixable
from eval.search.plans import plan_recipe, write_recipe
from eval.search.saved import read_search
from eval.search.sensitivity import Sensitivity, measure_units, units_of
from eval.sweep.grid import Usual
from eval.tasks import get_task
from quant.checkpoint import load_checkpoint
from quant.insert import insert_quantizers
from quant.recipe import load_recipe
from quant.tensor_quantizer import named_quantizers, quantizers_disabled
from tests.conftest import text_batch, tiny_bert
from tests.families import get_family


def calibrated(recipe="int8_full", model=None, batch=None):
    model = model or tiny_bert()
    insert_quantizers(model, load_recipe(recipe), batch)
    apply_statistics(model, collect(model, [batch or text_batch(8)], progress=False))
    return model


@pytest.fixture(autouse=True)
def one_reference(monkeypatch):
    """What else a search is held against takes long to compile, and sweeps' own tests measure it."""
    usual = Usual(("fp32",), ("onnxruntime-fastest",), "cpu")
    monkeypatch.setattr("eval.search.__main__.usual_of", lambda backends: usual)


def run(model_and_data, out, *more):
    model, data = model_and_data
    with pytest.raises(SystemExit) as ended:
        main(["--model", str(model), "--task", "text-classification", "--data", data, "--out", str(out),
              "--batch-sizes", "4", "--seq-lengths", "16", "--rounds", "2", "--threads", "1", *more])  # fmt: skip
    return ended.value.code


def test_units_hold_every_quantizer_once_and_what_reads_one_tensor_together():
    model = calibrated()
    units = units_of(model)
    names = [name for unit in units for name in unit.sites]
    assert sorted(names) == sorted(name for name, q in named_quantizers(model) if q.enabled)
    by_name = {unit.name: unit for unit in units}
    assert len(by_name) == len(units)
    qkv = next(unit for unit in units if unit.block == "1" and len(unit.layers) == 3)
    assert {layer.rpartition(".")[2] for layer in qkv.layers} == {"query", "key", "value"}
    assert {unit.part for unit in units if unit.block == "0"} == {unit.part for unit in units if unit.block == "1"}


@pytest.mark.parametrize("name", ["vit", "swin", "gpt2", "llama", "deberta_v2", "clip", "mobilevit"])
def test_units_of_other_families(name):
    family = get_family(name)
    model = family.model()
    calibrated("int8_full", model, family.batch(model, 4, 12, 0))
    units = units_of(model)
    names = [name for unit in units for name in unit.sites]
    assert sorted(names) == sorted(name for name, q in named_quantizers(model) if q.enabled)
    assert len({unit.name for unit in units}) == len(units)
    found = Sensitivity(model, family.batch(model, 6, 12, 3))
    assert found.measure([]).output == 0 and found.measure(units).output > 0


def test_errors_are_those_of_the_model_with_the_units_switched():
    model, batch = calibrated(), text_batch(11, seed=4)
    found = Sensitivity(model, batch)
    with torch.no_grad():
        whole = model(**batch).logits
        with quantizers_disabled(model):
            target = model(**batch).logits
    assert found.measure(found.units).output == pytest.approx(float((whole - target).abs().mean()), rel=1e-4)
    measured, together = measure_units(found)
    assert len(measured) == len(found.units) and together.output > 0
    assert all(each.alone.output >= 0 and each.without.output > 0 for each in measured)
    assert not any(q.is_bypassed for _, q in named_quantizers(model))


def coarsely_calibrated(model, batch, times):
    """Give a model of random weights ranges that are far too wide, so that answers change."""
    calibrated("int8_full", model, batch)
    for _, quantizer in named_quantizers(model):
        if quantizer.amax is not None:
            quantizer.set_amax(quantizer.amax * times)
    return model


def outputs_of(model, batch):
    with torch.no_grad():
        whole = model(**batch)
        with quantizers_disabled(model):
            return whole, model(**batch)


def test_answers_of_tokens_are_counted_without_padding_over_all_batches():
    family = get_family("gpt2")
    model = family.model()
    batch = family.batch(model, 41, 12, 3)
    batch["attention_mask"][::3, 6:] = 0
    coarsely_calibrated(model, batch, 12)
    whole, target = (found.logits.argmax(-1) for found in outputs_of(model, batch))
    seen, differs = batch["attention_mask"].bool(), whole != target
    assert 0 < differs[seen].sum() < seen.sum() and differs[~seen].any()
    found = Sensitivity(model, batch, get_task("perplexity").answers)
    assert len(found.batches) > 1 and found.measure([]).num_changed == 0
    got = found.measure(found.units)
    near = pytest.approx(int(differs[seen].sum()), abs=2)  # batches of other sizes add up in another order
    assert got.num_answers == int(seen.sum()) and got.num_changed == near
    assert got.changed == got.num_changed / got.num_answers
    assert get_task("stsb").answers == () and Sensitivity(model, batch).measure(found.units).changed is None


def test_a_span_changes_with_its_start_or_its_end_and_lies_in_no_padding():
    torch.manual_seed(0)
    config = tiny_bert().config
    config.num_labels, config.initializer_range = 2, 0.2
    model = transformers.BertForQuestionAnswering(config).eval()
    batch = {k: v for k, v in text_batch(40, seed=4).items() if k != "labels"}
    batch["attention_mask"][::2, 4:] = 0
    coarsely_calibrated(model, batch, 12)
    hidden = ~batch["attention_mask"].bool()
    places = [[x.masked_fill(hidden, -torch.inf).argmax(-1) for x in (found.start_logits, found.end_logits)]
              for found in outputs_of(model, batch)]  # fmt: skip
    start, end = (a != b for a, b in zip(*places, strict=True))
    found = Sensitivity(model, batch, get_task("squad").answers)
    got = found.measure(found.units)
    assert 0 < (start & end).sum() < (start | end).sum() < 40
    assert got.num_answers == 40 and got.num_changed == pytest.approx(int((start | end).sum()), abs=1)


def test_a_plan_is_a_recipe_that_comes_back_from_its_file_and_switches_exactly_its_units(tmp_path):
    model = calibrated()
    units = units_of(model)
    on = frozenset(unit.name for unit in units[::2])
    fixes = {units[2].name: "mse"}
    planned = plan_recipe(model.quantization.sites, load_recipe("int8_full"), units, on, fixes, "plan")
    write_recipe(planned, tmp_path / "plan.yaml", "why")
    assert load_recipe(tmp_path / "plan.yaml").digest == planned.digest
    again = tiny_bert()
    sites = insert_quantizers(again, load_recipe(tmp_path / "plan.yaml"))
    wanted = {name for unit in units if unit.name in on for name in unit.sites}
    assert {site.name for site in sites if site.enabled} == wanted
    assert {site.name for site in sites if site.method == "mse"} <= set(units[2].sites)


@pytest.mark.parametrize("name", ["int8_smoothquant", "int8_linear"])
def test_what_the_recipe_does_already_is_no_fix(name):
    recipe, model = load_recipe(name), calibrated(name)
    found = {fix for fix in FIXES if fixable(units_of(model), fix, model.quantization.sites, recipe)}
    smoothing = {fix for fix in FIXES if "alpha" in FIXES[fix]}
    assert found == set(FIXES) - {"max"} - (set() if recipe.smoothquant.alpha else smoothing)
    by_rule = [replace(site, method="mse") if site.reads_samples else site for site in model.quantization.sites]
    assert not fixable(units_of(model), "mse", by_rule, recipe) and fixable(units_of(model), "max", by_rule, recipe)


@pytest.mark.parametrize("fix", [fix for fix in FIXES if fix != "max"])
def test_a_fix_changes_how_its_unit_is_calibrated_and_nothing_else(fix, tmp_path):
    recipe, model = load_recipe("int8_smoothquant"), calibrated("int8_smoothquant")
    units, sites = units_of(model), model.quantization.sites
    fixed, *others = fixable(units, fix, sites, recipe)
    planned = plan_recipe(sites, recipe, units, frozenset(unit.name for unit in units), {fixed.name: fix}, "plan")
    write_recipe(planned, tmp_path / "plan.yaml", fix)
    again = {site.name: site for site in insert_quantizers(tiny_bert(), load_recipe(tmp_path / "plan.yaml"))}
    reading = [(unit, again[name]) for unit in (fixed, *others) for name in unit.sites if again[name].reads_samples]
    for unit, site in reading:
        has_it = all(getattr(site, field) == value for field, value in FIXES[fix].items() if value is not None)
        assert has_it == (unit is fixed), site.name


def test_a_search_leaves_a_recipe_a_checkpoint_an_engine_and_a_page(model_and_data, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    code = run(model_and_data, out, "--max-loss", "0.5", "--against", "int8_linear", "--json")
    assert code == 0
    row = json.loads((out / "search.json").read_text())
    assert "INT8" in row["verdict"] and row["plans"] and row["costs"]["error"] >= 0
    assert row["chosen"] is not None
    for name in ("RECIPE.yaml", "checkpoint", "engine", "search.html", "search.md", "proof/results.jsonl"):
        assert (out / name).exists(), name
    assert load_checkpoint(out / "checkpoint").model.quantization.recipe.rules
    with pytest.raises(SystemExit) as ended:
        inspect_main([str(out / "engine"), "--expect", str(out / "checkpoint"), "--iterations", "1"])
    assert ended.value.code == 0 and "as planned" in capsys.readouterr().out
    # what was predicted is of what is scored: for the whole model, what its engine was measured at
    rows = [json.loads(line) for line in (out / "proof" / "results.jsonl").read_text().splitlines()]
    errors = {Path(each["recipe"] or "").stem: each["error_abs_mean"] for each in rows}
    whole = next(plan for plan in row["plans"] if plan["name"] == "whole")
    assert whole["error"] == pytest.approx(errors["whole"], rel=1e-6) and row["scale"] > 0
    # where a budget ended before any plan was measured, nothing is said of INT8
    found = read_search(out, out / "proof")
    assert answer_of(found) == row["verdict"]
    floats = tuple(each for each in found.proof.rows if each.row.recipe is None)
    cut = replace(found, proof=replace(found.proof, rows=floats), chosen=None, num_left=4)
    assert answer_of(cut).startswith("not known yet: --budget ended before a plan was measured (4 points")
    page = (out / "search.html").read_text()
    assert page.count("<svg") == 4 and "Where the error comes from" in page
    # again: everything is found, nothing is measured anew
    monkeypatch.setattr("eval.search.measure._sensitivity", None)
    monkeypatch.setattr("eval.search.measure.time_systems", None)
    before = (out / "proof" / "results.jsonl").read_text()
    assert run(model_and_data, out, "--max-loss", "0.5", "--against", "int8_linear") == 0
    assert (out / "proof" / "results.jsonl").read_text() == before
    assert json.loads((out / "search.json").read_text())["seconds"] > row["seconds"]
    # another question in the same folder
    assert run(model_and_data, out, "--max-loss", "0.1", "--against", "int8_linear") == 1
    assert "holds another search: max_loss is 0.5 there, 0.1 here" in capsys.readouterr().err
    engine = json.loads((out / "engine.json").read_text())
    assert engine["recipe_digest"]
    # asked for less in the folder of a whole one, or stopped in its proof: nothing that was delivered is lost
    assert run(model_and_data, out, "--max-loss", "0.5", "--against", "int8_linear", "--sensitivity-only") == 1
    assert "holds a whole search" in capsys.readouterr().err
    monkeypatch.setattr("eval.search.run.run_sweep", stopped)
    assert run(model_and_data, out, "--max-loss", "0.5", "--against", "int8_linear") == EXIT_INTERRUPTED
    assert all((out / name).exists() for name in ("RECIPE.yaml", "checkpoint", "engine", "plans"))
    a_run_shows_the_search_in_its_folder(out)


def stopped(*args, **kwargs):
    raise KeyboardInterrupt


def a_run_shows_the_search_in_its_folder(out):
    """The proof is a run of the same model and data, so a copy of the search in its folder is one of them."""
    within = out / "proof" / "search"
    within.mkdir()
    for name in ("search.json", "search_manifest.json", "search.html"):
        shutil.copy(out / name, within)
    shutil.copytree(out / "plots", within / "plots")
    verdict = json.loads((out / "search.json").read_text())["verdict"]
    text = write_report(out / "proof").with_suffix(".md").read_text()
    assert "a search for ONNX Runtime" in text and verdict in text and "(search/search.html)" in text
    assert "plots/search.png" in text
    check(out / "proof")
    asked = json.loads((within / "search_manifest.json").read_text())
    (within / "search_manifest.json").write_text(json.dumps({**asked, "model_digest": "another"}))
    text = write_report(out / "proof").with_suffix(".md").read_text()
    assert "a search for" not in text and not (out / "proof" / "plots" / "search.png").exists()


def test_no_plan_keeps_an_impossible_error_and_the_training_command_is_named(model_and_data, tmp_path, capsys):
    flags = ("--max-error", "1e-9", "--no-fixes", "--parallel", "2", "--against")
    assert run(model_and_data, tmp_path / "run", *flags) == 0
    printed = capsys.readouterr().out
    assert "because no plan within a loss of 0.50 % keeps an error of 1e-09; the closest" in printed
    assert "python train_qat.py --model" in printed
    assert not (tmp_path / "run" / "RECIPE.yaml").exists()


def test_sensitivity_only_builds_nothing(model_and_data, tmp_path, capsys):
    assert run(model_and_data, tmp_path / "run", "--sensitivity-only") == 0
    assert "units on" in capsys.readouterr().out
    assert not (tmp_path / "run" / "proof").exists() and (tmp_path / "run" / "search.html").exists()
    found = json.loads((tmp_path / "run" / "search.json").read_text())
    assert found["together"]["num_answers"] == found["num_samples"]
    assert f"of {found['num_samples']} answers (the place of" in (tmp_path / "run" / "search.md").read_text()


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--backend", "onnxruntim"], 2, "onnxruntime"),
        (["--recipe", "int8_smothquant"], 1, "did you mean int8_smoothquant"),
        (["--max-error", "0"], 2, "--max-error above 0"),
        (["--budget", "0.5"], 2, "--budget must be at least 1"),
        (["--backend", "pytorch"], 2, "does not know 'pytorch'"),
    ],
)
def test_wrong_words(model_and_data, tmp_path, capsys, more, code, message):
    assert run(model_and_data, tmp_path / "run", *more) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_recipe_with_a_calibrator_of_its_own_is_not_measured_by_another(model_and_data, tmp_path, capsys):
    own = tmp_path / "own.yaml"
    own.write_text("extends: int8_linear\ncalibrator: {method: mse}\n")
    assert run(model_and_data, tmp_path / "run", "--against", str(own)) == 2
    assert "calibrates by mse, and a search measures every recipe by --recipe's max" in capsys.readouterr().err
