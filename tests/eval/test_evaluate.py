import json

import numpy as np
import pytest

from eval.arguments import BatchOptions
from eval.batches import crop_padding, iter_batches, regroup, select_feeds
from eval.evaluate import ReplayRunner, evaluate, fill_batch
from eval.pytorch_runner import PyTorchRunner
from eval.tasks import get_task
from tests.eval import tiny


@pytest.fixture
def sentences(tmp_path):
    return get_task("sst2").load(tiny.write_sentences(tmp_path))


def test_errors_and_flips_against_another_model(sentences):
    a, b, task = tiny.bert(seed=0), tiny.bert(seed=1), get_task("sst2")
    options = BatchOptions(5, 16)
    same = evaluate(
        task, sentences, a.processor, PyTorchRunner(a), reference=PyTorchRunner(a), options=options, show_progress=False
    )
    assert same.error.abs_max == 0 and same.num_flips == 0 and same.mcnemar_p == 1.0 and same.latency is None
    other = evaluate(
        task, sentences, a.processor, PyTorchRunner(a), reference=PyTorchRunner(b), options=options, iterations=3
    )
    assert other.num_flips == np.count_nonzero(other.scores.predictions != other.reference_scores.predictions) > 0
    assert other.errors["logits"] == other.error and other.error.abs_mean > 0 and other.latency.iterations == 3


def test_padding_of_per_token_outputs_is_left_out_of_the_errors():
    from datasets import Dataset

    rows = {"question": ["who wrote", "who"], "context": ["anna wrote a film", "the film"]}
    dataset = Dataset.from_dict(rows | {"answers": [{"text": ["anna"], "answer_start": [0]}] * 2})
    loaded = tiny.bert("answer")
    plain = PyTorchRunner(loaded)

    class Disturbed:
        input_names, output_names = plain.input_names, plain.output_names

        def __call__(self, feeds):
            return {n: y + 100 * (feeds["attention_mask"] == 0) for n, y in plain(feeds).items()}

    result = evaluate(
        get_task("squad"), dataset, loaded.processor, Disturbed(), reference=plain, options=BatchOptions(2, 32)
    )
    assert result.error.abs_max == 0


def test_nan_outputs_are_named(sentences):
    loaded = tiny.bert()
    loaded.model.classifier.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="output logits holds 8 NaN"):
        evaluate(get_task("sst2"), sentences, loaded.processor, PyTorchRunner(loaded), options=BatchOptions(8, 16))


def test_batches_have_one_size_and_lose_nothing():
    chunks = [{"_row": np.arange(i, i + n)} for i, n in ((0, 3), (3, 1), (4, 7), (11, 2))]
    sizes = [b["_row"].tolist() for b in regroup(chunks, 4)]
    assert [len(s) for s in sizes] == [4, 4, 4, 1] and [row for size in sizes for row in size] == list(range(13))


def test_cropping_keeps_the_outputs(sentences):
    loaded = tiny.bert()
    runner = PyTorchRunner(loaded)
    for features in iter_batches(get_task("sst2"), sentences, loaded.processor, BatchOptions(6, 40)):
        cropped = crop_padding(features)
        assert cropped["input_ids"].shape[1] == features["attention_mask"].sum(1).max() < 40
        full, short = (runner(select_feeds(f, runner.input_names))["logits"] for f in (features, cropped))
        assert np.allclose(full, short, atol=1e-5)


def test_left_padding_is_cropped_on_the_left():
    mask = np.array([[0, 0, 1, 1], [0, 1, 1, 1]])
    assert crop_padding({"attention_mask": mask, "input_ids": mask * 7})["input_ids"].tolist() == [[0, 7, 7], [7, 7, 7]]


def test_feeds_are_what_the_runner_asks_for():
    features = {"input_ids": np.ones((2, 3), int), "attention_mask": np.ones((2, 3), int), "_row": np.arange(2)}
    assert set(select_feeds(features, ["input_ids", "attention_mask"])) == {"input_ids", "attention_mask"}
    assert select_feeds(features, ["input_ids", "token_type_ids"])["token_type_ids"].sum() == 0
    with pytest.raises(
        ValueError, match=r"asks for pixel_values, the samples give input_ids, attention_mask; .*--processor"
    ):
        select_feeds(features, ["pixel_values"])
    assert fill_batch({"x": np.arange(6).reshape(3, 2)}, 4)["x"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]


def test_replayed_outputs_must_fit_the_samples(sentences):
    loaded, task = tiny.bert(), get_task("sst2")
    logits = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)
    options = BatchOptions(5, 16)
    result = evaluate(
        task, sentences, loaded.processor, ReplayRunner({"logits": logits}), options=options, show_progress=False
    )
    assert np.array_equal(result.scores.predictions, logits.argmax(1))
    for wrong, message in (
        (logits[:23], "holds 23 rows, the samples are more"),
        (np.repeat(logits, 2, 0), "48 rows, .* give 24"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(
                task, sentences, loaded.processor, ReplayRunner({"logits": wrong}), options=options, show_progress=False
            )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "--batch-size"),
        ({"seq_length": 1}, "--seq-length"),
        ({"padding": "left"}, "--padding 'left'"),
        ({"num_samples": 0}, "--num-samples"),
    ],
)
def test_impossible_batches_name_the_flag(values, message):
    with pytest.raises(ValueError, match=message):
        BatchOptions(**values)


def command(main, capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_the_command_prints_a_row_or_one_line(tmp_path, capsys):
    from eval.__main__ import main
    from eval.results import FIELD_NAMES

    model, data = tiny.save(tiny.bert(), tmp_path / "model"), tiny.write_sentences(tmp_path / "data")
    base = ["--model", model, "--task", "sst2", "--data", data, "--seq-length", 16]
    code, out, _ = command(main, capsys, *base, "--reference", model, "--iterations", 2, "--json")
    row = json.loads(out)
    assert code == 0 and set(row) == set(FIELD_NAMES) and row["status"] == "ok"
    assert (
        row["num_flips"] == 0 and row["error_abs_max"] == 0 and row["iterations"] == 2 and row["sequence_length"] == 16
    )
    assert row["metric_low"] <= row["metric"] <= row["metric_high"] and row["size_bytes"] > 0
    assert row["mcnemar_p"] == 1 and row["loss_low"] < 0 < row["loss_high"] == -row["loss_low"]  # of equal predictions
    code, out, _ = command(main, capsys, *base, "--iterations", 0)
    assert code == 0 and out.count("\n") == 1 and "accuracy" in out
    code, _, err = command(main, capsys, *base[:2], "--task", "sst3")
    assert code == 2 and "did you mean sst2" in err and err.count("\n") == 1
    code, _, err = command(main, capsys, *base[:6], "--seq-length", 65)
    assert code == 1 and "max_position_embeddings" in err and "Traceback" not in err
    code, _, err = command(main, capsys, *base, "--padding", "longest", "--batch-size", 0)
    assert code == 2 and "--batch-size must be at least 1" in err


def test_feeds_there_and_back(tmp_path, capsys):
    from eval.__main__ import main
    from eval.feeds import main as feeds_main

    loaded = tiny.bert()
    model, data = tiny.save(loaded, tmp_path / "model"), tiny.write_sentences(tmp_path / "data")
    options = ["--task", "sst2", "--data", data, "--seq-length", 16, "--batch-size", 4]
    code, out, _ = command(feeds_main, capsys, "--model", model, *options, "--out", tmp_path / "feeds.npz")
    assert code == 0 and "input_ids 24x16" in out
    code, _, err = command(feeds_main, capsys, "--model", model, *options, "--out", tmp_path / "feeds.npz")
    assert code == 1 and "--force" in err
    with np.load(tmp_path / "feeds.npz") as file:
        arrays = dict(file)
    passed = {name: arrays.pop(name) for name in list(arrays) if name.startswith("_")}
    np.savez(tmp_path / "outputs.npz", **PyTorchRunner(loaded)(arrays), **passed)
    code, out, _ = command(
        main, capsys, "--outputs", tmp_path / "outputs.npz", "--task", "sst2", "--reference", model, "--json"
    )
    row = json.loads(out)
    assert code == 0 and row["num_flips"] == 0 and row["error_abs_max"] < 1e-5 and row["latency_ms_p50"] is None
    code, _, err = command(main, capsys, "--outputs", tmp_path / "outputs.npz", "--task", "stsb", "--reference", model)
    assert code == 2 and "task is stsb, the feeds have sst2" in err
    np.savez(tmp_path / "bare.npz", logits=np.zeros((3, 2)))
    code, _, err = command(main, capsys, "--outputs", tmp_path / "bare.npz", "--task", "sst2", "--reference", model)
    assert code == 1 and "does not say which samples" in err
