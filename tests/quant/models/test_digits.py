"""The offline data and model: fixed stratified splits, training that repeats, a folder that is written whole."""

from pathlib import Path

import numpy as np
import pytest
import torch

from quant.models.digits import DigitsSettings, digits_folder, digits_processor, digits_split, distort
from quant.models.pretrained import load_float_model

QUICK = DigitsSettings(epochs=1, num_layers=1, hidden_size=32, num_heads=1)


def test_splits_are_fixed_disjoint_and_stratified() -> None:
    splits = {name: digits_split(name) for name in ("train", "validation", "test")}
    assert [len(labels) for _, labels in splits.values()] == [1257, 180, 360]
    for images, labels in splits.values():
        assert images.shape == (len(labels), 8, 8)
        assert images.dtype == np.uint8 and images.max() == 16
        share = np.bincount(labels, minlength=10) / len(labels)
        assert share.min() > 0.09 and share.max() < 0.11
    again, _ = digits_split("test")
    assert np.array_equal(again, splits["test"][0])
    train = {image.tobytes() for image in splits["train"][0]}
    assert not train & {image.tobytes() for image in splits["test"][0]}


def test_unknown_split() -> None:
    with pytest.raises(ValueError, match="no split 'dev'; it has train, validation, test"):
        digits_split("dev")


def test_processor_brings_pixels_to_minus_one_to_one() -> None:
    image = np.full((8, 8, 1), 16, dtype=np.uint8)
    image[0, 0] = 0
    pixels = digits_processor()([image], return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    assert pixels.shape == (1, 1, 8, 8)
    assert pixels[0, 0, 0, 0] == -1 and pixels[0, 0, 1, 1] == 1


def test_distortion_of_nothing_is_the_image() -> None:
    still = DigitsSettings(rotation=0, scaling=0, shift=0)
    pixels = torch.rand(3, 1, 8, 8) * 2 - 1
    torch.testing.assert_close(distort(pixels, still), pixels, atol=1e-5, rtol=0)


def test_training_repeats_leaves_the_random_state_and_is_cached(tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    folder = digits_folder(QUICK, cache=tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert folder.name == f"digits-{QUICK.digest}"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    again = digits_folder(QUICK, cache=tmp_path / "b")
    first, second = load_float_model(folder).model, load_float_model(again).model
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    monkeypatch.setattr("quant.models.digits.train_digits", None)  # a second call that trained would fail
    assert digits_folder(QUICK, cache=tmp_path / "a") == folder


def test_interrupted_training_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def interrupt(settings: DigitsSettings) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quant.models.digits.train_digits", interrupt)
    with pytest.raises(KeyboardInterrupt):
        digits_folder(QUICK, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_settings_name_the_folder() -> None:
    assert QUICK.digest == DigitsSettings(epochs=1, num_layers=1, hidden_size=32, num_heads=1).digest
    assert QUICK.digest != DigitsSettings().digest
