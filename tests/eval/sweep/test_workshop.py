"""What a sweep asks of calibration and training."""

import json

from eval.sweep.grid import QAT, System
from eval.sweep.scripts import from_anywhere, training_words
from eval.sweep.store import ArtifactStore
from eval.sweep.workshop import Workshop
from tests.eval import tiny
from tests.eval.sweep.sweeps import sweep_options
from training.arguments import TrainParser


def test_calibration_samples_have_the_usual_columns_where_none_are_named(model_and_data, tmp_path):
    """sst2's own column is "sentence"; a file of texts for calibration need not call it so."""
    model, data = model_and_data
    file = tmp_path / "texts.jsonl"
    file.write_text("\n".join(json.dumps({"text": " ".join(tiny.WORDS[-3:])}) for _ in range(12)))
    workshop = Workshop(sweep_options(model, data, samples=str(file)), ArtifactStore(tmp_path / "artifacts"))
    assert workshop.samples.num_samples == 8


def test_training_takes_the_sweeps_samples_unless_it_starts_from_a_checkpoint():
    system = System(QAT, "int8_linear", "onnxruntime")
    for own, num_samples in (("--max_steps 3", 8), ("--init ckpt --max_steps 3", None), ("--init=ckpt", None)):
        words = training_words(sweep_options("m", "d", qat_arguments=own), system)
        assert ("--num_samples" in words) == (num_samples is not None)
        parsed = TrainParser().parse_args([*words, "--out", "o"])  # refuses --num_samples beside --init
        assert num_samples is None or parsed.num_samples == num_samples


def test_a_script_in_another_folder_gets_whole_paths_and_names_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my-bert", "sst2", "int8_linear", "ckpt"):
        (tmp_path / name).mkdir()
    (tmp_path / "mine.yaml").touch()
    words = ["--model", "my-bert", "--task", "sst2", "--recipe", "int8_linear", "--init=ckpt", "--data", "org/set",
             "--recipe", "mine.yaml", "--bf16"]  # fmt: skip
    assert from_anywhere(words) == [
        "--model", str(tmp_path / "my-bert"), "--task", "sst2", "--recipe", "int8_linear",
        f"--init={tmp_path / 'ckpt'}", "--data", "org/set", "--recipe", str(tmp_path / "mine.yaml"), "--bf16",
    ]  # fmt: skip
