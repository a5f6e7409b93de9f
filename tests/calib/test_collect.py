"""Collection: padding left out, one count for a shared tensor, merging, saving, and NaN named."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed as dist

from calib.collect import collect
from calib.statistics import RowSample, Statistics
from quant.insert import insert_quantizers
from quant.recipe import load_recipe
from tests.conftest import batch_for, text_batch, tiny_bert
from tests.ranks import run_ranks

QKV = "bert.encoder.layer.0.attention.self.query.input_quantizer"


def inserted(recipe="int8_attention"):
    model = tiny_bert()
    insert_quantizers(model, load_recipe(recipe))
    return model


def counts(statistics):
    return {name: site.histogram.num_values for name, site in statistics.sites.items()}


def assert_equal(a, b):
    assert set(a.sites) == set(b.sites) and a.num_samples == b.num_samples
    for name, site in a.sites.items():
        other = b.sites[name]
        assert site.histogram.top == other.histogram.top and site.histogram.amax == other.histogram.amax
        assert torch.equal(site.histogram.counts, other.histogram.counts)
        if site.channel_amax is not None:
            assert torch.equal(site.channel_amax, other.channel_amax)


@pytest.mark.parametrize("recipe", ["int8_attention", "int8_full"])
def test_every_activation_site_of_every_family_is_counted(tiny_model, recipe):
    insert_quantizers(tiny_model, load_recipe(recipe))
    statistics = collect(tiny_model, [batch_for(tiny_model)], progress=False)
    assert all(count > 0 for count in counts(statistics).values())


def test_padding_is_not_counted_at_any_kind_of_site():
    model, batch = inserted(), text_batch(batch_size=4, length=12)
    num_tokens = int(batch["attention_mask"].sum())
    seen = counts(collect(model, [batch], progress=False))
    assert seen[QKV] == num_tokens * 32  # counted once, though Q, K and V read it
    for side in "qkv":
        assert seen[f"bert.encoder.layer.1.attention.self.{side}_bmm_quantizer"] == num_tokens * 32
    assert seen["bert.encoder.layer.1.output.dense.input_quantizer"] == num_tokens * 64


def test_what_stands_in_the_padding_does_not_matter():
    batch = text_batch()
    other = {**batch, "input_ids": torch.where(batch["attention_mask"] == 1, batch["input_ids"], 42)}
    a, b = (collect(inserted(), [each], progress=False) for each in (batch, other))
    for name in a.sites:
        assert a.sites[name].histogram.amax == pytest.approx(b.sites[name].histogram.amax, rel=1e-5)


def test_two_halves_merge_to_the_whole_also_through_files(tmp_path):
    parts = [text_batch(seed=seed) for seed in range(4)]
    whole = collect(inserted(), parts, progress=False)
    halves = [collect(inserted(), parts[:2], progress=False), collect(inserted(), parts[2:], progress=False)]
    for index, half in enumerate(halves):
        half.save(tmp_path / f"{index}.safetensors")
    merged = Statistics.load(tmp_path / "0.safetensors")
    merged.merge(Statistics.load(tmp_path / "1.safetensors"))
    assert_equal(merged, whole)


def test_statistics_of_other_sites_or_files_of_other_kinds_are_refused(tmp_path):
    a = collect(inserted("int8_linear"), [text_batch()], progress=False)
    with pytest.raises(ValueError, match="statistics of different models or recipes: 6 sites are in one only"):
        a.merge(collect(inserted("int8_attention"), [text_batch()], progress=False))
    other = tiny_bert(seed=1)
    insert_quantizers(other, load_recipe("int8_linear"))
    with pytest.raises(ValueError, match="statistics of different models cannot be added: one was taken from weights"):
        a.merge(collect(other, [text_batch()], progress=False))
    a.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        tensors, header = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    header = {key: value for key, value in header.items() if key != "weights"} | {"format": "int8kit-statistics-1"}
    save_file(tensors, tmp_path / "old.safetensors", header)
    with pytest.raises(ValueError, match=r"does not say from which weights it was taken.*again: python -m calib"):
        Statistics.load(tmp_path / "old.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no statistics file"):
        Statistics.load(tmp_path / "x.safetensors")


def test_nan_activations_name_the_site():
    model = inserted()
    model.bert.encoder.layer[1].intermediate.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(
        ValueError, match=r"layer\.1\.output\.dense\.input_quantizer: NaN or infinite values in the act"
    ):
        collect(model, [text_batch()], progress=False)


def test_a_model_in_training_is_observed_as_in_evaluation_and_goes_on_training():
    model = inserted().train()
    statistics = collect(model, [text_batch()], progress=False)
    assert model.training
    assert_equal(statistics, collect(inserted(), [text_batch()], progress=False))


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="no samples to calibrate from"):
        collect(inserted(), [], progress=False)


def test_row_samples_are_bounded_uniform_and_mergeable():
    generator = torch.Generator().manual_seed(0)
    sample = RowSample(50)
    for start in range(0, 1000, 100):
        sample.add(torch.arange(start, start + 100.0)[:, None], generator)
    assert sample.rows.shape == (50, 1) and len(set(sample.rows.flatten().tolist())) == 50
    assert 350 < float(sample.rows.mean()) < 650  # the mean of 50 of 0..999 has a standard deviation of 41
    other = RowSample(50)
    other.add(torch.full((10, 1), -1.0), generator)
    sample.merge(other)
    assert len(sample.rows) == 50 and torch.equal(sample.keys, sample.keys.sort().values)


def _collect_on(rank: int, folder: str) -> None:
    dist.init_process_group("gloo")
    statistics = collect(inserted(), [text_batch(seed=seed) for seed in range(4)][rank::2], progress=False)
    statistics.save(f"{folder}/{rank}.safetensors")


def test_two_ranks_get_the_statistics_of_one(tmp_path):
    run_ranks(_collect_on, str(tmp_path))
    whole = collect(inserted(), [text_batch(seed=seed) for seed in range(4)], progress=False)
    for rank in range(2):
        assert_equal(Statistics.load(tmp_path / f"{rank}.safetensors"), whole)
