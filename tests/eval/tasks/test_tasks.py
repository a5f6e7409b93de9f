import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from PIL import Image

from eval.arguments import BatchOptions
from eval.batches import check_length, iter_batches
from eval.evaluate import evaluate
from eval.pytorch_runner import PyTorchRunner
from eval.tasks import TASKS, get_task
from eval.tasks.squad import answer_scores, best_span
from tests.eval import tiny


def run(task, dataset, loaded, **options):
    return evaluate(
        task, dataset, loaded.processor, PyTorchRunner(loaded), options=BatchOptions(**options), show_progress=False
    )


def test_unknown_task_has_near_matches_and_the_list():
    with pytest.raises(ValueError, match=r"no task 'sst3'; did you mean sst2.*Allowed: digits, sst2"):
        get_task("sst3")


def test_every_task_says_what_a_sample_needs():
    for name in TASKS:
        task = get_task(name)
        assert task.name == name and task.columns and task.label_column and task.metric_names


def test_sst2_scores_what_a_loop_over_single_sentences_gives(tmp_path):
    loaded, task = tiny.bert(), get_task("sst2")
    dataset = task.load(tiny.write_sentences(tmp_path))
    one = run(task, dataset, loaded, batch_size=1, seq_length=16, padding="longest")
    many = run(task, dataset, loaded, batch_size=7, seq_length=16)
    assert np.array_equal(one.scores.predictions, many.scores.predictions) and many.scores.num_examples == 24
    inputs = loaded.processor(list(dataset["sentence"]), padding=True, return_tensors="pt")
    expected = loaded.model(**inputs).logits.argmax(-1).numpy()
    assert np.array_equal(many.scores.predictions, expected)
    assert many.scores.metrics[0].value == (expected == np.array(dataset["label"])).mean()


def test_num_samples_are_drawn_with_the_seed(tmp_path):
    task = get_task("sst2")
    dataset = task.load(tiny.write_sentences(tmp_path))
    draw = lambda seed: np.concatenate(  # noqa: E731
        [
            f["_row"]
            for f in iter_batches(task, dataset, tiny.tokenizer(), BatchOptions(4, 16, num_samples=10, seed=seed))
        ]
    )
    assert len(draw(0)) == 10 and np.array_equal(draw(0), draw(0)) and not np.array_equal(draw(0), draw(1))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_pairs_and_label_names_from_csv_and_jsonl(tmp_path, suffix):
    table = pd.DataFrame(
        {"premise": ["the film", "a plot"], "hypothesis": ["is good", "is bad"], "label": ["yes", "no"]}
    )
    if suffix == "csv":
        table.to_csv(tmp_path / "validation.csv", index=False)
    else:
        table.to_json(tmp_path / "validation.jsonl", orient="records", lines=True)
    task = get_task("text-classification").with_labels({"no": 0, "yes": 1})
    dataset = task.load(tmp_path)
    encoded = task.encode(dataset[:], tiny.tokenizer(), 16)
    assert encoded["labels"].tolist() == [1, 0] and encoded["token_type_ids"].max() == 1
    assert encoded["input_ids"].dtype == np.int64 and task.num_labels(dataset) == 2
    assert run(task, dataset, tiny.bert()).scores.num_examples == 2
    with pytest.raises(ValueError, match="yes are not among the model's"):
        task.with_labels({"no": 0, "maybe": 1}).encode(dataset[:], tiny.tokenizer(), 16)


def test_column_options_rename(tmp_path):
    pd.DataFrame({"review": ["good", "bad"], "sentence": ["x", "y"], "stars": [1, 0]}).to_csv(tmp_path / "test.csv")
    dataset = get_task("sst2").load(tmp_path, "test", columns=("review",), label_column="stars")
    assert list(dataset["sentence"]) == ["good", "bad"] and list(dataset["label"]) == [1, 0]
    with pytest.raises(ValueError, match="has no column stars2; it has"):
        get_task("sst2").load(tmp_path, "test", columns=("review",), label_column="stars2")


def test_missing_data_says_what_there_is(tmp_path):
    tiny.write_sentences(tmp_path / "data")
    with pytest.raises(ValueError, match="no split 'test'; it has validation"):
        get_task("sst2").load(tmp_path / "data", "test")
    with pytest.raises(ValueError, match="no column sentence1, sentence2; it has sentence, label"):
        get_task("stsb").load(tmp_path / "data")
    with pytest.raises(FileNotFoundError, match="did you mean data"):
        get_task("sst2").load(tmp_path / "dato")
    with pytest.raises(ValueError, match="no default data set; give --data"):
        get_task("image-classification").load()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "validation.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="cannot be read as parquet"):
        get_task("sst2").load(tmp_path / "broken")


def test_labels_outside_the_head_or_hidden_are_refused(tmp_path):
    task = get_task("sst2")
    dataset = Dataset.from_dict({"sentence": ["good", "bad"], "label": [0, 5]})
    with pytest.raises(ValueError, match="label 5 is outside the model's head of 2 labels"):
        run(task, dataset, tiny.bert())
    with pytest.raises(ValueError, match=r"labels are hidden \(-1\); choose another one with --split"):
        run(task, Dataset.from_dict({"sentence": ["good"], "label": [-1]}), tiny.bert())
    with pytest.raises(ValueError, match="sample 1 is not text but NoneType"):
        run(task, Dataset.from_dict({"sentence": ["good", None], "label": [0, 1]}), tiny.bert())


def test_text_and_images_are_not_mixed_up():
    digits = get_task("digits").load()
    with pytest.raises(ValueError, match="images and need an image processor, the model has a tokenizer"):
        run(get_task("digits"), digits, tiny.bert())
    with pytest.raises(ValueError, match="text and need a tokenizer, the model has a ViTImageProcessorPil"):
        run(get_task("sst2"), Dataset.from_dict({"sentence": ["good"], "label": [0]}), tiny.vit())
    with pytest.raises(ValueError, match="scores start_logits, end_logits; this model gives logits"):
        run(get_task("squad"), digits, tiny.bert())


def test_lengths_over_the_models_maximum_name_config_and_flag():
    config, task = tiny.bert().model.config, get_task("sst2")
    with pytest.raises(
        ValueError, match=r"--seq-length 65 is over the model's maximum of 64 \(max_position_embeddings"
    ):
        check_length(task, 65, config)
    assert check_length(task, 64, config) == 64 and check_length(get_task("digits"), None, config) is None
    assert check_length(get_task("squad"), None, config) == 64  # the task's own default gives way


def test_digits_and_image_folder_and_parquet_agree(tmp_path):
    loaded, task = tiny.vit(), get_task("digits")
    dataset = task.load(split="test")
    expected = run(task, dataset, loaded, batch_size=64, num_samples=40)
    rows = dataset.select(np.sort(np.random.default_rng(0).choice(len(dataset), 40, replace=False)))
    for i, row in enumerate(rows):
        path = tmp_path / "validation" / f"{row['label']}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(row["image"], np.uint8)).save(path)
    images = get_task("image-classification").with_labels({str(i): i for i in range(10)})  # the draw lacks one digit
    folder = images.load(tmp_path)
    got = run(images, folder, loaded, batch_size=16)
    assert got.scores.metrics[0].value == expected.scores.metrics[0].value and images.num_labels(folder) == 10
    table = {"img": [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(tmp_path.glob("*/*/*.png"))]}
    table["label"] = [int(path.parent.name) for path in sorted(tmp_path.glob("*/*/*.png"))]
    pd.DataFrame(table).to_parquet(tmp_path / "test.parquet")
    assert np.array_equal(run(images, images.load(tmp_path, "test"), loaded).scores.predictions, got.scores.predictions)


def test_broken_images_are_named():
    task, loaded = get_task("image-classification"), tiny.vit()
    with pytest.raises(ValueError, match=r"image 0 \(x.png\) cannot be read"):
        task.encode({"image": [{"bytes": b"no image", "path": "x.png"}], "label": [0]}, loaded.processor)
    with pytest.raises(ValueError, match="image 0 is a str, not an image"):
        task.encode({"image": ["text"], "label": [0]}, loaded.processor)


def test_stsb_by_head_and_by_cosine():
    rows = {"sentence1": ["good film", "bad plot", "a film"], "sentence2": ["good film", "great acting", "the film"]}
    dataset, task = Dataset.from_dict(rows | {"label": [5.0, 0.5, 4.0]}), get_task("stsb")
    by_head = run(task, dataset, tiny.bert(num_labels=1))
    assert [metric.name for metric in by_head.scores.metrics] == ["spearman", "pearson"]
    assert (
        by_head.scores.predictions is None
        and task.encode(dataset[:], tiny.tokenizer(), 16)["labels"].dtype == np.float32
    )
    encoder = tiny.bert("encoder")
    form = task.for_outputs(("last_hidden_state", "pooler_output"))
    kept = [form.reduce(f, PyTorchRunner(encoder)({n: f[n] for n in ("input_ids", "attention_mask", "token_type_ids")}))
            for f in form.iter_features(dataset, encoder.processor, 16)]  # fmt: skip
    embeddings = kept[0]["embeddings"]
    assert embeddings.shape == (6, 32) and np.allclose(embeddings[0], embeddings[1])  # two equal sentences
    assert run(task, dataset, encoder, batch_size=4).scores.num_examples == 3
    with pytest.raises(ValueError, match="regression head with one output"):
        run(task, dataset, tiny.bert(num_labels=2))


CONTEXT = "paris is the capital of france . " * 12 + "anna lives in paris"


def squad_rows():
    answers = {"text": ["anna"], "answer_start": [CONTEXT.index("anna")]}
    return Dataset.from_dict({"question": ["who lives in paris"], "context": [CONTEXT], "answers": [answers]})


def test_squad_windows_find_an_answer_beyond_the_first_one():
    task, dataset, words = get_task("squad"), squad_rows(), tiny.tokenizer()
    features = task.features(dataset[:], words, 40)
    assert len(features["_row"]) > 1 and features["input_ids"].shape[1] == 40
    # A perfect model: it points at the token whose characters are the answer's.
    start = CONTEXT.index("anna")
    is_right = (features["_offsets"] == [start, start + 4]).all(-1)
    logits = np.where(is_right, 10.0, 0.0)
    scores = task.score(dataset, task.reduce(features, {"start_logits": logits, "end_logits": logits}))
    assert scores.predictions.tolist() == ["anna"] and [m.value for m in scores.metrics] == [1, 1]
    training = task.encode(dataset[:], words, 40)
    window = int(np.flatnonzero(is_right.any(1))[0])
    assert (
        training["start_positions"][window]
        == training["end_positions"][window]
        == int(np.flatnonzero(is_right[window])[0])
    )
    assert run(task, dataset, tiny.bert("answer"), seq_length=40).scores.num_examples == 1
    with pytest.raises(ValueError, match="leaves no room for the context"):
        task.features(dataset[:], words, 7)


def test_squad_spans_and_text_scores():
    offsets = np.array([[-1, -1], [0, 3], [4, 7], [8, 9]])
    assert best_span(np.array([9, 0, 5, 0.0]), np.array([9, 6, 1, 5.0]), offsets) == (
        10.0,
        4,
        9,
    )  # an end before the start is no span
    assert best_span(np.zeros(2), np.zeros(2), np.full((2, 2), -1)) == (-np.inf, 0, 0)
    assert answer_scores("The Broncos!", ["broncos", "Denver Broncos"]) == (1.0, 1.0)
    assert answer_scores("denver team", ["Denver Broncos"]) == (pytest.approx(0.5), 0.0)


def test_perplexity_is_the_models_own_loss():
    import torch

    loaded, task = tiny.llama(), get_task("perplexity")
    dataset = Dataset.from_dict({"text": ["the film is good", "", "the plot was awful and anna lives in paris"] * 6})
    got = run(task, dataset, loaded, seq_length=8, batch_size=3)
    blocks = task.encode(dataset[:], loaded.processor, 8)
    inputs = {name: torch.from_numpy(blocks[name]) for name in ("input_ids", "attention_mask", "labels")}
    loss = loaded.model(**inputs).loss.item()
    assert got.scores.metrics[0].value == pytest.approx(np.exp(loss), rel=1e-5) and got.num_flips is None
    assert run(task, dataset, loaded, seq_length=8, num_samples=2).scores.num_examples == 2
    with pytest.raises(ValueError, match="not one block of 64"):
        run(task, Dataset.from_dict({"text": ["good"]}), loaded, seq_length=64)
