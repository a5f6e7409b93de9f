"""The flags of train_qat.py: known by name before transformers is imported, and the same to both parsers."""

from __future__ import annotations

import dataclasses

import pytest
from transformers import TrainingArguments

from training.arguments import FineTuneArguments, TrainingDefaults, TrainParser, trainer_options
from training.command import QatTrainingArguments, TrainerParser

REQUIRED = ["--model", "m", "--task", "t", "--out", "o"]


def test_the_trainers_options_are_read_from_its_source():
    assert list(trainer_options()) == [each.name for each in dataclasses.fields(TrainingArguments)]
    assert {each.name for each in dataclasses.fields(TrainingDefaults)} <= set(trainer_options())


def test_our_defaults_take_the_place_of_the_trainers():
    made = QatTrainingArguments(output_dir="o", use_cpu=True)
    for each in dataclasses.fields(TrainingDefaults):
        assert getattr(made, each.name) == each.default or each.name == "report_to"  # it becomes a list
    assert made.report_to == []


@pytest.mark.parametrize(
    "words",
    [[], ["--teach", "false"], ["--no_teach"], ["--force"], ["--num-samples=8"], ["--seq_length", "32"],
     ["--learning_rate", "1e-4", "--no_load_best_model_at_end", "--remove-unused-columns", "yes"]],
    ids=" ".join,
)  # fmt: skip
def test_both_parsers_understand_the_same(words):
    ours = vars(TrainParser().parse_args([*REQUIRED, *words]))
    theirs = vars(TrainerParser().parse_args(["--output_dir" if w == "--out" else w for w in [*REQUIRED, *words]]))
    names = [each.name for options in (FineTuneArguments, TrainingDefaults) for each in dataclasses.fields(options)]
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--task", "t", "--out", "o"], "required: --model"),
     ([*REQUIRED, "--learning_rat", "1"], "did you mean --learning_rate"),
     ([*REQUIRED, "--max_step", "1"], "did you mean --max_steps"),
     ([*REQUIRED, "--max_steps", "many"], "--max_steps: invalid int value: 'many'"),
     ([*REQUIRED, "--teach", "perhaps"], "true or false is wanted"),
     ([*REQUIRED, "--init", "c", "--method", "max"], "--method is of a calibration, which --init c has behind it"),
     ([*REQUIRED, "--init", "c", "--num-samples", "8"], "--num_samples is of a calibration")],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_wrong_flags_end_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        TrainParser().parse_args(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and message in said and said.count("\n") == 1


def test_the_trainers_flags_pass():
    TrainParser().parse_args([*REQUIRED, "--max_steps", "-1", "--bf16", "--fsdp=full_shard", "--logging-steps", "5"])


@pytest.mark.parametrize(
    ("words", "is_ours"), [([], False), (["--debug"], True), (["--debug", "underflow_overflow"], False)]
)
def test_debug_alone_is_ours_and_with_words_the_trainers(words, is_ours):
    assert TrainParser().parse_args([*REQUIRED, *words]).debug is is_ours
