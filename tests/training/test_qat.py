"""QAT: ranges that learn, one for a shared tensor; a resume that changes no bit; a NaN loss stops the run."""

import dataclasses

import pytest
import torch
from transformers import TrainingArguments

from calib.apply import apply_statistics
from calib.collect import collect
from quant.checkpoint import load_checkpoint, save_checkpoint
from quant.insert import insert_quantizers
from quant.recipe import QatOptions, load_recipe
from quant.tensor_quantizer import named_quantizers
from tests.conftest import text_batch, tiny_bert
from training.distillation import distillation_loss
from training.qat import QatTrainer, finish_qat, start_qat


class Sentences(torch.utils.data.Dataset):
    """64 random sentences with labels, as the Trainer takes them."""

    def __init__(self) -> None:
        batch = text_batch(batch_size=64, length=8, padded=False)
        self.rows = [{**{k: v[i] for k, v in batch.items()}, "labels": i % 3} for i in range(64)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def calibrated(recipe="int8_full", **options):
    model = tiny_bert()
    insert_quantizers(model, dataclasses.replace(load_recipe(recipe), qat=QatOptions(**options)))
    apply_statistics(model, collect(model, [text_batch()], progress=False))
    return model


def trainer_of(model, folder, steps=6, teacher=None, **changes):
    fixed = {"save_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1, "seed": 5}
    plain = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "remove_unused_columns": False}
    arguments = TrainingArguments(output_dir=str(folder), max_steps=steps, **{**fixed, **plain, **changes})
    options = model.quantization.recipe.qat
    start_qat(model, options)
    return QatTrainer(model=model, args=arguments, train_dataset=Sentences(), options=options, teacher=teacher)


def test_learned_ranges_start_where_calibration_left_them_and_learn():
    model, batch = calibrated(), text_batch()
    with torch.no_grad():
        before = model(**batch).logits
        start_qat(model, QatOptions())
        # exp2(log2(amax)) may be one step of float32 off amax: a few integers move by one.
        torch.testing.assert_close(model(**batch).logits, before, atol=2e-2 * float(before.abs().max()), rtol=0)
    model(**batch).logits.square().sum().backward()
    ranges = {name: q.log2_amax for name, q in named_quantizers(model) if q.log2_amax is not None}
    assert ranges and all(p.grad is not None and torch.isfinite(p.grad).all() for p in ranges.values())
    assert not any("softmax" in name for name in ranges)


def test_q_k_and_v_learn_one_range():
    model = calibrated("int8_linear")
    start_qat(model, QatOptions())
    attention = model.bert.encoder.layer[0].attention.self
    assert attention.query.input_quantizer.log2_amax is attention.value.input_quantizer.log2_amax
    assert sum(p is attention.key.input_quantizer.log2_amax for p in model.parameters()) == 1


def test_the_learning_rule_is_lsq_with_its_gradient_scale():
    from quant.tensor_quantizer import TensorQuantizer

    quantizer = TensorQuantizer()
    quantizer.set_amax(torch.tensor([127.0]))
    quantizer.start_learning()
    x = torch.tensor([0.3, 1.4, 300.0])
    quantizer(x).sum().backward()
    per_scale = (0 - 0.3) + (1 - 1.4) + 127
    damping = (1 / (3 * 127)) ** 0.5
    expected = per_scale * damping * torch.log(torch.tensor(2.0))  # d scale / d log2(amax) = scale ln 2, and scale is 1
    assert quantizer.log2_amax.grad.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("weights", ["learned", "retaken", "frozen"])
def test_after_training_the_model_is_a_calibrated_one(tmp_path, weights):
    model = calibrated(weight_ranges=weights, distill_logits=0.0)
    layer = model.bert.encoder.layer[0].intermediate.dense
    before = layer.weight_quantizer.amax.clone()
    trainer_of(model, tmp_path / "run").train()
    assert weights == "frozen" or layer.weight_quantizer.log2_amax is not None or layer.weight_quantizer.retakes_range
    with torch.no_grad():
        trained = model.eval()(**text_batch()).logits
        finish_qat(model)
        assert torch.equal(model(**text_batch()).logits, trained)
    assert torch.equal(layer.weight_quantizer.amax, before) == (weights == "frozen")
    if weights == "retaken":
        assert torch.equal(layer.weight_quantizer.amax, layer.weight.abs().amax(1))
    save_checkpoint(model, tmp_path / "c")
    with torch.no_grad():
        assert torch.equal(load_checkpoint(tmp_path / "c").model(**text_batch()).logits, trained)


@pytest.mark.parametrize("options", [{}, {"weight_ranges": "retaken", "activation_ranges": "frozen", "dropout": True}])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, options):
    torch.use_deterministic_algorithms(True)
    whole = trainer_of(calibrated(**options), tmp_path / "whole", teacher=tiny_bert())
    whole.train()
    first = trainer_of(calibrated(**options), tmp_path / "parts", teacher=tiny_bert())
    first.train()
    resumed = trainer_of(calibrated(**options), tmp_path / "parts", teacher=tiny_bert())
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    torch.use_deterministic_algorithms(False)
    learned = [name for name, q in named_quantizers(resumed.model) if q.log2_amax is not None]
    assert bool(learned) == (not options)
    for trainer in (whole, resumed):
        finish_qat(trainer.model)
    a, b = whole.model.state_dict(), resumed.model.state_dict()
    assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    trainer_of(calibrated("int8_full"), tmp_path / "run", teacher=tiny_bert()).train()
    other = trainer_of(calibrated("int8_linear"), tmp_path / "run", teacher=tiny_bert())
    with pytest.raises(ValueError, match="is of recipe 'int8_full', this run of 'int8_linear'"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    model = calibrated(distill_logits=0.0)
    trainer = trainer_of(model, tmp_path / "run")
    poison = {"at": 5}

    def bad_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = model(**inputs)["loss"]
        return loss * float("nan") if trainer.state.global_step + 1 == poison["at"] else loss

    trainer.compute_loss = bad_loss.__get__(trainer)
    with pytest.raises(RuntimeError, match=r"NaN or infinite at step 5; the range that moved most is .*checkpoint-3"):
        trainer.train()
    assert load_checkpoint(tmp_path / "run" / "checkpoint-3")


def test_distillation_of_equal_models_is_zero_and_hidden_states_and_attention_count():
    outputs = {
        "logits": torch.randn(4, 3),
        "hidden_states": (torch.randn(4, 5, 8),),
        "attentions": (torch.rand(4, 2, 5, 5),),
    }
    other = {key: tuple(x + 0.1 for x in value) if isinstance(value, tuple) else value + torch.randn(4, 3)
             for key, value in outputs.items()}  # fmt: skip
    mask = torch.ones(4, 5)
    for options in (QatOptions(), QatOptions(logit_loss="kl"), QatOptions(distill_hidden=1.0, distill_attention=1.0)):
        assert float(distillation_loss(outputs, outputs, mask, options)) == pytest.approx(0, abs=1e-6)
        assert float(distillation_loss(other, outputs, mask, options)) > 1e-3
    with pytest.raises(ValueError, match="the model returns none of logits"):
        distillation_loss({"x": 1}, {"x": 1}, None, QatOptions(distill_hidden=0.0))
    with pytest.raises(ValueError, match="no hidden_states to distil from; set distill_hidden: 0"):
        distillation_loss({"logits": outputs["logits"]}, {"logits": outputs["logits"]}, None, QatOptions())


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_padding_counts_neither_as_a_token_nor_as_an_answer(loss):
    """A padded batch costs what the same samples cost one by one without padding."""
    options = QatOptions(logit_loss=loss, distill_hidden=0.0, temperature=2.0)
    torch.manual_seed(0)
    lengths, names = (6, 4, 2), ("start_logits", "end_logits")
    mask = torch.tensor([[i < length for i in range(6)] for length in lengths]).long()
    student, teacher = ({name: torch.randn(3, 6, requires_grad=True) for name in names} for _ in range(2))
    loss_padded = distillation_loss(student, teacher, mask, options)
    alone = [
        distillation_loss(*({k: x[i : i + 1, :n] for k, x in out.items()} for out in (student, teacher)), None, options)
        for i, n in enumerate(lengths)
    ]
    assert float(loss_padded.detach()) == pytest.approx(float(torch.stack(alone).detach().mean()), rel=1e-5)
    loss_padded.backward()
    gradient = student["start_logits"].grad
    assert torch.isfinite(gradient).all() and not gradient[mask == 0].any() and gradient[0].any()


def test_distillation_brings_the_student_closer_to_its_teacher(tmp_path):
    model, teacher, batch = calibrated(), tiny_bert(), text_batch(batch_size=32, padded=False)
    for name, quantizer in named_quantizers(model):  # a student that has drifted: ranges far too narrow
        if quantizer.enabled and quantizer.axis is None and "softmax" not in name:
            quantizer.set_amax(quantizer.amax * 0.2)
    with torch.no_grad():
        before = float((model(**batch).logits - teacher(**batch).logits).abs().mean())
    trainer_of(model, tmp_path / "run", steps=40, teacher=tiny_bert()).train()
    with torch.no_grad():
        after = float((model.eval()(**batch).logits - teacher(**batch).logits).abs().mean())
    assert after < 0.7 * before


EMBEDDED = {"extends": "int8_full", "rules": [{"kind": "embedding"}]}
