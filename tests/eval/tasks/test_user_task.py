"""A task of the user's own: the documented file through every command, and each way to get it wrong."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eval.__main__ import main as eval_main
from eval.feeds import main as feeds_main
from eval.pytorch_runner import PyTorchRunner
from eval.report.__main__ import write_report
from eval.report.run_data import read_run
from eval.results import parse_row
from eval.sweep.grid import SweepOptions
from eval.sweep.run import run_sweep
from eval.tasks import get_task, task_path
from eval.timing import latency
from tests.eval import tiny
from tests.eval.sweep.sweeps import sweep_options

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "own_task.md"


@pytest.fixture
def stars(tmp_path):
    """The file that the documentation shows, a tiny model with five labels, and reviews."""
    (code,) = re.findall(r'```python title="my_task.py"\n(.*?)```', GUIDE.read_text(), re.S)
    assert len([line for line in code.splitlines() if line]) <= 30, "the example grew"
    file = tmp_path / "my_task.py"
    file.write_text(code)
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        reviews = [" ".join(rng.choice(tiny.WORDS, 5)) for _ in range(24)]
        table = pd.DataFrame({"review": reviews, "stars": rng.integers(1, 6, 24)})
        table.to_parquet(tmp_path / "data" / f"{split}.parquet")
    return str(file), tiny.save(tiny.bert(num_labels=5, num_layers=1), tmp_path / "model"), str(tmp_path / "data")


def run(main, capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_the_documented_file_is_scored_and_its_row_carries_the_metric(stars, capsys):
    file, model, data = stars
    words = ["--model", model, "--task", file, "--data", data, "--reference", model, "--seq-length", 16, "--json"]
    code, out, err = run(eval_main, capsys, *words, "--iterations", 0)
    assert code == 0, err
    row = parse_row(json.loads(out), "here")
    loaded = tiny.bert(num_labels=5, num_layers=1)
    table = pd.read_parquet(f"{data}/validation.parquet")
    inputs = loaded.processor(list(table["review"]), padding=True, return_tensors="pt")
    off = np.abs(loaded.model(**inputs).logits.argmax(-1).numpy() + 1 - table["stars"])
    assert row.task == "stars" and row.metric == pytest.approx(off.mean()) and row.metric > 1 and row.num_flips == 0
    assert (row.scored_by.high, row.scored_by.is_higher_better, row.scored_by.is_percent) == (4, False, False)


def test_feeds_and_outputs_are_of_one_file(stars, capsys, tmp_path):
    file, model, data = stars
    words = ["--task", file, "--data", data, "--seq-length", 16, "--batch-size", 4]
    code, _, err = run(feeds_main, capsys, "--model", model, *words, "--out", tmp_path / "feeds.npz")
    assert code == 0, err
    with np.load(tmp_path / "feeds.npz") as archive:
        arrays = dict(archive)
    passed = {name: arrays.pop(name) for name in list(arrays) if name.startswith("_")}
    outputs = tmp_path / "outputs.npz"
    np.savez(outputs, **PyTorchRunner(tiny.bert(num_labels=5, num_layers=1))(arrays), **passed)
    code, out, _ = run(eval_main, capsys, "--outputs", outputs, "--task", file, "--reference", model, "--json")
    assert code == 0 and json.loads(out)["task"] == "stars"
    Path(file).write_text(Path(file).read_text() + "\n# another rule\n")
    code, _, err = run(eval_main, capsys, "--outputs", outputs, "--task", file, "--reference", model)
    assert code == 2 and "task_digest is" in err


def test_calibration_and_training_take_it(stars, capsys, tmp_path, monkeypatch):
    import train_qat
    from calib.__main__ import main as calib_main

    file, model, data = stars
    words = ["--model", model, "--task", file, "--samples", data, "--recipe", "int8_linear", "--num-samples", 8]
    code, out, err = run(calib_main, capsys, *words, "--out", tmp_path / "ckpt")
    assert code == 0 and "from 8 samples" in out, err
    monkeypatch.chdir(tmp_path)  # a path relative to here, and the same file by its whole path, are one run
    flags = ["--model", model, "--data", data, "--recipe", "int8_linear", "--seq_length", "16", "--max_steps", "2",
             "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false", "--use_cpu", "true",
             "--num_samples", "8", "--out", "o", "--json"]  # fmt: skip
    code, out, err = run(train_qat.main, capsys, "--task", "my_task.py", *flags)
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and result["task"] == "stars" and result["QAT"]["metric_name"] == "stars_off", err
    description = json.loads((tmp_path / "o" / "run.json").read_text())
    assert description["task"] == file and description["task_digest"] == get_task(file).file_digest
    Path(file).write_text(Path(file).read_text() + "\n# another rule\n")
    code, _, err = run(train_qat.main, capsys, "--task", file, *flags)
    assert code == 1 and "holds another run" in err


def test_a_sweep_trains_scores_and_reports_it_and_is_bound_to_the_file(stars, tmp_path, monkeypatch):
    file, model, data = stars
    monkeypatch.setattr(latency, "PAUSE_S", 0.0)
    training = "--max_steps 1 --eval_strategy no --save_strategy no --load_best_model_at_end false --use_cpu true"
    options: SweepOptions = sweep_options(
        model, data, task=task_path(file), methods=("fp32", "qat"), batch_sizes=(2,), qat_arguments=training
    )
    result = run_sweep(options, tmp_path / "run", "python -m eval.sweep (test)")
    assert result.counts == {"ok": result.num_points}, [row.row.error for row in result.run.rows()]
    assert result.run.manifest()["identity"]["task_digest"] == get_task(file).file_digest
    found = read_run(tmp_path / "run")
    assert found.task == "stars" and found.metric.name == "stars_off" and not found.metric.is_higher_better
    write_report(tmp_path / "run", "plain", "en", 0.05)
    report = (tmp_path / "run" / "report.md").read_text()
    assert "stars_off" in report and "my_task" not in report.splitlines()[0]
    Path(file).write_text(Path(file).read_text() + "\n# another rule\n")
    with pytest.raises(FileExistsError, match="task_digest is"):
        run_sweep(options, tmp_path / "run", "python -m eval.sweep (test)")


HEAD = "from eval.tasks.base import Task\nfrom eval.tasks.parts.outcome import Scores\nimport numpy as np\n"
NAMES = "columns=('sentence',), label_column='label', head='sequence-classification', problem_type='', metric_names=()"
WRONG = {
    "no task": ("A = 1\n", r"defines no task; it needs one instance"),
    "a class": (HEAD + "class T(Task): pass\nTASK = T\n", r"defines no task; its TASK is a type"),
    "two": (
        "from eval.tasks.sst2 import SST2\nimport dataclasses\nMINE = dataclasses.replace(SST2, name='mine')\n",
        r"defines 2 tasks \(SST2, MINE\); keep one, or name the one that counts TASK",
    ),
    "an exception": ("import numpy\n1 / 0\n", r"its import raised ZeroDivisionError: division by zero"),
    "a syntax error": ("def (:\n", r"its import raised SyntaxError: invalid syntax"),
    "an exit": ("import sys\nsys.exit('bye')\n", r"its import raised SystemExit: bye"),
    "no methods": (HEAD + f"TASK = Task(name='t', {NAMES})\n", r"its Task does not define encode, reduce, score"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_defines_no_task_is_one_line(name, tmp_path, capsys):
    text, message = WRONG[name]
    (tmp_path / "my_task.py").write_text(text)
    code, _, err = run(eval_main, capsys, "--model", "digits", "--task", tmp_path / "my_task.py")
    assert code == 2 and re.search(message, err) and err.count("\n") == 1 and "my_task.py" in err


def test_of_several_tasks_the_one_named_task_counts(tmp_path):
    text = "from eval.tasks.sst2 import SST2\nimport dataclasses\nTASK = dataclasses.replace(SST2, name='mine')\n"
    (tmp_path / "my_task.py").write_text(text)
    assert get_task(str(tmp_path / "my_task.py")).name == "mine"


def test_a_missing_file_names_near_ones(tmp_path, capsys):
    (tmp_path / "my_task.py").write_text("")
    code, _, err = run(eval_main, capsys, "--model", "digits", "--task", tmp_path / "my_tasks.py")
    assert code == 1 and "no such file; did you mean my_task.py?" in err and err.count("\n") == 1


BODY = """
class T(TextClassification):
    def {method}(self, {arguments}):
        {body}
TASK = T(name="t", {names})
"""
BAD_RETURNS = {
    "score": ("dataset, kept", "return 0.5", r"task t: score\(\) returned a float, not eval.tasks.parts"),
    "reduce": ("features, outputs", "return [1]", r"task t: reduce\(\) returned a list, not a dict of numpy arrays"),
    "encode": ("rows, processor, max_length=None, padding='max'", "return {'input_ids': [[1]]}",
               r"task t: features\(\) returned a dict in which 'input_ids' is a list, not a dict of numpy arrays"),
    "features": ("rows, processor, max_length=None", "return {'input_ids': np.ones((2, 3))}", r"returned no '_row'"),
}  # fmt: skip
RAISES = {"score": "dataset, kept", "reduce": "features, outputs", "encode": "rows, processor, max_length, padding=''"}


def scored(tmp_path, capsys, method, arguments, body):
    text = HEAD + "from eval.tasks.text_classification import TextClassification\n"
    text += BODY.format(method=method, arguments=arguments, body=body, names=NAMES)
    (tmp_path / "my_task.py").write_text(text)
    model, data = tiny.save(tiny.bert(num_layers=1), tmp_path / "model"), tiny.write_sentences(tmp_path / "data")
    words = ["--model", model, "--task", tmp_path / "my_task.py", "--data", data, "--seq-length", 16]
    return run(eval_main, capsys, *words, "--iterations", 0, "--json")


@pytest.mark.parametrize("method", BAD_RETURNS)
def test_a_wrong_return_type_names_task_and_method(method, tmp_path, capsys):
    arguments, body, message = BAD_RETURNS[method]
    code, _, err = scored(tmp_path, capsys, method, arguments, body)
    assert code == 1 and re.search(message, err) and "Traceback" not in err


@pytest.mark.parametrize("method", RAISES)
def test_what_a_method_raises_is_one_line_that_names_it(method, tmp_path, capsys):
    code, _, err = scored(tmp_path, capsys, method, RAISES[method], "return {}['here']")
    shown = "features" if method == "encode" else method
    assert code == 1 and f"task t: {shown}() raised KeyError: 'here'" in err and "Traceback" not in err


def test_a_value_outside_the_metrics_range_is_refused_not_cut_off(stars, capsys):
    file, model, data = stars
    Path(file).write_text(Path(file).read_text().replace("high=4", "high=1"))
    words = ["--model", model, "--task", file, "--data", data, "--seq-length", 16, "--iterations", 0]
    code, _, err = run(eval_main, capsys, *words)
    assert code == 1 and re.search(r"metric stars_off is 1\.\d+, outside its range \[0, 1\]", err)
