"""Loading the float model: float32 whatever is stored, the right class and processor, one clear line on failure."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, GPT2Config, GPT2LMHeadModel

from quant.models.pretrained import load_float_model

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film"]


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    folder = tmp_path / "tiny-bert"
    BertForSequenceClassification(config).half().save_pretrained(folder)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(tmp_path / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: object) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, **changes}))


def test_half_precision_file_loads_in_float32_and_eval_mode(bert_folder: Path) -> None:
    loaded = load_float_model(bert_folder)
    assert isinstance(loaded.model, BertForSequenceClassification)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training
    assert loaded.name == str(bert_folder)
    assert loaded.processor(["good film"])["input_ids"] == [[2, 6, 8, 3]]


def test_head_and_num_labels_choose_the_class_and_say_what_is_untrained(bert_folder: Path, caplog) -> None:
    loaded = load_float_model(bert_folder, head="question-answering")
    assert type(loaded.model).__name__ == "BertForQuestionAnswering"
    assert "qa_outputs.weight) not in the stored weights" in caplog.text
    loaded = load_float_model(bert_folder, num_labels=5)
    assert loaded.model.classifier.out_features == 5


def test_model_without_tokenizer_has_no_processor(bert_folder: Path, caplog) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (bert_folder / name).unlink(missing_ok=True)
    assert load_float_model(bert_folder).processor is None
    assert "only raw inputs" in caplog.text


def test_decoder_without_padding_token_pads_with_its_end_token(bert_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gpt"
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)).save_pretrained(folder)
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"), pad_token=None, eos_token="[SEP]")
    tokenizer.save_pretrained(folder)
    loaded = load_float_model(folder)
    assert loaded.processor.pad_token == "[SEP]"
    assert loaded.model.config.pad_token_id == 3


def test_unknown_head_names_near_ones(bert_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown head 'causal'.*did you mean causal-lm"):
        load_float_model(bert_folder, head="causal")


def test_head_that_the_model_type_lacks(bert_folder: Path) -> None:
    with pytest.raises(ValueError, match="a bert model has no image-classification head"):
        load_float_model(bert_folder, head="image-classification")


def test_missing_folder_names_near_ones(bert_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*tiny-brt \(did you mean tiny-bert\?\)"):
        load_float_model(bert_folder.parent / "tiny-brt")


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json"):
        load_float_model(tmp_path)


def test_file_instead_of_folder(bert_folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is a file"):
        load_float_model(bert_folder / "config.json")


def test_broken_config(bert_folder: Path) -> None:
    (bert_folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        load_float_model(bert_folder)


def test_unknown_model_type(bert_folder: Path) -> None:
    edit_config(bert_folder, model_type="brt")
    with pytest.raises(ValueError, match=r"model type 'brt' is unknown to transformers .*did you mean.*bert"):
        load_float_model(bert_folder)


def test_remote_code_is_refused_unless_asked_for(bert_folder: Path) -> None:
    edit_config(bert_folder, model_type="own", auto_map={"AutoConfig": "own.OwnConfig"})
    with pytest.raises(ValueError, match="read it, then allow it with --trust-remote-code"):
        load_float_model(bert_folder)


def test_unknown_architecture(bert_folder: Path) -> None:
    edit_config(bert_folder, architectures=["BertForSequenceClasification"])
    with pytest.raises(ValueError, match=r"is not in transformers .*did you mean BertForSequenceClassification"):
        load_float_model(bert_folder)


def test_no_architecture_asks_for_a_head(bert_folder: Path) -> None:
    edit_config(bert_folder, architectures=None)
    with pytest.raises(ValueError, match="names no architecture; say what it is with --head"):
        load_float_model(bert_folder)
    assert load_float_model(bert_folder, head="sequence-classification").model.config.num_labels == 2


def test_no_weights(bert_folder: Path) -> None:
    (bert_folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file named model\.safetensors"):
        load_float_model(bert_folder)


def test_broken_weights(bert_folder: Path) -> None:
    (bert_folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"the weights cannot be read.*download the file again"):
        load_float_model(bert_folder)


def test_weights_of_another_architecture(bert_folder: Path, tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path / "gpt")
    (tmp_path / "gpt" / "model.safetensors").rename(bert_folder / "model.safetensors")
    with pytest.raises(ValueError, match="holds no weights for BertForSequenceClassification"):
        load_float_model(bert_folder)


def test_broken_tokenizer(bert_folder: Path) -> None:
    (bert_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer or processor cannot be read"):
        load_float_model(bert_folder)
