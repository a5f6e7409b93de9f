"""What train_qat.py refuses before the first step, and that it keeps what it promises after the last."""

import contextlib
import io
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification

import train_qat
from quant.checkpoint import load_checkpoint
from tests.eval import tiny
from training import command
from training.resume import last_whole_checkpoint
from training.run_folder import claim_run, hold_run

STEPS = ["--max_steps", "2", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false",
         "--use_cpu", "true", "--disable_tqdm", "true", "--num_samples", "16"]  # fmt: skip


def images(folder, num_labels):
    """Write 24 random images of 8 x 8 as an image task's tables."""

    from PIL import Image

    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 16, (8, 8), dtype=np.uint8)).save(file, "png")
        rows.append({"image": {"bytes": file.getvalue(), "path": None}, "label": i % num_labels})
    folder.mkdir()
    for split in ("train", "validation"):
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    return folder


def run(capsys, *flags):
    """Return exit status, stdout and stderr of the command."""
    try:
        train_qat.main([*flags, *STEPS])
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_labels_that_do_not_fit_the_head_are_refused_for_qat_and_trained_anew_for_float(tmp_path, capsys):
    data = images(tmp_path / "data", num_labels=12)
    flags = ["--model", "digits", "--task", "image-classification", "--data", str(data)]
    code, _, err = run(capsys, *flags, "--out", str(tmp_path / "qat"))
    assert code == 1 and "10 outputs and the data 12 labels; train the float model first" in err.splitlines()[-1]
    code, out, _ = run(capsys, *flags, "--recipe", "none", "--json", "--out", str(tmp_path / "float"))
    assert code == 0 and json.loads(out)["fine-tuned"]["error_abs_mean"] is None


def test_one_long_text_is_trained_in_blocks(tmp_path, capsys):
    loaded = tiny.llama()
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        text = " ".join(rng.choice(tiny.WORDS, 800))
        pd.DataFrame({"text": [text]}).to_parquet(tmp_path / "data" / f"{split}.parquet")
    code, out, err = run(capsys, "--model", str(tmp_path / "model"), "--task", "perplexity", "--data",
                         str(tmp_path / "data"), "--recipe", "int8_linear", "--seq_length", "16", "--json",
                         "--per_device_train_batch_size", "4", "--out", str(tmp_path / "o"))  # fmt: skip
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert result["steps"] == 2 and result["QAT"]["metric"] > 1 and result["QAT"]["metric_name"] == "perplexity"
    assert "epoch 0.1538" in err  # 2 of 13 steps: 50 blocks of 16 tokens, 4 a step


def test_stdout_is_the_result_alone_and_the_folder_is_a_checkpoint(tmp_path, capsys):
    flags = ["--model", "digits", "--task", "digits", "--recipe", "int8_full", "--json", "--out", str(tmp_path / "run")]
    code, out, err = run(capsys, *flags, "--logging_steps", "1")
    row = json.loads(out)
    assert code == 0 and row["steps"] == 2 and {"PTQ", "QAT", "float"} <= set(row) and "step 1: loss" in err
    assert load_checkpoint(tmp_path / "run").model.quantization.recipe.name == "int8_full"


SHORT = ["--model", "digits", "--task", "digits", "--recipe", "int8_linear", "--json", "--use_cpu", "true",
         "--disable_tqdm", "true", "--max_steps", "4", "--save_strategy", "steps", "--save_steps", "2",
         "--eval_strategy", "steps", "--eval_steps", "2"]  # fmt: skip
FEW = ["--num_samples", "16"]  # of a calibration, which --init brings


def short_run(capsys, *flags):
    """Return exit status, stdout and stderr of a run of four steps with two checkpoints."""
    with pytest.raises(SystemExit) as ended:
        train_qat.main([*SHORT, *([] if "--init" in flags else FEW), *flags])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps, its result, and its checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with contextlib.suppress(SystemExit):
        train_qat.main([*SHORT, *FEW, "--out", str(folder)])
    return folder


def torn(checkpoint, how):
    """Leave a checkpoint as a kill leaves it while it is written."""
    if how == "empty":
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()
    elif how == "no state":
        (checkpoint / "trainer_state.json").unlink()
    else:
        name = {"half a state": "trainer_state.json", "half an optimizer": "optimizer.pt", "half the ranges":
                "quantizers.safetensors"}[how]  # fmt: skip
        (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:100])


HOW_TORN = ["empty", "no state", "half a state", "half an optimizer", "half the ranges"]


@pytest.mark.parametrize("how", HOW_TORN)
def test_a_checkpoint_that_a_kill_left_half_written_is_passed_over(tmp_path, finished, how, caplog):
    shutil.copytree(finished, tmp_path / "run")
    assert last_whole_checkpoint(tmp_path / "run").name == "checkpoint-4"
    torn(tmp_path / "run" / "checkpoint-4", how)
    resume = claim_run(tmp_path / "run", json.loads((finished / "run.json").read_text()), force=False)
    assert resume == str(tmp_path / "run" / "checkpoint-2") and "was not written to its end" in caplog.text
    assert (tmp_path / "run" / "broken-checkpoint-4").is_dir() and not (tmp_path / "run" / "checkpoint-4").exists()


def test_a_killed_run_goes_on_to_the_same_ranges_and_keeps_the_score_of_calibration(tmp_path, finished, capsys):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    torn(tmp_path / "run" / "checkpoint-4", "half an optimizer")
    code, out, _ = short_run(capsys, "--out", str(tmp_path / "run"))
    whole = json.loads((finished / "result.json").read_text())
    assert code == 0 and json.loads(out)["PTQ"] == whole["PTQ"] and json.loads(out)["QAT"] == whole["QAT"]
    ranges = [(folder / "quantizers.safetensors").read_bytes() for folder in (tmp_path / "run", finished)]
    assert ranges[0] == ranges[1]
    # Without the note of the first start nothing is called calibration's score.
    (tmp_path / "run" / "start.json").unlink()
    code, out, _ = short_run(capsys, "--out", str(tmp_path / "run"))
    assert code == 0 and "PTQ" not in json.loads(out) and json.loads(out)["QAT"] == whole["QAT"]


def test_a_run_that_failed_before_its_first_step_leaves_its_folder_free(tmp_path, capsys):
    code, _, err = short_run(capsys, "--out", str(tmp_path / "run"), "--init", str(tmp_path / "none"))
    assert code == 1 and "is no int8kit checkpoint" in err and (tmp_path / "run" / "run.json").is_file()
    assert claim_run(tmp_path / "run", {"another": "run"}, force=False) is None


def test_a_finished_run_is_not_overwritten_but_by_force_and_that_twice(tmp_path, finished):
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(FileExistsError, match="holds another run; choose another --out"):
        claim_run(tmp_path / "run", {"another": "run"}, force=False)
    for name in ("one", "two"):
        assert claim_run(tmp_path / "run", {"another": name}, force=True) is None
        shutil.copytree(finished / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    assert (tmp_path / "run" / "old-checkpoint-4").is_dir() and not (tmp_path / "run" / "start.json").exists()


def test_two_runs_in_one_folder_at_once_are_refused(tmp_path):
    with hold_run(tmp_path / "run", {"a": 1}, False), pytest.raises(RuntimeError, match="in use by process"):
        with hold_run(tmp_path / "run", {"a": 1}, False):
            pass
    with hold_run(tmp_path / "run", {"a": 1}, False) as resume:
        assert resume is None


def test_an_interrupted_run_says_from_where_it_goes_on(tmp_path, finished, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_train", interrupted)
    code, _, err = short_run(capsys, "--out", str(tmp_path / "new"))
    assert code == 130 and "interrupted; the same command starts again (no checkpoint was written yet)" in err
    shutil.copytree(finished, tmp_path / "run")
    code, _, err = short_run(capsys, f"--out={tmp_path / 'run'}")
    assert code == 130 and f"the same command goes on from {tmp_path / 'run' / 'checkpoint-4'}" in err


def test_the_trainers_own_resume_flag_is_refused(tmp_path, capsys):
    code, _, err = short_run(capsys, "--out", str(tmp_path / "run"), "--resume_from_checkpoint", "true")
    assert code == 2 and "leave it out; the same command with the same --out goes on" in err


def test_a_float_run_goes_on_and_takes_its_best_checkpoint_with_all_of_its_weights(tmp_path, capsys):
    """ViT's files bear other names than its modules: the Trainer's own loading left the encoder as it was."""
    flags = ["--recipe", "none", "--learning_rate", "1e-3"]
    code, _, _ = short_run(capsys, *flags, "--out", str(tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoint-4")
    resumed, _, _ = short_run(capsys, *flags, "--out", str(tmp_path / "parts"))
    assert code == resumed == 0
    state = json.loads((tmp_path / "whole" / "checkpoint-4" / "trainer_state.json").read_text())
    best = load_file(tmp_path / "whole" / f"checkpoint-{state['best_global_step']}" / "model.safetensors")
    for folder in ("whole", "parts"):
        kept = load_file(tmp_path / folder / "model.safetensors")
        assert set(kept) == set(best) and all(torch.equal(kept[name], best[name]) for name in best)
    last = [load_file(tmp_path / folder / "checkpoint-4" / "model.safetensors") for folder in ("whole", "parts")]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


def test_a_checkpoint_of_another_model_is_refused(tmp_path, finished, capsys):
    ViTForImageClassification(ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=8, patch_size=2,
        num_channels=1, num_labels=10)).save_pretrained(tmp_path / "other")  # fmt: skip
    shutil.copy(finished / "preprocessor_config.json", tmp_path / "other")
    flags = ["--model", str(tmp_path / "other"), "--init", str(finished), "--out", str(tmp_path / "run")]
    code, _, err = short_run(capsys, *flags)
    assert code == 1 and "is of another model, a ViTForImageClassification" in err.splitlines()[-1]
    assert "Give the --model it was made from" in err.splitlines()[-1]


def test_the_qat_options_of_the_given_recipe_hold_also_from_a_checkpoint(tmp_path, finished, capsys, caplog):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: int8_linear\nqat: {weight_ranges: frozen, distill_hidden: 0.5}\n")
    flags = ["--recipe", str(recipe), "--init", str(finished), "--out", str(tmp_path / "run")]
    code, _, _ = short_run(capsys, *flags)
    assert code == 0 and "the qat options are those of recipe 'mine', not those that" in caplog.text
    qat = json.loads((tmp_path / "run" / "quantization.json").read_text())["recipe"]["qat"]
    assert (qat["weight_ranges"], qat["distill_hidden"]) == ("frozen", 0.5)
    before, after = (load_file(folder / "quantizers.safetensors") for folder in (finished, tmp_path / "run"))
    moved = {name.rpartition(".")[2] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"input_quantizer/amax"}


def test_what_contradicts_the_checkpoint_that_a_run_starts_from_is_refused(tmp_path, finished, capsys):
    flags = ["--init", str(finished), "--out", str(tmp_path / "run")]
    code, _, err = short_run(capsys, *flags, "--recipe", "int8_full")
    assert code == 1 and "was made by recipe 'int8_linear', whose rules are not those of 'int8_full'" in err
    code, _, err = short_run(capsys, *flags, "--recipe", "int8_smoothquant")
    assert code == 1 and "whose smoothquant are not those of 'int8_smoothquant'; give --recipe int8_linear" in err
    code, _, err = short_run(capsys, *flags, "--method", "mse")
    assert code == 2 and "--method is of a calibration, which --init" in err and "leave one out" in err


def test_a_method_that_would_change_no_site_is_refused(tmp_path, capsys):
    recipe = tmp_path / "own.yaml"
    recipe.write_text("extends: int8_linear\nrules:\n  - {match: '*input_quantizer', method: max}\n")
    flags = ["--model", "digits", "--task", "digits", "--recipe", str(recipe), "--out", str(tmp_path / "run")]
    code, _, err = run(capsys, *flags, "--method", "mse")
    assert code == 1 and "--method mse changes no site: the rules of recipe 'own'" in err.splitlines()[-1]


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_one_clear_line(tmp_path, finished, capsys, monkeypatch):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")

    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 3990912 vs 3990800")

    monkeypatch.setattr(torch, "save", full)
    code, _, err = short_run(capsys, "--out", str(tmp_path / "run"))
    line = err.splitlines()[-1]
    assert code == 1 and "the checkpoint of step 4 cannot be written into" in line and "MiB free" in line
    assert f"Make room; the same command goes on from {tmp_path / 'run' / 'checkpoint-2'}" in line
