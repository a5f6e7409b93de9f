"""Named entities: words and their sub-words, tags by name, whole entities; the whole way to an engine and a sweep."""

import json
import re

import datasets
import numpy as np
import pandas as pd
import pytest
from seqeval.metrics import accuracy_score, f1_score
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from engine.manifest import sha256_of
from eval.arguments import BatchOptions
from eval.evaluate import evaluate
from eval.pytorch_runner import PyTorchRunner
from eval.subject import open_engine, open_model
from eval.sweep.run import run_sweep
from eval.tasks import get_task
from eval.tasks.ner import IGNORED
from eval.timing import latency
from quant.recipe import load_recipe
from tests.eval import tiny
from tests.eval.sweep.sweeps import sweep_options

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
LABELS = {name: i for i, name in enumerate(TAGS)}


def word_pieces() -> PreTrainedTokenizerFast:
    """Return a tokenizer that cuts every word but the known ones into letters."""
    letters = [f"{mark}{letter}" for mark in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "in", "lives", *letters])}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=64, **names)


def sentences(num_rows: int = 24) -> dict[str, list[list[str]]]:
    rng = np.random.default_rng(0)
    words = [[str(word) for word in rng.choice(tiny.WORDS, 2 + i % 7)] for i in range(num_rows)]
    return {"tokens": words, "ner_tags": [[str(tag) for tag in rng.choice(TAGS, len(row))] for row in words]}


@pytest.fixture
def data(tmp_path):
    """A folder in the form of CoNLL-2003 on the hub: tags are numbers, whose names the column's type has."""
    (tmp_path / "data").mkdir()
    rows = sentences()
    numbered = rows | {"ner_tags": [[LABELS[tag] for tag in row] for row in rows["ner_tags"]]}
    features = {"tokens": datasets.List(datasets.Value("string")),
                "ner_tags": datasets.List(datasets.ClassLabel(names=list(TAGS)))}  # fmt: skip
    table = datasets.Dataset.from_dict(numbered, features=datasets.Features(features))
    for split in ("train", "validation"):
        table.to_parquet(str(tmp_path / "data" / f"{split}.parquet"))
    return str(tmp_path / "data")


def with_tags(seed: int = 0):
    loaded = tiny.bert("words", num_labels=len(TAGS), seed=seed, num_layers=1)
    loaded.model.config.id2label, loaded.model.config.label2id = dict(enumerate(TAGS)), dict(LABELS)
    return loaded


def test_a_word_is_tagged_at_its_first_sub_word_and_nothing_else_is():
    task = get_task("ner").with_labels(LABELS)
    rows = {"tokens": [["anna", "lives", "in", "paris"], ["in"]],
            "ner_tags": [["B-PER", "O", "O", "B-LOC"], ["O"]]}  # fmt: skip
    arrays = task.encode(rows, word_pieces(), 16, "max")
    # [CLS] a ##n ##n ##a lives in p ##a ##r ##i ##s [SEP] and padding
    expected = np.full((2, 16), IGNORED)
    expected[0, [1, 5, 6, 7]] = [1, 0, 0, 3]
    expected[1, 1] = 0
    assert np.array_equal(arrays["labels"], expected)
    outputs = np.eye(len(TAGS))[np.where(expected == IGNORED, 0, expected)]
    outputs[0, 7] = outputs[0, 1]  # of five words one is wrong; what is no word counts neither way
    assert task.training_score(outputs, expected) == pytest.approx(4 / 5)
    cut = task.encode(rows, word_pieces(), 7, "max")["labels"]  # "paris" is beyond the length
    assert (cut[0] != IGNORED).sum() == 2 and np.array_equal(cut[0], [IGNORED, 1, *[IGNORED] * 3, 0, IGNORED])


def test_scores_are_seqevals_and_flips_are_words(data):
    loaded, other = with_tags(0), with_tags(1)
    task = get_task("ner").with_labels(LABELS)
    dataset = task.load(data)
    found = evaluate(task, dataset, loaded.processor, PyTorchRunner(loaded), reference=PyTorchRunner(other),
                     options=BatchOptions(5, 16), show_progress=False)  # fmt: skip
    right, said, theirs = sentences()["ner_tags"], [], []
    for words in sentences()["tokens"]:
        inputs = loaded.processor([words], is_split_into_words=True, return_tensors="pt")
        for model, kept in ((loaded.model, said), (other.model, theirs)):
            kept.append([TAGS[i] for i in model(**inputs).logits[0, 1:-1].argmax(-1).tolist()])
    entity, accuracy = found.scores.metrics
    assert (entity.name, accuracy.name) == ("entity_f1", "accuracy")
    assert entity.value == pytest.approx(f1_score(right, said)) and entity.low <= entity.value <= entity.high
    assert 0 < entity.value < 1 and accuracy.value == pytest.approx(accuracy_score(right, said))
    num_words = sum(map(len, right))
    assert found.scores.num_examples == 24 and len(found.scores.predictions) == num_words
    flips = sum(a != b for one, two in zip(said, theirs, strict=True) for a, b in zip(one, two, strict=True))
    assert found.num_flips == flips > 0 and found.mcnemar_p is None
    longest = evaluate(task, dataset, loaded.processor, PyTorchRunner(loaded),
                       options=BatchOptions(3, 16, padding="longest"), show_progress=False)  # fmt: skip
    assert np.array_equal(longest.scores.predictions, found.scores.predictions)


def test_the_models_own_names_number_the_tags(data):
    turned = {name: i for i, name in enumerate(reversed(TAGS))}
    task = get_task("ner").with_labels(turned)
    arrays = task.encode(task.load(data)[:2], tiny.tokenizer(), 16)
    words = [turned[tag] for row in sentences()["ner_tags"][:2] for tag in row]
    assert arrays["labels"][arrays["labels"] != IGNORED].tolist() == words
    unnamed = get_task("ner").with_labels({"LABEL_0": 0, "LABEL_1": 1})
    assert unnamed.label_names(unnamed.load(data)) == TAGS and unnamed.num_labels(unnamed.load(data)) == 5


def test_what_is_no_tagged_sentence_is_named(data):
    task, words = get_task("ner").with_labels(LABELS), tiny.tokenizer()
    with pytest.raises(ValueError, match="sample 0 has 2 words and 1 tags"):
        task.encode({"tokens": [["a", "film"]], "ner_tags": [["O"]]}, words, 16)
    with pytest.raises(ValueError, match="sample 0 is not a list of words but str"):
        task.encode({"tokens": ["a film"], "ner_tags": [["O"]]}, words, 16)
    with pytest.raises(ValueError, match=r"tag\(s\) B-ORG are not among the model's \(O, B-PER"):
        task.encode({"tokens": [["a"]], "ner_tags": [["B-ORG"]]}, words, 16)
    loaded = tiny.bert("words", num_labels=5, num_layers=1)
    plain = get_task("ner").with_labels(loaded.model.config.label2id)
    with pytest.raises(ValueError, match="labels LABEL_0, LABEL_1, LABEL_2 are no tags such as B-PER"):
        evaluate(plain, plain.load(data), words, PyTorchRunner(loaded), show_progress=False)


def run(main, capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    assert ended.value.code == 0, captured.err
    return captured.out


TRAINING = ("--max_steps 2 --eval_strategy steps --eval_steps 2 --save_strategy no --load_best_model_at_end false "
            "--use_cpu true --disable_tqdm true --seq_length 16 --num_samples 8")  # fmt: skip


def test_from_a_model_without_the_head_to_an_engine(data, tmp_path, capsys):
    import build_engine
    import export
    import train_qat
    from calib.__main__ import main as calib_main
    from eval.__main__ import main as eval_main

    model = tiny.save(tiny.bert(num_layers=1), tmp_path / "model")  # a classifier of sentences
    words = ["--task", "ner", "--data", data, *TRAINING.split()]
    run(train_qat.main, capsys, "--model", model, *words, "--recipe", "none", "--out", tmp_path / "float")
    config = json.loads((tmp_path / "float" / "config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"] and list(config["id2label"].values()) == list(TAGS)
    trained = run(train_qat.main, capsys, "--model", tmp_path / "float", *words, "--recipe", "int8_linear",
                  "--json", "--out", tmp_path / "qat")  # fmt: skip
    result = json.loads(trained.splitlines()[-1])
    assert result["QAT"]["metric_name"] == "entity_f1" and result["QAT"]["num_flips"] is not None
    unlabelled = tmp_path / "samples.jsonl"
    pd.DataFrame({"words": sentences()["tokens"]}).to_json(unlabelled, orient="records", lines=True)
    out = run(calib_main, capsys, "--model", tmp_path / "float", "--task", "ner", "--samples", unlabelled,
              "--recipe", "int8_linear", "--num-samples", 8, "--out", tmp_path / "ckpt")  # fmt: skip
    assert "from 8 samples" in out  # of the alias "words", and without tags
    run(export.main, capsys, "--checkpoint", tmp_path / "ckpt", "--target", "onnxruntime", "--out", tmp_path / "m.onnx")
    run(build_engine.main, capsys, "--onnx", tmp_path / "m.onnx", "--backend", "onnxruntime", "--out", tmp_path / "e")
    out = run(eval_main, capsys, "--engine", tmp_path / "e", "--task", "ner", "--data", data, "--seq-length", 16,
              "--reference", tmp_path / "float", "--iterations", 0)  # fmt: skip
    assert re.search(rf"entity_f1 .*accuracy .*\d+ of {sum(map(len, sentences()['tokens']))} predictions differ", out)


def test_a_sweep_of_it_and_eval_say_the_same_of_each_engine_and_checkpoint(data, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "PAUSE_S", 0.0)
    model = tiny.save(with_tags(), tmp_path / "model")
    options = sweep_options(model, data, task="ner", methods=("fp32", "mse", "smoothquant"), batch_sizes=(2,))
    result = run_sweep(options, tmp_path / "run", "python -m eval.sweep (test)")
    assert result.counts == {"ok": result.num_points}, [row.row.error for row in result.run.rows()]
    rows = {row.details.digests.engine: row.row for row in result.run.rows() if row.details.digests.engine}
    for path in result.run.artifacts.glob("engine-*/engine"):
        with open_engine(str(path), 1) as subject:
            row = rows.pop(sha256_of(path))
            assert (subject.precision, subject.training) == (row.precision, row.training)
            assert row.metric_name == row.scored_by.name == "entity_f1" and row.num_flips is not None
    assert not rows
    found = {(row.row.precision, row.row.recipe, row.row.calibrator) for row in result.run.rows()}
    default = load_recipe("int8_linear").calibrator.method  # smoothquant is an option of the recipe, no calibrator
    assert found == {("fp32", None, None), ("int8", "int8_linear", "mse"), ("int8", "int8_linear", default)}
    for path in result.run.artifacts.glob("checkpoint-*"):
        subject = open_model(str(path))
        assert subject.precision == "int8 (simulated)" and subject.calibrator in ("mse", default)
    assert open_model(model).precision == "fp32"
