"""One pass over the samples through the float model; every activation site sees its tensor, padding left out."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from tqdm import tqdm

from calib.statistics import SiteStatistics, Statistics
from quant.dropout import evaluation_mode
from quant.models.encoder_decoder import encoder_prefix, is_encoder_decoder, write_greedily
from quant.sites.roles import Role
from quant.sites.site import Site, quantization_of
from quant.tensor_quantizer import TensorQuantizer, named_quantizers, quantizers_disabled
from quant.weights_digest import weights_digest

MASK, DECODER_MASK = "attention_mask", "decoder_attention_mask"
ROW_KINDS = ("linear", "norm_output")  # the sites that SmoothQuant can reach: their last axis is a layer's inputs


def collect(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], *, seed: int = 0, progress: bool = True
) -> Statistics:
    """Return the statistics of every enabled activation site of `model` over `batches`.

    Args:
        batches: inputs as `model(**batch)` takes them; positions where `attention_mask` is 0 are not counted. Where an
            encoder-decoder gets no decoder_input_ids, its decoder reads what the float model writes, greedily.
        seed: of the row sample.
    The model computes in float and in evaluation mode meanwhile. Under torchrun each rank passes its own batches, and
    all ranks get the sum.
    Raises: ValueError: no batches, or NaN or infinite activations (the site is named).
    """
    collector = _Collector(model, seed)
    collector.statistics.weights = weights_digest(model)
    with collector, quantizers_disabled(model), evaluation_mode(model), torch.no_grad():
        for batch in tqdm(batches, desc="collect", unit="batch", disable=not progress):
            inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
            if is_encoder_decoder(model) and "decoder_input_ids" not in inputs:
                collector.pause()
                inputs |= write_greedily(model, inputs)
            collector.start(inputs)
            model(**inputs)
    statistics = collector.statistics
    statistics.to_cpu()
    if dist.is_available() and dist.is_initialized():
        statistics = merge_over_ranks(statistics)
    if statistics.num_samples == 0:
        raise ValueError("no samples to calibrate from")
    return statistics


def merge_over_ranks(statistics: Statistics) -> Statistics:
    """Return the sum of the statistics of all ranks, the same on each."""
    gathered: list[Statistics] = [statistics] * dist.get_world_size()
    dist.all_gather_object(gathered, statistics)
    total = gathered[0]
    for other in gathered[1:]:
        total.merge(other)
    return total


class _Collector:
    """Hooks on the quantizers of the enabled activation sites."""

    def __init__(self, model: nn.Module, seed: int) -> None:
        sites = [site for site in quantization_of(model).sites if site.reads_samples]
        self.statistics = Statistics({site.name: SiteStatistics() for site in sites})
        self.generator = torch.Generator().manual_seed(seed)
        self.masks: dict[str, Tensor | None] = {}
        self.is_paused = False
        self.mask_of = mask_names(model, sites)
        quantizers = dict(named_quantizers(model))
        self.targets = [(quantizers[site.name], site) for site in sites]
        self.seen: dict[str, Tensor] = {}
        self.handles: list = []

    def __enter__(self) -> _Collector:
        self.handles = [q.register_forward_pre_hook(partial(self._see, site)) for q, site in self.targets]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.seen.clear()

    def pause(self) -> None:
        """Count nothing until `start`."""
        self.is_paused = True

    def start(self, batch: dict[str, Tensor]) -> None:
        """Prepare for the forward of `batch`: its padding masks, None where nothing is padded."""
        masks = {name: batch.get(name) for name in (MASK, DECODER_MASK)}
        self.masks = {name: None if m is None or bool(m.all()) else m.bool() for name, m in masks.items()}
        self.is_paused = False
        self.seen.clear()
        self.statistics.num_samples += len(next(iter(batch.values())))

    def _see(self, site: Site, quantizer: TensorQuantizer, args: tuple[Tensor]) -> None:
        x = args[0]
        if self.is_paused:
            return
        if self.seen.get(site.name) is x:
            return  # Q, K and V read one tensor through one quantizer: counted once
        self.seen[site.name] = x
        statistics = self.statistics.sites[site.name]
        try:
            observe(statistics, self._unpadded(x, site), site.kind in ROW_KINDS, self.generator)
        except ValueError as error:
            raise ValueError(
                f"{site.name}: {error} in the activations. Look at the samples, or switch the site off in the "
                f"recipe (rules: - {{match: '{site.name}', enable: false}})"
            ) from error

    def _unpadded(self, x: Tensor, site: Site) -> Tensor:
        """Return x without its padded positions, (positions, channels); x itself where nothing is padded."""
        mask = self.masks.get(self.mask_of[site.name])
        if mask is None:
            return x
        mask = mask.to(x.device)
        if site.kind == "bmm":
            x = x.transpose(2, 3) if site.role is Role.K else x  # K comes transposed: (B, H, D, T)
            is_per_token = (x.shape[0], x.shape[2]) == mask.shape  # unlike the table of positions in DeBERTa
            return x.transpose(1, 2)[mask] if is_per_token else x  # (B, S, H, D)
        if x.dim() == 3 and x.shape[:2] == mask.shape:
            return x[mask]
        return x[mask.flatten()] if x.dim() == 2 and len(x) == mask.numel() else x


def mask_names(model: Any, sites: list[Site]) -> dict[str, str]:
    """Return for each site which input masks its padding: in a decoder its own mask, but for what it reads of the
    encoder (K and V of cross attention)."""
    encoder = encoder_prefix(model)
    if encoder is None:
        return {site.name: MASK for site in sites}
    norms = [s for s in quantization_of(model).sites if s.kind == "norm_output" and s.module.startswith(encoder)]
    cross = {layer for norm in norms for layer in norm.consumers if not layer.startswith(encoder)}
    attentions = {layer.rpartition(".")[0] for layer in cross}  # the modules that hold the projections

    def reads_encoder(site: Site) -> bool:
        is_cross = site.module in attentions and site.role in (Role.K, Role.V)
        return site.module.startswith(encoder) or is_cross or bool(cross & {*site.consumers})

    return {site.name: MASK if reads_encoder(site) else DECODER_MASK for site in sites}


def observe(statistics: SiteStatistics, x: Tensor, keep_rows: bool, generator: torch.Generator) -> None:
    """Count x (any shape; `keep_rows`: rows along the last axis) into `statistics`. Raises: ValueError: NaN, inf."""
    if x.numel() == 0:
        return
    magnitudes = x.detach().float().abs()
    if not keep_rows:
        statistics.histogram.add(magnitudes, float(magnitudes.max()))
        return
    rows = magnitudes.reshape(-1, x.shape[-1])
    channel_amax = rows.amax(0)
    statistics.histogram.add(rows, float(channel_amax.max()))
    before = statistics.channel_amax
    statistics.channel_amax = channel_amax if before is None else torch.maximum(before, channel_amax)
    statistics.sample.add(x.detach().reshape(rows.shape), generator)
