"""What a sweep asks of calibration and training."""

import json

from eval.sweep.grid import QAT, System
from eval.sweep.store import ArtifactStore
from eval.sweep.workshop import Workshop, training_words
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
