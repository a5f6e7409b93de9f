"""Samples: a seeded draw that fits the model, whatever holds it, and every way in which a source can be wrong."""

import csv
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from calib.samples import load_samples
from quant.models.pretrained import LoadedModel

SENTENCES = [" ".join(["good"] * (1 + i % 5) + ["film"]) for i in range(40)]


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
    pd.DataFrame({"sentence": ["bad"] * 5}).to_parquet(tmp_path / "validation_mismatched.parquet")
    samples = load_samples(tmp_path, text_model, num_samples=None)
    assert all_ids(samples) == [[2, 6, 3]] * 5


@pytest.mark.parametrize("scored", ["validation", "val", "test"])
def test_a_folder_of_scored_images_or_a_scored_text_does_not_calibrate(tmp_path, image_model, text_model, scored):
    for split, value in (("train", 255), (scored, 0)):
        (tmp_path / "images" / split / "cats").mkdir(parents=True)
        Image.new("L", (8, 8), value).save(tmp_path / "images" / split / "cats" / "test.png")
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{split}.txt").write_text("good\n" if split == "train" else "bad\n")
    samples = load_samples(tmp_path / "images", image_model, num_samples=None)
    assert samples.num_samples == 1 and load_samples(tmp_path / "texts", text_model, num_samples=None).num_samples == 1
    (batch,) = samples
    assert float(batch["pixel_values"].max()) > 0


def test_a_draw_behind_another_shares_none_of_its_samples_while_there_are_others(tmp_path, text_model):
    (tmp_path / "a.txt").write_text("\n".join(["good", "bad", "film"] * 4) + "\n")
    first = load_samples(tmp_path, text_model, num_samples=8, seed=3)
    behind = load_samples(tmp_path, text_model, num_samples=4, seed=3, after=8)
    assert behind.num_shared_with(first) == 0 and behind.num_samples == 4
    more = load_samples(tmp_path, text_model, num_samples=6, seed=3, after=8)
    assert more.num_shared_with(first) == 2  # twelve there are


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
