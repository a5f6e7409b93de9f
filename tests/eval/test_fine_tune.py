"""What train_qat.py refuses before the first step, and that it keeps what it promises after the last."""

import io
import json

import numpy as np
import pandas as pd

import train_qat
from quant.checkpoint import load_checkpoint

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


def test_stdout_is_the_result_alone_and_the_folder_is_a_checkpoint(tmp_path, capsys):
    flags = ["--model", "digits", "--task", "digits", "--recipe", "int8_full", "--json", "--out", str(tmp_path / "run")]
    code, out, err = run(capsys, *flags, "--logging_steps", "1")
    row = json.loads(out)
    assert code == 0 and row["steps"] == 2 and {"PTQ", "QAT", "float"} <= set(row) and "step 1: loss" in err
    assert load_checkpoint(tmp_path / "run").model.quantization.recipe.name == "int8_full"
