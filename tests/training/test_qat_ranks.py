"""QAT on several ranks: equal scales, FSDP, and a bad loss on one of them."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from quant.checkpoint import load_checkpoint, save_checkpoint
from quant.recipe import QatOptions
from tests.conftest import text_batch, tiny_bert
from tests.ranks import run_ranks
from tests.training.test_qat import EMBEDDED, calibrated, trainer_of
from training.qat import finish_qat, start_qat


def _train_on(rank: int, folder: str) -> None:
    trainer = trainer_of(calibrated(), f"{folder}/run", teacher=tiny_bert())
    trainer.train()
    torch.save(dict(trainer.model.state_dict()), f"{folder}/{rank}.pt")


def test_two_ranks_keep_equal_scales(tmp_path):
    run_ranks(_train_on, str(tmp_path))
    a, b = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    moved = calibrated().bert.encoder.layer[0].intermediate.dense.weight_quantizer.amax
    name = "bert.encoder.layer.0.intermediate.dense.weight_quantizer.log2_amax"
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(torch.exp2(a[name]), moved)


def _steps(model, count=3):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = {**text_batch(padded=False), "labels": torch.tensor([0, 1, 2, 0])}
    for _ in range(count):
        model(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


def _shard_on(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    model = calibrated("int8_full")
    start_qat(model, QatOptions())
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    _steps(model)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        torch.save(whole, f"{folder}/sharded.pt")


def test_fsdp_takes_learned_ranges(tmp_path):
    run_ranks(_shard_on, str(tmp_path))
    alone = calibrated("int8_full")
    start_qat(alone, QatOptions())
    _steps(alone)
    sharded = torch.load(tmp_path / "sharded.pt", weights_only=True)
    expected = alone.state_dict()
    assert set(sharded) == set(expected) and any(key.endswith("log2_amax") for key in sharded)
    for key, value in expected.items():
        torch.testing.assert_close(sharded[key], value, rtol=1e-4, atol=1e-5)


def with_embeddings(tmp_path, **options):
    """Return a calibrated model whose tables are quantized too."""
    path = tmp_path / "embedded.yaml"
    path.write_text(yaml.safe_dump(EMBEDDED))
    return calibrated(path, **options)


def test_a_retaken_range_of_an_embedding_is_that_of_its_whole_table(tmp_path):
    model = with_embeddings(tmp_path, weight_ranges="retaken", activation_ranges="frozen")
    start_qat(model, model.quantization.recipe.qat)
    table = model.bert.embeddings.word_embeddings
    table.weight.data[0, 0] = 7.0  # a row that the batch does not look up
    with torch.no_grad():
        trained = model.eval()(**text_batch(padded=False)).logits
        save_checkpoint(model, tmp_path / "c")
        assert torch.equal(load_checkpoint(tmp_path / "c").model(**text_batch(padded=False)).logits, trained)
        finish_qat(model)
        assert torch.equal(table.weight_quantizer.amax, table.weight.abs().amax(0))
        assert torch.equal(model(**text_batch(padded=False)).logits, trained)


def _save_shards_on(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo")
    model = with_embeddings(Path(folder) / str(rank), weight_ranges="retaken")
    start_qat(model, model.quantization.recipe.qat)
    for layer in model.bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    _steps(model)
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        save_checkpoint(model, f"{folder}/c", state_dict=whole)


def test_fsdp_saves_retaken_ranges_of_whole_weights(tmp_path):
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    run_ranks(_save_shards_on, str(tmp_path))
    saved = load_checkpoint(tmp_path / "c").model
    layers = [module for module in saved.modules() if hasattr(module, "weight_quantizer")]
    assert any(isinstance(layer, torch.nn.Embedding) for layer in layers)
    for layer in layers:
        if layer.weight_quantizer.enabled:
            dim = 0 if isinstance(layer, torch.nn.Embedding) else 1
            assert torch.equal(layer.weight_quantizer.amax, layer.weight.abs().amax(dim))


def _stop_on(rank: int, folder: str) -> None:
    model = calibrated(distill_logits=0.0)
    config = {"fsdp_version": 2, "transformer_layer_cls_to_wrap": ["BertLayer"]}
    sharding = {"fsdp": "full_shard", "fsdp_config": config}
    trainer = trainer_of(model, f"{folder}/run", save_strategy="no", **sharding)

    def bad_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = model(**inputs)["loss"]
        return loss * float("nan") if rank == 1 and trainer.state.global_step + 1 == 2 else loss

    trainer.compute_loss = bad_loss.__get__(trainer)
    with pytest.raises(RuntimeError, match=r"NaN or infinite at step 2; the range that moved most is .*'s, by a"):
        trainer.train()


def test_a_bad_loss_on_one_rank_stops_all_under_fsdp(tmp_path):
    run_ranks(_stop_on, str(tmp_path))
