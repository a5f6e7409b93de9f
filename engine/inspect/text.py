"""The truth report for a terminal: of one engine, or of two side by side."""

from __future__ import annotations

from engine.cli import cut_left, wrapped
from engine.inspect.diff import SHOWN_LAYERS, Difference
from engine.inspect.layers import INT8, Inspection, Layer, by_kind


def as_text(found: Inspection, columns: int, show_all: bool) -> str:
    """Return the report for a terminal of so many columns."""
    version = f" {found.version}" if found.version else ""
    call = f"; a whole call {found.call_ms:.3f} ms" if found.call_ms is not None else ""
    lines = wrapped(f"{found.engine}: {found.backend}{version}, {found.conditions}{call}", columns, rest="  ")
    lines += wrapped(found.share.sentence(), columns, rest="  ")
    lines += ["", f"{'kind':<12}{'layers':>7}{'INT8':>6}{'ms':>10}{'share':>7}"]
    total = found.layers_ms
    for kind, layers in by_kind(found.layers).items():
        time_ms = sum(each.time_ms or 0.0 for each in layers)
        timed = f"{time_ms:10.3f}{100 * time_ms / total:5.0f} %" if total else f"{'-':>10}{'-':>7}"
        int8 = f"{sum(each.precision == INT8 for each in layers):6}" if kind in ("product", "attention") else " " * 6
        lines.append(f"{kind:<12}{len(layers):7}{int8}{timed}")
    shown = (
        list(found.layers)
        if show_all
        else sorted(found.products, key=lambda each: -(each.time_ms or 0.0))[:SHOWN_LAYERS]
    )
    if shown:
        lines += [
            "",
            "every layer, in order:"
            if show_all
            else f"slowest of {len(found.products)} products (--all: every layer):",
        ]
        lines += [_layer_line(each, columns) for each in shown]
    left = [] if show_all else [each for each in found.products if each.precision != INT8 and each not in shown]
    left.sort(key=lambda each: -(each.time_ms or 0.0))
    if left and any(each.precision == INT8 for each in found.products):
        lines += ["", "products not in INT8:", *(_layer_line(each, columns) for each in left[:SHOWN_LAYERS])]
        lines += [f"and {len(left) - SHOWN_LAYERS} more"] if len(left) > SHOWN_LAYERS else []
    for note in found.notes:
        lines += ["", *wrapped(f"note: {note}", columns, rest="  ")]
    return "\n".join(lines)


def _layer_line(layer: Layer, columns: int) -> str:
    timed = f"{layer.time_ms:9.3f}" if layer.time_ms is not None else f"{'-':>9}"
    kernel = (layer.kernel or layer.type).replace(" (CPU)", "")
    room = max(columns - 19, 30)
    half = room * 2 // 5
    return f"{timed} {layer.precision:<8}{kernel[: half - 1]:<{half}} {cut_left(layer.name, room - half - 1)}"


def diff_text(found: Difference, columns: int) -> str:
    """Return a comparison for a terminal of so many columns."""
    lines = []
    for mark, each in (("a", found.first), ("b", found.second)):
        timed = f", {each.layers_ms:.3f} ms in its layers" if each.layers_ms is not None else ", no times"
        lines += wrapped(f"{mark}: {each.engine} ({each.backend}){timed}; {each.share.sentence()}", columns, rest="  ")
    lines += ["", f"{'kind':<12}{'layers a':>9}{'b':>5}{'ms a':>10}{'b':>9}{'b - a':>9}"]
    for kind in found.kinds:
        lines.append(
            f"{kind.kind:<12}{kind.count[0]:9}{kind.count[1]:5}{kind.time_ms[0]:10.3f}{kind.time_ms[1]:9.3f}{kind.delta_ms:+9.3f}"
        )
    slower = [each for each in found.layers if each.delta_ms > 0][:SHOWN_LAYERS]
    if slower:
        lines += ["", "products that lose most in b:"]
        for layer in slower:
            change = f"{layer.delta_ms:+9.3f} {layer.precision[0]} to {layer.precision[1]}"
            lines.append(f"{change:<24} {cut_left(layer.name, max(columns - 25, 20))}")
    lines.append("")
    for reason in found.reasons or ("nothing in b takes more time than in a",):
        lines += wrapped(f"b: {reason}", columns, rest="  ")
    return "\n".join(lines)
