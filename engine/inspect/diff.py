"""Why one engine is slower than another: time by kind, conversions, fusions that are gone, what lost most."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from engine.inspect.layers import Inspection, Layer, by_kind, time_of

# A difference below this share of the faster engine's time is not told as a reason.
WORTH_TELLING = 0.02
SHOWN_LAYERS = 8


@dataclass(frozen=True)
class KindDelta:
    """One kind of layers in both engines."""

    kind: str
    count: tuple[int, int]
    time_ms: tuple[float, float]

    @property
    def delta_ms(self) -> float:
        """How much more time it takes in the second engine."""
        return self.time_ms[1] - self.time_ms[0]


@dataclass(frozen=True)
class LayerDelta:
    """One product in both engines, matched by its name or by the ONNX nodes in it."""

    name: str
    precision: tuple[str, str]
    kernel: tuple[str, str]
    time_ms: tuple[float, float]

    @property
    def delta_ms(self) -> float:
        """How much more time it takes in the second engine."""
        return self.time_ms[1] - self.time_ms[0]


@dataclass(frozen=True)
class Difference:
    """The second engine against the first."""

    first: Inspection
    second: Inspection
    kinds: tuple[KindDelta, ...]
    layers: tuple[LayerDelta, ...]
    reasons: tuple[str, ...]


def compare_engines(first: Inspection, second: Inspection) -> Difference:
    """Return what differs, the largest loss of the second engine first."""
    a, b = by_kind(first.layers), by_kind(second.layers)
    kinds = [
        KindDelta(
            kind, (len(a.get(kind, ())), len(b.get(kind, ()))), (time_of(a.get(kind, ())), time_of(b.get(kind, ())))
        )
        for kind in {**a, **b}
    ]
    kinds.sort(key=lambda each: -each.delta_ms)
    layers = sorted(_matched(first.products, second.products), key=lambda each: -each.delta_ms)
    return Difference(first, second, tuple(kinds), tuple(layers), tuple(_reasons(first, second, kinds, layers)))


def _matched(first: list[Layer], second: list[Layer]) -> list[LayerDelta]:
    by_key: dict[str, Layer] = {}
    for layer in first:
        for key in (layer.name, *layer.sources):
            by_key.setdefault(key, layer)
    found = []
    for layer in second:
        partner = next((by_key[key] for key in (layer.name, *layer.sources) if key in by_key), None)
        if partner is not None and partner.time_ms is not None and layer.time_ms is not None:
            kernels = (partner.kernel or partner.type, layer.kernel or layer.type)
            found.append(LayerDelta(layer.name, (partner.precision, layer.precision), kernels,
                                    (partner.time_ms, layer.time_ms)))  # fmt: skip
    return found


def _reasons(first: Inspection, second: Inspection, kinds: list[KindDelta], layers: list[LayerDelta]) -> list[str]:
    """Return sentences on what costs the second engine time, by the size of what they explain."""
    total = min(filter(None, (first.layers_ms, second.layers_ms)), default=0.0)
    if not total:
        return ["no layer has a time, so nothing can be said of what is slower"]
    told: list[tuple[float, str]] = []
    slower = [each for each in layers if each.precision[1] == "int8" != each.precision[0] and each.delta_ms > 0]
    for each in kinds:
        if each.delta_ms < WORTH_TELLING * total or (each.kind == "product" and slower):
            continue
        count, what = each.count[1] - each.count[0], KIND_WORDS.get(each.kind, f"{each.kind} layers")
        more = f"{each.count[1]} {what} instead of {each.count[0]}" if count else f"the same {each.count[1]} {what}"
        told.append((each.delta_ms, f"{more} take {each.delta_ms:.3f} ms more"))
    if slower and sum(each.delta_ms for each in slower) >= WORTH_TELLING * total:
        lost = sum(each.delta_ms for each in slower)
        told.append((lost, f"{len(slower)} INT8 products are slower than before, by {lost:.3f} ms: too small, or "
                     "widths that the INT8 kernels pad (engine.lint says which)"))  # fmt: skip
    still = [each for each in layers if each.precision[0] == each.precision[1] != "int8"]
    if still and (kept := sum(each.time_ms[1] for each in still)) >= WORTH_TELLING * total:
        told.append((kept, f"{len(still)} products run as before, not in INT8: {kept:.3f} ms"))
    told += _lost_fusions(first, second)
    return [text for _, text in sorted(told, key=lambda item: -item[0])]


KIND_WORDS = {"reformat": "conversions between types and layouts", "move": "moves of data", "product": "products",
              "elementwise": "elementwise layers", "norm": "norms", "softmax": "softmax layers",
              "attention": "fused attentions", "lookup": "lookups"}  # fmt: skip


def _lost_fusions(first: Inspection, second: Inspection) -> list[tuple[float, str]]:
    """Return the fused attentions, and the fused operator types, that the first engine has and the second lacks."""
    found = []
    attentions = [sum(layer.kind == "attention" for layer in each.layers) for each in (first, second)]
    if attentions[0] > attentions[1]:
        found.append((0.0, f"{attentions[0] - attentions[1]} fused attentions are gone"))
    fused = [sum(max(len(layer.sources) - 1, 0) for layer in each.products) for each in (first, second)]
    if fused[0] > fused[1]:
        found.append((0.0, f"{fused[0] - fused[1]} operators that were fused into products run by themselves"))
    types = [Counter(layer.type for layer in each.layers) for each in (first, second)]
    for name, count in types[0].items():
        if name.startswith(("Fused", "Bias", "Skip")) and count > types[1][name]:
            found.append((0.0, f"{count - types[1][name]} of {count} {name} are gone"))
    return found
