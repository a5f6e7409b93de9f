"""Reads what pytorch-quantization and ModelOpt save, as tensors alone: nothing that a file carries is ever run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

WRAPPERS = ("model_state_dict", "state_dict", "model")  # mto.save, and what training scripts wrap around a state dict
FOLDER_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.pt", "*.pth")
MODELOPT_STATE = "modelopt_state.pth"  # beside the weights where ModelOpt's save_pretrained is enabled
SAVE_AGAIN = "save the tensors alone where it was written: torch.save(model.state_dict(), 'state.pt')"


@dataclass(frozen=True)
class ForeignCheckpoint:
    """The tensors of a checkpoint under its own names, and what ModelOpt says of its quantizers."""

    source: str
    """The path it was read from, or what it is."""
    tensors: dict[str, Tensor]
    quantizers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """ModelOpt only: quantizer's name → its settings (`_num_bits`, `_disabled`, ...); empty for a plain state dict."""

    @property
    def package(self) -> str:
        """Which of the two wrote it; pytorch-quantization alone begins its quantizers' names with an underscore."""
        is_old = any("._input_quantizer." in key or "._weight_quantizer." in key for key in self.tensors)
        return "pytorch-quantization" if is_old else "ModelOpt"

    def quantizer_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return quantizer's name → its tensors (`_amax`, `_pre_quant_scale`, ...)."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.tensors.items():
            split = split_quantizer_key(key)
            if split is not None:
                found.setdefault(split[0], {})[split[1]] = tensor
        return found


def split_quantizer_key(key: str) -> tuple[str, str] | None:
    """Return (quantizer's name, its tensor's name) of a key such as `a.b._input_quantizer._amax`; None for a weight."""
    parts = key.split(".")
    for position, part in enumerate(parts):
        if part.endswith("_quantizer") and position < len(parts) - 1:
            return ".".join(parts[: position + 1]), ".".join(parts[position + 1 :])
    return None


def read_foreign(source: str | Path | Mapping[str, Any]) -> ForeignCheckpoint:
    """Return the checkpoint in a file (.safetensors, or what torch.save wrote), a folder of such, or a state dict.

    Raises: FileNotFoundError: nothing there. ValueError: not readable as tensors alone, or no amax in it.
    """
    if isinstance(source, Mapping):
        return _checked("the state dict", dict(source))
    path = Path(source).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"there is no checkpoint {source}")
    if not path.is_dir():
        return _checked(str(source), _read_file(path))
    merged: dict[str, Any] = {}
    for file in _files_of(path):
        part = _unwrapped(str(file), _read_file(file))
        merged.setdefault("modelopt_state", part.get("modelopt_state"))
        merged.update({key: value for key, value in part.items() if key != "modelopt_state"})
    if (path / MODELOPT_STATE).is_file():
        merged["modelopt_state"] = _read_file(path / MODELOPT_STATE)
    return _checked(str(source), merged)


def _files_of(folder: Path) -> list[Path]:
    """Return the weight files of a folder: those of the first known kind, in the order of their names."""
    if (folder / "quantizers.safetensors").is_file():
        raise ValueError(f"{folder} is an int8kit checkpoint already; give it to the next command as it is")
    for pattern in FOLDER_PATTERNS:
        files = sorted(file for file in folder.glob(pattern) if file.name != MODELOPT_STATE)
        if len(files) > 1 and pattern in ("*.pt", "*.pth"):
            names = ", ".join(file.name for file in files[:3])
            raise ValueError(f"{folder} holds {len(files)} checkpoints ({names}, ...); name one of them")
        if files:
            return files
    raise FileNotFoundError(f"{folder} holds no checkpoint; looked for {', '.join(FOLDER_PATTERNS)}")


def _read_file(path: Path) -> dict[str, Any]:
    """Return the mapping in a file; anything in it beside tensors and plain values is refused."""
    try:
        with torch.serialization.safe_globals([slice]):  # ModelOpt's settings of block formats hold slices
            content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error) and "Unsupported class" not in str(error):
            raise ValueError(f"{path} is neither .safetensors nor a file of torch.save; give a checkpoint") from error
        raise ValueError(
            f"{path} holds more than tensors ({_reason(error)}), which int8kit does not run; {SAVE_AGAIN}"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({_reason(error)}); is it whole? Copy it again") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict; {SAVE_AGAIN}")
    return dict(content)


def _reason(error: BaseException) -> str:
    """Return the one line of torch's long texts that names what it met."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (named or lines or [type(error).__name__])[0].partition(". ")[0]


def _unwrapped(source: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict inside `content`, with ModelOpt's state beside it under its own key."""
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            return {**content[wrapper], "modelopt_state": content.get("modelopt_state")}
    if "modelopt_state_dict" in content:
        raise ValueError(f"{source} holds ModelOpt's settings without tensors; give the file of mto.save or a folder")
    return content


def _checked(source: str, content: dict[str, Any]) -> ForeignCheckpoint:
    content = _unwrapped(source, content)
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    if not any(key.endswith(("._amax", ".clip.clip_value_max")) for key in tensors):
        shown = f", e.g. {next(iter(tensors))}" if tensors else ""
        raise ValueError(
            f"{source} holds no amax ({len(tensors)} tensors{shown}); expected names such as ...input_quantizer._amax, "
            "which pytorch-quantization and ModelOpt write once calibrated"
        )
    return ForeignCheckpoint(source, tensors, _quantizer_settings(content.get("modelopt_state")))


def _quantizer_settings(state: Any) -> dict[str, dict[str, Any]]:
    """Return the last quantizer settings in ModelOpt's list of (mode, {config, metadata})."""
    modes = state.get("modelopt_state_dict", []) if isinstance(state, Mapping) else []
    found: dict[str, dict[str, Any]] = {}
    for _, entry in modes:
        found = entry.get("metadata", {}).get("quantizer_state") or found
    return {name: dict(settings) for name, settings in found.items() if isinstance(settings, Mapping)}
