"""Every way in which a source of samples can be wrong: one line that names it and the next step."""

import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from calib.samples import load_samples
from quant.models.pretrained import LoadedModel
from tests.calib.test_samples import write_lines


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
