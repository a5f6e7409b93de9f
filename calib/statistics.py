"""What one pass over the samples leaves: per site a histogram, the maximum of each channel and a few whole rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calib.histogram import Histogram
from quant.checkpoint import disk_errors

NUM_ROWS = 256
FORMAT = "int8kit-statistics-2"
UNBOUND_FORMAT = "int8kit-statistics-1"  # without the weights' digest: whether it fits a model nobody can tell


class RowSample:
    """A uniform random sample of at most `num_rows` rows (one token's values at one site); two samples can be merged.

    Each row draws a random key; the rows with the smallest keys stay.
    """

    def __init__(self, num_rows: int = NUM_ROWS) -> None:
        self.num_rows = num_rows
        self.keys = torch.empty(0)
        self.rows = torch.empty(0, 0)

    def add(self, rows: Tensor, generator: torch.Generator) -> None:
        """Offer `rows` (N, channels); keys come from `generator` (CPU)."""
        keys = torch.rand(len(rows), generator=generator)
        bound = self.keys.max() if len(self.keys) == self.num_rows else 2.0
        chosen = (keys < bound).nonzero().squeeze(1)
        if len(chosen) > self.num_rows:
            chosen = chosen[keys[chosen].topk(self.num_rows, largest=False).indices]
        if len(chosen):
            self._keep(keys[chosen], rows[chosen.to(rows.device)].float().cpu())

    def merge(self, other: RowSample) -> None:
        """Take in another sample of the same site."""
        self._keep(other.keys, other.rows)

    def _keep(self, keys: Tensor, rows: Tensor) -> None:
        keys = torch.cat([self.keys, keys])
        rows = rows if self.rows.numel() == 0 else torch.cat([self.rows, rows])
        kept = keys.argsort()[: self.num_rows]
        self.keys, self.rows = keys[kept], rows[kept]


@dataclass
class SiteStatistics:
    """The statistics of one activation site."""

    histogram: Histogram = field(default_factory=Histogram)
    channel_amax: Tensor | None = None
    """max |x| of each channel, shape (channels,), float32; only where the channels are a linear layer's inputs."""
    sample: RowSample = field(default_factory=RowSample)

    def merge(self, other: SiteStatistics) -> None:
        """Take in the statistics of the same site over other samples."""
        self.histogram.merge(other.histogram)
        if other.channel_amax is not None:
            mine = self.channel_amax
            self.channel_amax = other.channel_amax if mine is None else torch.maximum(mine, other.channel_amax)
            self.sample.merge(other.sample)


@dataclass
class Statistics:
    """All sites of one model over one set of samples."""

    sites: dict[str, SiteStatistics] = field(default_factory=dict)
    num_samples: int = 0
    weights: str = ""
    """`weights_digest` of the model whose activations these are."""

    def merge(self, other: Statistics) -> None:
        """Take in statistics over other samples. Raises: ValueError: the sites or the model's weights differ."""
        if self.weights != other.weights:
            raise ValueError(
                f"statistics of different models cannot be added: one was taken from weights {self.weights[:12]}, the "
                f"other from {other.weights[:12]}; collect both from one --model"
            )
        if set(self.sites) != set(other.sites):
            odd = sorted(set(self.sites) ^ set(other.sites))
            raise ValueError(
                f"statistics of different models or recipes: {len(odd)} sites are in one only, e.g. {odd[0]}"
            )
        for name, site in self.sites.items():
            site.merge(other.sites[name])
        self.num_samples += other.num_samples

    def to_cpu(self) -> None:
        """Move all tensors to the CPU: what is saved, merged and searched is the same wherever it was collected."""
        for site in self.sites.values():
            site.histogram.counts = site.histogram.counts.cpu()
            site.channel_amax = None if site.channel_amax is None else site.channel_amax.cpu()

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; `load` reads it back, `merge` adds the files of several runs."""
        tensors, meta = {}, {}
        for name, site in self.sites.items():
            tensors[f"{name}/counts"] = site.histogram.counts.cpu()
            meta[name] = {"top": site.histogram.top, "amax": site.histogram.amax}
            if site.channel_amax is not None:
                tensors[f"{name}/channel_amax"] = site.channel_amax.cpu().contiguous()
                tensors[f"{name}/rows"] = site.sample.rows.contiguous()
                tensors[f"{name}/keys"] = site.sample.keys.contiguous()
        with disk_errors(path):
            save_file(
                tensors,
                path,
                {
                    "sites": json.dumps(meta),
                    "num_samples": str(self.num_samples),
                    "weights": self.weights,
                    "format": FORMAT,
                },
            )

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Return the statistics in `path`. Raises: ValueError: another kind of file."""
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except SafetensorError as error:
            raise ValueError(f"{path} is no statistics file: {error}") from error
        if header.get("format") != FORMAT:
            told = "does not say from which weights it was taken (an older version's)" if header.get(
                "format") == UNBOUND_FORMAT else "is no statistics file of this version"  # fmt: skip
            raise ValueError(f"{path} {told}; collect again: python -m calib --model M --samples S --out CKPT")
        statistics = cls(num_samples=int(header["num_samples"]), weights=header["weights"])
        for name, meta in json.loads(header["sites"]).items():
            site = SiteStatistics(Histogram.from_counts(tensors[f"{name}/counts"], meta["top"], meta["amax"]))
            if f"{name}/rows" in tensors:
                site.channel_amax = tensors[f"{name}/channel_amax"]
                site.sample.rows, site.sample.keys = tensors[f"{name}/rows"], tensors[f"{name}/keys"]
            statistics.sites[name] = site
        return statistics
