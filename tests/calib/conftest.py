"""Tiny models of text and of images, which samples must fit."""

import pytest
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from quant.models.digits import DigitsSettings, digits_config, digits_processor
from quant.models.pretrained import LoadedModel

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film"]


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
