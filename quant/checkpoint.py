"""The checkpoint folder: what plain Transformers loads, plus quantization.json and quantizers.safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from quant.dropout import own_configuration
from quant.insert import attach_sites
from quant.models.pretrained import LoadedModel, load_float_model
from quant.modules import weight_range
from quant.recipe import recipe_from_dict
from quant.sites.check import check_sites
from quant.sites.formats import check_formats
from quant.sites.site import Quantization, quantization_of, site_quantizers
from quant.sites.stored import site_to_dict, sites_from_dicts
from quant.tensor_quantizer import TensorQuantizer, named_quantizers

CHECKPOINT_FILE = "quantization.json"
QUANTIZER_FILE = "quantizers.safetensors"
SCHEMA = 1


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn what safetensors says of a full or broken disk into the OSError that every command prints in one line."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from error


def is_checkpoint(folder: str | Path) -> bool:
    """Return whether `folder` holds a quantized model that `load_checkpoint` takes."""
    return (Path(folder) / CHECKPOINT_FILE).is_file()


def save_checkpoint(
    model: Any,
    folder: str | Path,
    *,
    processor: Any = None,
    provenance: dict[str, Any] | None = None,
    state_dict: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the checkpoint folder of a calibrated model.

    Args:
        processor: tokenizer or image processor, saved beside the model. provenance: how it came to be (samples, seed).
        state_dict: the whole state where the model itself holds a shard of it (FSDP).
    The weights are saved under the float model's own names, so plain Transformers' `from_pretrained` loads the folder.
    Raises: RuntimeError: quantizers without an amax (all named).
    """
    quantization = quantization_of(model)
    check_calibrated(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    transformers.utils.logging.disable_progress_bar()
    state = model.state_dict() if state_dict is None else state_dict
    with disk_errors(folder), own_configuration(model):
        model.save_pretrained(folder, state_dict=float_state_dict(model, state))
        save_file(_quantizer_tensors(model, state), folder / QUANTIZER_FILE)
    if processor is not None:
        processor.save_pretrained(folder)
    content = {
        "schema": SCHEMA,
        "recipe": quantization.recipe.to_dict(),
        "recipe_digest": quantization.recipe.digest,
        "provenance": provenance or {},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "digests": {path.name: file_digest(path) for path in sorted(folder.glob("*.safetensors"))},
        "sites": [site_to_dict(site) for site in quantization.sites],
    }
    content["sites_digest"] = _sites_digest(content)
    (folder / CHECKPOINT_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_checkpoint(folder: str | Path) -> LoadedModel:
    """Return the quantized model of a checkpoint folder, with its processor, in float32 and evaluation mode.

    Raises: FileNotFoundError: no checkpoint there. ValueError: damaged or edited files.
    """
    folder = Path(folder)
    content = read_description(folder)
    check_digests(folder, content)
    loaded = load_float_model(folder)
    quantization = _quantization(folder / CHECKPOINT_FILE, content)
    check_formats(quantization.sites, quantization.recipe, folder / CHECKPOINT_FILE)
    check_sites(loaded.model, quantization, folder / CHECKPOINT_FILE, is_as_saved(content))
    attach_sites(loaded.model, quantization)
    load_quantizers(loaded.model, folder)
    check_calibrated(loaded.model)
    return loaded


def _quantization(path: Path, content: dict[str, Any]) -> Quantization:
    """Return recipe and sites as `path` tells them. Raises: ValueError: fields of another kind."""
    try:
        recipe = recipe_from_dict(content["recipe"])
        return Quantization(recipe, sites_from_dicts(content["sites"], recipe))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}; calibrate again") from error


def _sites_digest(content: dict[str, Any]) -> str:
    """Return the sha256 of recipe and sites: that no one changed them since insertion planned them."""
    return hashlib.sha256(json.dumps([content["recipe"], content["sites"]], sort_keys=True).encode()).hexdigest()


def is_as_saved(content: dict[str, Any]) -> bool | None:
    """Return whether a quantization.json holds the recipe and sites that were saved; None where it does not say."""
    digest = content.get("sites_digest")
    return None if digest is None else digest == _sites_digest(content)


def read_description(folder: str | Path) -> dict[str, Any]:
    """Return the parsed quantization.json. Raises: FileNotFoundError, ValueError: not there, or not of this version."""
    path = Path(folder) / CHECKPOINT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no int8kit checkpoint (it has no {CHECKPOINT_FILE}); make one with 'python -m calib'"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged: {error}; calibrate again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no mapping; calibrate again")
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path} has schema {content.get('schema')}, this version reads {SCHEMA}; calibrate again")
    if missing := [key for key in ("recipe", "sites", "digests") if key not in content]:
        raise ValueError(f"{path} is damaged: it has no {', '.join(missing)}; calibrate again")
    return content


def check_calibrated(model: nn.Module) -> None:
    """Raise RuntimeError if enabled quantizers have no amax, naming them and the next step."""
    missing = [name for name, quantizer in named_quantizers(model) if quantizer.enabled and not quantizer.is_calibrated]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise RuntimeError(
            f"{len(missing)} quantizers have no amax: {shown} Run 'python -m calib', or switch them off in the recipe "
            f"(rules: - {{match: '{missing[0]}', enable: false}})"
        )


def float_state_dict(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `state` under the float model's keys: the quantizers' tensors are left out."""
    modules = model.named_modules(remove_duplicate=False)
    prefixes = tuple(f"{name}." for name, module in modules if isinstance(module, TensorQuantizer))
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def _quantizer_tensors(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what the enabled quantizers hold; in training also log2_amax, from which a resumed run goes on exactly."""
    tensors = {}
    for site, quantizer in site_quantizers(model):
        if not quantizer.enabled:
            continue
        name = site.name
        for key in ("amax", "pre_quant_scale", "log2_amax"):
            if state.get(f"{name}.{key}") is not None:
                tensors[f"{name}/{key}"] = state[f"{name}.{key}"].detach().cpu().contiguous()
        if f"{name}/log2_amax" in tensors:
            tensors[f"{name}/amax"] = torch.exp2(tensors[f"{name}/log2_amax"])
        elif quantizer.retakes_range:
            whole = state[f"{site.module}.weight"]
            tensors[f"{name}/amax"] = weight_range(model.get_submodule(site.module), whole).cpu()
    return tensors


def load_quantizers(model: nn.Module, folder: str | Path) -> None:
    """Load amax, SmoothQuant's factors and, where they are being learned, the ranges of every enabled quantizer.

    Raises: ValueError: a quantizer of the model is not in the file.
    """
    path = Path(folder) / QUANTIZER_FILE
    tensors = load_file(path)
    enabled = [(name, quantizer) for name, quantizer in named_quantizers(model) if quantizer.enabled]
    missing = [name for name, _ in enabled if f"{name}/amax" not in tensors]
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} quantizers of this model, e.g. {missing[0]}; calibrate again")
    for name, quantizer in enabled:
        device = quantizer.current_amax().device if quantizer.is_calibrated else "cpu"
        quantizer.set_amax(tensors[f"{name}/amax"].to(device))
        if f"{name}/pre_quant_scale" in tensors:
            quantizer.set_pre_quant_scale(tensors[f"{name}/pre_quant_scale"].to(device))
        if quantizer.log2_amax is not None and f"{name}/log2_amax" in tensors:
            with torch.no_grad():
                quantizer.log2_amax.copy_(tensors[f"{name}/log2_amax"])


def file_digest(path: Path) -> str:
    """Return the sha256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_digests(folder: Path, content: dict[str, Any]) -> None:
    """Raise ValueError if files of a checkpoint are not those that `content`, its quantization.json, tells of."""
    wrong = [
        name
        for name, digest in content["digests"].items()
        if not (folder / name).is_file() or file_digest(folder / name) != digest
    ]
    if wrong:
        raise ValueError(
            f"{folder}: {', '.join(wrong)} {'is' if len(wrong) == 1 else 'are'} missing or not what was saved; "
            f"copy the folder again, or calibrate again"
        )
