"""Samples: a seeded draw that fits the model, whatever holds it, and every way in which a source can be wrong."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from calib.samples import load_samples
from quant.models.digits import DigitsSettings, digits_config, digits_processor
from quant.models.pretrained import LoadedModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film"]
SENTENCES = [" ".join(["good"] * (1 + i % 5) + ["film"]) for i in range(40)]


@pytest.fixture(scope="module")
def text_model(tmp_path_factory) -> LoadedModel:
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    vocabulary = tmp_path_factory.mktemp("words") / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS))
    model = BertForSequenceClassification(config).eval()
    return LoadedModel(model, BertTokenizerFast(str(vocabulary)), "tiny-bert")


@pytest.fixture(scope="module")
def image_model() -> LoadedModel:
    from transformers import ViTForImageClassification

    settings = DigitsSettings(num_layers=1, hidden_size=8, num_heads=1)
    return LoadedModel(ViTForImageClassification(digits_config(settings)).eval(), digits_processor(), "tiny-vit")


def write_lines(path: Path, lines: list[str] = SENTENCES) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def all_ids(samples) -> list[list[int]]:
    """Return every sample's ids without padding, sorted."""
    rows = []
    for batch in samples:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            rows.append(ids[mask.bool()].tolist())
    return sorted(rows)


# --- what fits


def test_every_text_format_gives_the_same_samples(tmp_path: Path, text_model: LoadedModel) -> None:
    write_lines(tmp_path / "a.txt")
    frame = pd.DataFrame({"idx": range(len(SENTENCES)), "sentence": SENTENCES, "label": 0})
    frame.to_parquet(tmp_path / "a.parquet")
    frame.to_csv(tmp_path / "a.csv", index=False, quoting=csv.QUOTE_ALL)
    frame.to_json(tmp_path / "a.jsonl", orient="records", lines=True)
    loads = [load_samples(tmp_path / f"a.{s}", text_model, num_samples=16) for s in ("txt", "parquet", "csv", "jsonl")]
    assert len({samples.digest for samples in loads}) == 1
    assert all(all_ids(samples) == all_ids(loads[0]) for samples in loads)
    assert loads[0].num_samples == 16
    with torch.inference_mode():
        assert sum(len(text_model.model(**batch).logits) for batch in loads[0]) == 16


def test_draw_is_seeded_and_recorded(tmp_path: Path, text_model: LoadedModel) -> None:
    path = write_lines(tmp_path / "a.txt", [f"good {'bad ' * i}" for i in range(1, 30)])
    first, second, other = (load_samples(path, text_model, num_samples=8, seed=s, max_length=16) for s in (0, 0, 1))
    assert first.digest == second.digest != other.digest
    assert all_ids(first) == all_ids(second) != all_ids(other)
    assert len(first.digest) == 64 and first.source == str(path)


def test_batches_are_padded_to_their_own_longest(tmp_path: Path, text_model: LoadedModel) -> None:
    samples = load_samples(write_lines(tmp_path / "a.txt"), text_model, num_samples=None, batch_size=8)
    widths = [batch["input_ids"].shape[1] for batch in samples]
    assert len(samples) == len(widths) == 5
    assert widths == sorted(widths) and widths[0] < widths[-1]
    assert all(batch["attention_mask"].any(dim=0).all() for batch in samples)
    assert sum(len(batch["input_ids"]) for batch in samples) == len(SENTENCES)


def test_pairs_are_found_by_name_or_by_columns(tmp_path: Path, text_model: LoadedModel) -> None:
    frame = pd.DataFrame({"question": ["good"] * 4, "context": ["bad film"] * 4, "id": ["x"] * 4})
    frame.to_parquet(tmp_path / "a.parquet")
    ids = all_ids(load_samples(tmp_path, text_model, num_samples=4))
    assert ids[0] == [2, 6, 3, 7, 8, 3]
    ids = all_ids(load_samples(tmp_path, text_model, num_samples=4, columns=["context"]))
    assert ids[0] == [2, 7, 8, 3]


def test_train_split_alone_calibrates(tmp_path: Path, text_model: LoadedModel) -> None:
    for split, word in (("train", "good"), ("validation", "bad")):
        pd.DataFrame({"sentence": [word] * 5}).to_parquet(tmp_path / f"{split}.parquet")
    samples = load_samples(tmp_path, text_model, num_samples=None)
    assert all_ids(samples) == [[2, 6, 3]] * 5


def test_raw_ids_mask_their_padding(tmp_path: Path, text_model: LoadedModel) -> None:
    ids = np.array([[2, 6, 3, 0], [2, 6, 8, 3]])
    np.save(tmp_path / "a.npy", ids)
    (batch,) = load_samples(tmp_path / "a.npy", text_model, num_samples=2)
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    mask = np.ones_like(ids)
    np.savez(tmp_path / "a.npz", input_ids=ids, attention_mask=mask)
    (batch,) = load_samples(tmp_path / "a.npz", text_model, num_samples=2)
    assert batch["attention_mask"].tolist() == mask.tolist()
    assert batch["input_ids"].dtype == torch.int64


def test_npy_stays_on_the_disk(tmp_path: Path, image_model: LoadedModel) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32))
    samples = load_samples(tmp_path / "a.npy", image_model, num_samples=8)
    assert isinstance(samples._readers[0].arrays["pixel_values"], np.memmap)
    (batch,) = samples
    assert batch["pixel_values"].shape == (8, 1, 8, 8) and batch["pixel_values"].dtype == torch.float32


def test_image_folder_goes_through_the_processor(tmp_path: Path, image_model: LoadedModel, caplog) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (20, 12), (16, 16, 16)).save(tmp_path / label / "a.png")
    write_lines(tmp_path / "labels.csv", ["a,b", "1,2"])
    (batch,) = load_samples(tmp_path, image_model, num_samples=2)
    assert batch["pixel_values"].shape == (2, 1, 8, 8)
    assert batch["pixel_values"].max() == 1
    assert "1 .csv (labels.csv) skipped: no image samples" in caplog.text


def test_images_in_a_parquet_column(tmp_path: Path, image_model: LoadedModel) -> None:
    Image.new("L", (8, 8), 16).save(tmp_path / "a.png")
    cell = {"bytes": (tmp_path / "a.png").read_bytes(), "path": None}
    pd.DataFrame({"img": [cell] * 3, "label": [0] * 3}).to_parquet(tmp_path / "b.parquet")
    (batch,) = load_samples(tmp_path / "b.parquet", image_model, num_samples=3)
    assert batch["pixel_values"].shape == (3, 1, 8, 8)


def test_digits(image_model: LoadedModel) -> None:
    samples = load_samples("digits", image_model, num_samples=40)
    assert [len(batch["pixel_values"]) for batch in samples] == [32, 8]


def test_data_set_id_and_configuration(monkeypatch, text_model: LoadedModel) -> None:
    asked = {}

    def load_dataset(name, config, split):
        asked.update(name=name, config=config, split=split)
        return datasets.Dataset.from_dict({"text": SENTENCES, "label": [0] * len(SENTENCES)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_samples("owner/name:part", text_model, num_samples=4).num_samples == 4
    assert asked == {"name": "owner/name", "config": "part", "split": "train"}


# --- what is said


def test_cut_text_is_counted_in_the_log(tmp_path: Path, text_model: LoadedModel, caplog) -> None:
    path = write_lines(tmp_path / "a.txt", ["good " * 40, "bad", "film"])
    samples = load_samples(path, text_model, num_samples=3)
    assert max(batch["input_ids"].shape[1] for batch in samples) == 16
    assert "1 of 3 samples are longer than 16 tokens and are cut there" in caplog.text


def test_fewer_samples_than_asked_for_is_a_warning(tmp_path: Path, text_model: LoadedModel, caplog) -> None:
    samples = load_samples(write_lines(tmp_path / "a.txt", ["good", "bad"]), text_model, num_samples=5)
    assert samples.num_samples == 2
    assert "5 samples asked for, 2 are there: all are used" in caplog.text


def test_skip_bad_draws_others_in_their_place(tmp_path: Path, image_model: LoadedModel, caplog) -> None:
    for i in range(4):
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "0.png").read_bytes()[:40])
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"1 of 6 files cannot be used: empty.png \(empty file\).*--skip-bad"):
        load_samples(tmp_path, image_model, num_samples=4)
    (tmp_path / "empty.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 5 samples cannot be used: broken.png \(.*\); mend or remove"):
        load_samples(tmp_path, image_model, num_samples=5)
    assert load_samples(tmp_path, image_model, num_samples=4, skip_bad=True).num_samples == 4
    assert load_samples(tmp_path, image_model, num_samples=5, skip_bad=True).num_samples == 4
    assert "skipped: broken.png" in caplog.text


# --- what is refused


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "empty file"),
        ("a.txt", b"\n \n", "no line with text"),
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.jsonl", b'{"text": "good"\n', "unreadable jsonl"),
        ("a.parquet", b"PAR?", "unreadable parquet"),
        ("a.csv", b"text,label\n", "no rows"),
        ("a.npy", b"no array", "unreadable array"),
        ("a.npz", b"no archive", "unreadable array"),
        ("a.csv", b"first,second\ngood,bad\n", "which column is the text.*first, second.*--column"),
    ],
)
def test_unusable_file_is_named_with_its_reason(tmp_path, text_model, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"1 of 1 files cannot be used: {name} \({message}"):
        load_samples(tmp_path, text_model)


def test_nothing_usable_even_when_skipping(tmp_path: Path, text_model: LoadedModel) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"holds no usable samples: a.txt"):
        load_samples(tmp_path, text_model, skip_bad=True)


def test_empty_folder(tmp_path: Path, text_model: LoadedModel) -> None:
    with pytest.raises(ValueError, match="holds no samples; --samples takes"):
        load_samples(tmp_path, text_model)


def test_missing_source_names_near_ones(tmp_path: Path, text_model: LoadedModel) -> None:
    write_lines(tmp_path / "train.txt")
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*trian.txt \(did you mean train.txt\?\)"):
        load_samples(tmp_path / "trian.txt", text_model)


def test_data_set_that_the_hub_does_not_give(monkeypatch, text_model: LoadedModel) -> None:
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match="the hub did not give it: no route"):
        load_samples("imdb", text_model)


def test_text_model_given_images_and_the_reverse(tmp_path: Path, text_model, image_model) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"holds 1 .png \(a.png\), but tiny-bert reads input_ids; give text or .npy"):
        load_samples(tmp_path, text_model)
    with pytest.raises(ValueError, match="digits are images, but tiny-bert reads input_ids"):
        load_samples("digits", text_model)
    text = write_lines(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"but tiny-vit reads pixel_values; give images or .npy"):
        load_samples(text, image_model)


def test_text_and_raw_inputs_in_one_folder(tmp_path: Path, text_model: LoadedModel) -> None:
    write_lines(tmp_path / "a.txt")
    np.save(tmp_path / "b.npy", np.full((2, 3), 5))
    with pytest.raises(ValueError, match="holds both raw and text samples"):
        load_samples(tmp_path, text_model)


def test_unknown_column_names_near_ones(tmp_path: Path, text_model: LoadedModel) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"sentence": "good", "label": 1}) + "\n")
    with pytest.raises(ValueError, match=r"no column 'sentense' \(did you mean sentence\?\); it has sentence, label"):
        load_samples(path, text_model, columns=["sentense"])


def test_row_without_text(tmp_path: Path, text_model: LoadedModel) -> None:
    pd.DataFrame({"text": ["good", None, "bad"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"1 of 3 samples cannot be used: a.parquet \(row 1 has no text in text\)"):
        load_samples(tmp_path, text_model)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.full((2, 17), 5), "17 tokens are over the maximum of tiny-bert, 16; cut them"),
        (np.full((2, 4), 9), "ids go from 9 to 9; the vocabulary has 0 to 8"),
        (np.full((2, 4), 0.5), "input_ids must be integers"),
        (np.full(4, 5), "samples on its first axis"),
    ],
)
def test_raw_ids_that_do_not_fit(tmp_path: Path, text_model: LoadedModel, ids: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", ids)
    with pytest.raises(ValueError, match=message):
        load_samples(tmp_path / "a.npy", text_model)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((1, 1, 8, 8), np.nan, dtype=np.float32), "row 0 of pixel_values holds NaN or infinite"),
        (np.zeros((1, 3, 8, 8), dtype=np.float32), r"pixel_values must be \(samples, 1, height, width\)"),
    ],
)
def test_raw_pixels_that_do_not_fit(tmp_path: Path, image_model, pixels: np.ndarray, message: str) -> None:
    np.save(tmp_path / "a.npy", pixels)
    with pytest.raises(ValueError, match=message):
        load_samples(tmp_path / "a.npy", image_model)


def test_npz_with_other_names(tmp_path: Path, text_model: LoadedModel) -> None:
    np.savez(tmp_path / "a.npz", ids=np.full((2, 3), 5))
    with pytest.raises(ValueError, match="no array 'input_ids'; it has ids"):
        load_samples(tmp_path / "a.npz", text_model)
    np.savez(tmp_path / "a.npz", input_ids=np.full((2, 3), 5), mask=np.ones((2, 3)))
    with pytest.raises(ValueError, match="tiny-bert has no input mask"):
        load_samples(tmp_path / "a.npz", text_model)


def test_text_for_a_model_without_tokenizer(tmp_path: Path, text_model: LoadedModel) -> None:
    bare = LoadedModel(text_model.model, None, "bare")
    with pytest.raises(ValueError, match="bare has no tokenizer or processor, so text does not fit it"):
        load_samples(write_lines(tmp_path / "a.txt"), bare)


def test_limits(tmp_path: Path, text_model: LoadedModel) -> None:
    path = write_lines(tmp_path / "a.txt")
    with pytest.raises(ValueError, match="max_length 17 is over the maximum of tiny-bert, 16 tokens"):
        load_samples(path, text_model, max_length=17)
    with pytest.raises(ValueError, match="start at 1; got 0 and 32"):
        load_samples(path, text_model, num_samples=0)
