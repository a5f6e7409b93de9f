"""Names in foreign checkpoints: which layer, quantizer or parameter of our model a key speaks of."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from quant.sites.roles import Role
from quant.sites.site import quantization_of

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
# Their names for the sides of attention's two products: ModelOpt's p, and those of NVIDIA's BERT examples for
# pytorch-quantization (QDQBERT: matmul_*; `a` is the attention probability).
ATTENTION_NAMES = {
    "q_bmm_quantizer": Role.Q,
    "k_bmm_quantizer": Role.K,
    "v_bmm_quantizer": Role.V,
    "p_bmm_quantizer": Role.SOFTMAX,
    "softmax_quantizer": Role.SOFTMAX,
    "matmul_q_input_quantizer": Role.Q,
    "matmul_k_input_quantizer": Role.K,
    "matmul_v_input_quantizer": Role.V,
    "matmul_a_input_quantizer": Role.SOFTMAX,
}


class KeyResolver:
    """Turns a checkpoint's names into those of `model`: wrappers, the base model's prefix, transformers' renamings."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules = {name for name, _ in model.named_modules()}
        self._prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
        self._renamings = [r for r in get_model_conversion_mapping(model) if isinstance(r, WeightRenaming)]
        sites = quantization_of(model).sites
        self._attentions = {s.module for s in sites if s.kind in ("bmm", "softmax")}

    def place_of(self, quantizer: str) -> str:
        """Return the name of the site that `quantizer` of the checkpoint would be here, whether there is one or not."""
        owner, _, attribute = quantizer.rpartition(".")
        attribute = attribute.removeprefix("_")
        if attribute in ATTENTION_NAMES:
            return f"{self._attention_of(owner)}.{ATTENTION_NAMES[attribute]}"
        # The renamings expect a whole key of a parameter, and some end in its dot.
        names = (key.removesuffix(".weight") for key in self._candidates(f"{owner}.weight"))
        return f"{next((name for name in names if name in self._modules), owner)}.{attribute}"

    def weight_of(self, key: str, names: Collection[str]) -> str | None:
        """Return the member of `names` that `key` means, or None."""
        return next((candidate for candidate in self._candidates(key) if candidate in names), None)

    def _attention_of(self, owner: str) -> str:
        """Return the module that computes attention: `owner`, or the one right above or below it."""
        for candidate in self._candidates(f"{owner}."):
            name = candidate.removesuffix(".")
            parent = name.rpartition(".")[0]
            children = [a for a in self._attentions if a.rpartition(".")[0] == name]
            for found in (name, parent, *(children if len(children) == 1 else ())):
                if found in self._attentions:
                    return found
        return owner

    def _candidates(self, key: str) -> Iterator[str]:
        """Yield `key` as it may be called here, the likeliest first."""
        for wrapper in WRAPPER_PREFIXES:
            key = key.removeprefix(wrapper)
        renamed = key
        for renaming in self._renamings:
            renamed = renaming.rename_source_key(renamed)[0]
        for name in dict.fromkeys((key, renamed)):
            yield name
            yield f"{self._prefix}{name}"
            if self._prefix and name.startswith(self._prefix):
                yield name.removeprefix(self._prefix)
