"""Whether an engine runs in INT8 what a recipe plans, and nothing else: the gate of `engine.inspect --expect`."""

from __future__ import annotations

import fnmatch
import importlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.cli import UsageError
from engine.inspect.layers import INT8, UNKNOWN, Inspection, Layer
from engine.manifest import manifest_path, read_manifest

WEIGHT = ".weight_quantizer"
PRODUCT_KINDS = (None, "linear", "conv")
CHECKPOINT_FILE = "quantization.json"
SETTINGS = ("format", "method", "percentile", "alpha")  # of a recipe's rule


@dataclass(frozen=True)
class Plan:
    """Which layers are planned in INT8: by rules (the last that matches wins), or by the sites of a checkpoint.

    Attributes:
        rules: (pattern over quantizers, on or off). named: the layers that it names one by one.
    """

    rules: tuple[tuple[str, bool], ...]
    named: frozenset[str]

    def is_int8(self, layer: str) -> bool:
        """Return whether a layer's weight is quantized."""
        name = f"{layer}{WEIGHT}"
        return next((on for pattern, on in reversed(self.rules) if fnmatch.fnmatchcase(name, pattern)), False)


@dataclass(frozen=True)
class Difference:
    """What an engine does otherwise: layers planned in INT8 that do not run so, the reverse, and those of which the
    runtime does not say it."""

    missing: tuple[str, ...]
    unplanned: tuple[str, ...]
    num_met: int
    unknown: tuple[str, ...] = ()

    @property
    def is_met(self) -> bool:
        """Whether every planned layer is seen in INT8, and no other."""
        return not (self.missing or self.unplanned or self.unknown)

    def __str__(self) -> str:
        if self.is_met:
            return f"as planned: {self.num_met} layers with a weight in INT8, none else (attention is not compared)"
        lines = [f"{len(self.missing)} layers are planned in INT8 and do not run so, {len(self.unplanned)} run in INT8 "
                 f"unplanned, {self.num_met} as planned"]  # fmt: skip
        lines += [f"  not in INT8: {name}" for name in self.missing]
        lines += [f"  unplanned:   {name}" for name in self.unplanned]
        if self.unknown:
            lines.append(f"of {len(self.unknown)} more that are planned the runtime does not say what they run in (a "
                         "kernel trace may: --trace)")  # fmt: skip
            lines += [f"  not known:   {name}" for name in self.unknown]
        return "\n".join(lines)


def read_plan(source: str | Path) -> Plan:
    """Return the plan of a recipe (.yaml), or of a checkpoint (its folder, or its quantization.json).

    Raises: FileNotFoundError: nothing there. UsageError: a recipe that extends another. ValueError: no recipe.
    """
    path = Path(source)
    path = path / CHECKPOINT_FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no recipe {path}; --expect takes a .yaml file or a checkpoint's folder")
    text = path.read_text(encoding="utf-8")
    content: Any = json.loads(text) if path.suffix == ".json" else _yaml(text, path)
    if not isinstance(content, dict) or not ({"sites", "rules"} & content.keys()):
        raise ValueError(f"{path} holds no recipe and no checkpoint's sites")
    if "sites" in content:
        on = [site["module"] for site in content["sites"] if site["enabled"] and site["role"] == WEIGHT[1:]
              and site["kind"] in PRODUCT_KINDS]  # fmt: skip
        rules = tuple((f"{_escaped(name)}{WEIGHT}", True) for name in on)
        return Plan(rules, frozenset(on))
    if "extends" in content or any(rule.get("kind") for rule in content["rules"]):
        raise UsageError(f"{path} extends another recipe or speaks of kinds of layers; give the checkpoint's folder, "
                         "which names every site")  # fmt: skip
    rules = tuple((rule.get("match", "*"), rule["enable"]) for rule in map(_said, content["rules"])
                  if rule["enable"] is not None)  # fmt: skip
    exact = (pattern.removesuffix(WEIGHT) for pattern, on in rules if on and pattern.endswith(WEIGHT))
    return Plan(rules, frozenset(name for name in exact if not set("*?[") & set(name)))


def _said(rule: dict[str, Any]) -> dict[str, Any]:
    """Return a rule with what it says of on and off: nothing said is on, but in a rule with settings nothing."""
    silent = any(rule.get(option) is not None for option in SETTINGS)
    said = rule.get("enable")
    return {**rule, "enable": said if said is not None or silent else True}


def _yaml(text: str, path: Path) -> Any:
    try:
        yaml = importlib.import_module("yaml")
    except ImportError:
        raise RuntimeError(f"reading {path} needs PyYAML; or give the checkpoint's {CHECKPOINT_FILE}") from None
    return yaml.safe_load(text)


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def compare_plan(found: Inspection, plan: Plan, known: Iterable[str] = ()) -> Difference:
    """Return how what ran differs from a plan; attention's products are not compared: rules name them otherwise.

    Args: known: layers of the engine by its manifest, which a plan by patterns speaks of.
    """
    ran = {name for layer in found.layers if layer.is_product and layer.precision == INT8
           for name in ((layer.name,) if layer.products is None else layer.products)
           if not _is_attention(name)}  # fmt: skip
    known = tuple(known)
    if not plan.named and not known:
        raise UsageError("this plan names no layer one by one, and the engine has no manifest that names its own; give "
                         "the checkpoint's folder")  # fmt: skip
    hidden = _names(layer for layer in found.products if layer.precision == UNKNOWN)
    other = _names(layer for layer in found.products if layer.precision not in (INT8, UNKNOWN))
    planned = {*plan.named, *(name for name in known if plan.is_int8(name))}
    met = {name: _match(name, planned) for name in ran}
    partly = {each for name in other if (each := _match(name, planned)) is not None}  # a shared weight, once float
    seen = {name for name in met.values() if name is not None} - partly
    unplanned = tuple(sorted(_bare(name) for name, of in met.items() if of is None and not plan.is_int8(_bare(name))))
    unknown = {each for name in hidden if (each := _match(name, planned)) is not None} - seen - partly
    return Difference(tuple(sorted(planned - seen - unknown)), unplanned, len(seen), tuple(sorted(unknown)))


def _names(layers: Iterable[Layer]) -> set[str]:
    return {name for layer in layers for name in (layer.name, *layer.sources, *(layer.products or ()))}


def layers_of_manifest(engine: str) -> tuple[str, ...]:
    """Return the layers with a weight that an engine's manifest names; none where it has no manifest."""
    if not manifest_path(engine).exists():
        return ()
    products = read_manifest(engine).products
    return tuple(_bare(name) for name in (*products.int8, *products.float)) if products else ()


def source_of(engine: str) -> str | None:
    """Return the file that an engine was built from, where it is still there."""
    path = read_manifest(engine).onnx if manifest_path(engine).exists() else None
    return path if path is not None and Path(path).is_file() else None


def _is_attention(name: str) -> bool:
    """Return whether a product's name is no weight's: the exporter's node names, or a program's own."""
    return name.startswith(("node_", "attention_"))


def _bare(name: str) -> str:
    """Return a layer's path out of the name of its weight in a file."""
    return name.partition(".weight")[0]


def _match(name: str, planned: Collection[str]) -> str | None:
    """Return the planned layer that a product's name means: its weight's name, with or without a prefix."""
    bare = _bare(name)
    if bare in planned:
        return bare
    return next((each for each in planned if bare.endswith(f".{each}")), None)
