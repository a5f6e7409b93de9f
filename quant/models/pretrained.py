"""Load the float model that everything else starts from: a hub id, a local folder or "digits", always in float32.

Its one job is to turn the name behind `--model` into a model in eval mode and the tokenizer or processor that makes
its inputs, or to say in one line why that cannot be done.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoFeatureExtractor, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import auto_factory
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from quant.models.digits import digits_folder

logger = logging.getLogger(__name__)

DIGITS = "digits"
# What --head may name; the class picks the architecture's own variant.
HEADS: dict[str, type[auto_factory._BaseAutoModelClass]] = {
    "feature-extraction": transformers.AutoModel,
    "sequence-classification": transformers.AutoModelForSequenceClassification,
    "token-classification": transformers.AutoModelForTokenClassification,
    "question-answering": transformers.AutoModelForQuestionAnswering,
    "multiple-choice": transformers.AutoModelForMultipleChoice,
    "masked-lm": transformers.AutoModelForMaskedLM,
    "causal-lm": transformers.AutoModelForCausalLM,
    "image-classification": transformers.AutoModelForImageClassification,
    "audio-classification": transformers.AutoModelForAudioClassification,
}
# A folder without any of these has no tokenizer; transformers 5 would build an empty one from the config.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.model",
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class LoadedModel:
    """A float or quantized model with what turns raw samples into its inputs.

    Attributes:
        model: float32, in eval mode, on the CPU unless moved.
        processor: its tokenizer, image processor or feature extractor; None if it has none (then only raw inputs fit).
        name: what the user passed.
    """

    model: PreTrainedModel
    processor: Any
    name: str


def load_float_model(
    name: str | Path, *, head: str | None = None, num_labels: int | None = None, trust_remote_code: bool = False
) -> LoadedModel:
    """Return the float model behind `name`, in float32 whatever it is stored in, with its tokenizer or processor.

    Args:
        name: a Hugging Face id, a local folder as `save_pretrained` writes it, or "digits".
        head: one of HEADS or an auto class's name; default the class that the configuration's `architectures` names.
        num_labels: the size of a classification head; where it differs from the stored one, the head starts untrained.
        trust_remote_code: run the model code that the repository brings with it; off unless asked for.
    Raises:
        FileNotFoundError: if there is no such folder, or no config.json or weights in it.
        ValueError: if the model type, the architecture or the head is unknown, a file cannot be read, or remote code is
            needed but not allowed.
    """
    if head is not None:
        head_class(head)
    with _quiet_transformers():
        source = str(digits_folder()) if str(name) == DIGITS else _check_source(str(name))
        config = _load_config(source, num_labels, trust_remote_code)
        model = _load_weights(source, config, head, trust_remote_code)
        processor = _load_processor(source, model.main_input_name, trust_remote_code)
    if isinstance(processor, transformers.PreTrainedTokenizerBase):
        _give_pad_token(processor, model, str(name))
    return LoadedModel(model=model.float().eval(), processor=processor, name=str(name))


def head_class(head: str) -> type[auto_factory._BaseAutoModelClass]:
    """Return the auto class of a head: one of HEADS, or any of transformers by its own name (AutoModelForMaskedLM).

    Raises: ValueError: an unknown one, with near matches and the list.
    """
    found = HEADS.get(head) or getattr(transformers, head, None)
    if not (isinstance(found, type) and issubclass(found, auto_factory._BaseAutoModelClass)):
        raise ValueError(
            f"unknown head {head!r}{_did_you_mean(head, HEADS)}; known heads: {', '.join(HEADS)}, and the auto classes "
            "of transformers by their names"
        )
    return found


def has_head(model: PreTrainedModel, head: str) -> bool:
    """Return whether the model's class is the one that transformers gives its configuration for a head."""
    mapping: Any = head_class(head)._model_mapping
    classes = mapping.get(type(model.config), ())
    return type(model) in (classes if isinstance(classes, (tuple, list)) else (classes,))


def _check_source(name: str) -> str:
    """Return `name` if it is a folder with a config.json or can be a hub id, else raise FileNotFoundError."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise FileNotFoundError(f"{name} holds no config.json; a model folder is what save_pretrained() writes")
        return str(path)
    if path.is_file():
        raise FileNotFoundError(
            f"{name} is a file; --model takes a folder as save_pretrained() writes it, a hub id, or {DIGITS}"
        )
    # A hub id is "name" or "owner/name"; what starts in a folder that exists, or has more parts, was meant as a path.
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and path.parent.is_dir())
    if looks_local:
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise FileNotFoundError(f"there is no folder {name}{_did_you_mean(path.name, siblings)}")
    return name


def _load_config(source: str, num_labels: int | None, trust_remote_code: bool) -> PreTrainedConfig:
    """Return the configuration; refuse a model type that transformers does not know and code that was not asked for."""
    try:
        fields, _ = PreTrainedConfig.get_config_dict(source)
    except OSError as error:
        if Path(source).is_dir():
            raise ValueError(f"{source}/config.json cannot be read: {_first_line(error)}") from error
        raise FileNotFoundError(
            f"no model {source!r}: not a local folder, and the hub did not give it ({_first_line(error)})"
        ) from error
    model_type = fields.get("model_type")
    if model_type not in CONFIG_MAPPING_NAMES and not (trust_remote_code and "auto_map" in fields):
        if "auto_map" in fields:
            raise ValueError(
                f"{source} needs the code in its own repository; read it, then allow it with --trust-remote-code"
            )
        raise ValueError(
            f"{source}: model type {model_type!r} is unknown to transformers {transformers.__version__}"
            f"{_did_you_mean(str(model_type), CONFIG_MAPPING_NAMES)}; see 'model_type' in its config.json"
        )
    changes = {} if num_labels is None or num_labels == _stored_num_labels(fields) else {"num_labels": num_labels}
    try:
        return transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **changes)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{source}/config.json: {_first_line(error)}") from error


def _stored_num_labels(fields: dict[str, Any]) -> int:
    return len(fields["id2label"]) if "id2label" in fields else fields.get("num_labels", 2)


def _load_weights(source: str, config: PreTrainedConfig, head: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """Return the model with its weights; warn of parameters the files lack, refuse files of another architecture."""
    model_class = head_class(head) if head else _architecture(source, config, trust_remote_code)
    remote = (
        {"trust_remote_code": trust_remote_code} if issubclass(model_class, auto_factory._BaseAutoModelClass) else {}
    )
    try:
        # ignore_mismatched_sizes: a head of another num_labels starts untrained, and the warning below names it.
        model, report = model_class.from_pretrained(
            source, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True, **remote
        )
    except SafetensorError as error:
        raise ValueError(
            f"{source}: the weights cannot be read ({_first_line(error)}); copy or download the file again"
        ) from error
    except OSError as error:
        raise FileNotFoundError(f"{source}: {_first_line(error)}") from error
    except ValueError as error:
        if head and "Unrecognized configuration class" in str(error):
            raise ValueError(
                f"a {config.model_type} model has no {head} head in transformers; known heads: {', '.join(HEADS)}"
            ) from error
        raise
    untrained = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    body = [name for name in untrained if name.startswith(f"{model.base_model_prefix}.") or not _has_base(model)]
    if len(body) > sum(1 for _ in model.base_model.parameters()) / 2:
        raise ValueError(
            f"{source} holds no weights for {type(model).__name__}: {len(body)} parameters are missing, as {body[0]}; "
            "its config.json and its weights do not belong together"
        )
    if untrained:
        logger.warning("%s: %s not in the stored weights and start untrained", source, _listed(untrained))
    return model


def _has_base(model: PreTrainedModel) -> bool:
    return model.base_model is not model


def _architecture(source: str, config: PreTrainedConfig, trust_remote_code: bool) -> Any:
    """Return the model class that the configuration names in `architectures`."""
    names = config.architectures or []
    if not names:
        raise ValueError(f"{source}/config.json names no architecture; say what it is with --head: {', '.join(HEADS)}")
    found = getattr(transformers, names[0], None)
    if found is not None:
        return found
    auto_map = getattr(config, "auto_map", None) or {}
    if trust_remote_code:
        for auto_class in auto_map:
            if auto_class.startswith("AutoModel"):
                return getattr(transformers, auto_class)
    if auto_map:
        raise ValueError(
            f"{source} needs the code in its own repository; read it, then allow it with --trust-remote-code"
        )
    raise ValueError(
        f"{source}: architecture {names[0]!r} is not in transformers {transformers.__version__}"
        f"{_did_you_mean(names[0], [n for n in dir(transformers) if 'For' in n or n.endswith('Model')])}"
    )


def _load_processor(source: str, main_input: str, trust_remote_code: bool) -> Any:
    """Return the tokenizer, image processor or feature extractor that makes `main_input`; None where none is stored."""
    files = TOKENIZER_FILES if main_input == "input_ids" else PROCESSOR_FILES
    folder = Path(source)
    if folder.is_dir() and not any((folder / file).is_file() for file in files):
        logger.warning(
            "%s holds no %s: only raw inputs (.npy, .npz) fit this model",
            source,
            "tokenizer" if files is TOKENIZER_FILES else "preprocessor_config.json",
        )
        return None
    try:
        if main_input == "input_ids":
            return AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        if main_input == "pixel_values":
            # The PIL backend, as torchvision is no requirement; from its own module, as the plain name warns.
            from transformers.models.auto.image_processing_auto import AutoImageProcessor

            return AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=trust_remote_code)
        return AutoFeatureExtractor.from_pretrained(source, trust_remote_code=trust_remote_code)
    except OSError as error:
        if folder.is_dir():
            raise ValueError(f"{source}: its tokenizer or processor cannot be read: {_first_line(error)}") from error
        logger.warning("%s has no tokenizer or processor: only raw inputs (.npy, .npz) fit this model", source)
        return None
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise ValueError(f"{source}: its tokenizer or processor cannot be read: {_first_line(error)}") from error


def _give_pad_token(tokenizer: Any, model: PreTrainedModel, name: str) -> None:
    """Let a decoder without a padding token (GPT-2, Llama) pad with its end token; the attention mask hides it."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ValueError(
                f"{name}: its tokenizer has neither a padding nor an end token; set pad_token in tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("%s has no padding token: its end token %r is used", name, tokenizer.eos_token)
    if getattr(model.config, "pad_token_id", None) is None:
        # A decoder's sequence classification finds the last token of each row by it.
        model.config.pad_token_id = tokenizer.pad_token_id


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back transformers' bars and reports while loading; what matters is logged or raised here."""
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bars:
            transformers.logging.enable_progress_bar()


def _did_you_mean(word: str, allowed: Any) -> str:
    near = difflib.get_close_matches(word, list(allowed), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} parameter{'s' if len(names) > 1 else ''} ({shown})"
