r"""Where a call's time goes, fp16 beside INT8: a picture of the kernels in rows of `benchmarks.gpu.engines --profile`.

    python -m benchmarks.gpu.profile_plot --rows benchmarks/results/gpu_engines.jsonl --stack bert-base:128x128 \
        vit-b:128x197 vit-b:32x197 --out docs/images/gpu_profile.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.rows import read_rows
from eval.report.figure_style import COLORS, new_figure

GROUPS = ("products", "attention", "norms, residuals", "activation alone", "rest")


def group_of(kernel: dict[str, Any]) -> str:
    """Return the bar that a kernel belongs to; a GELU inside a product is part of it."""
    name, kind = kernel["name"], kernel["kind"]
    if kind in ("product", "attention"):
        return "products" if kind == "product" else kind
    if "gelu" in name:
        return "activation alone"
    return "norms, residuals" if kind == "norm" or "layer_norm" in name else "rest"


def in_groups(kernels: list[dict[str, Any]]) -> dict[str, float]:
    """Return group → milliseconds of a call's kernels."""
    sums = dict.fromkeys(GROUPS, 0.0)
    for kernel in kernels:
        sums[group_of(kernel)] += kernel["us"] / 1e3
    return sums


def bars(row: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return side → group → milliseconds."""
    return {side: in_groups(row[key]["kernels"]) for side, key in (("fp16", "twin"), ("INT8", "engine"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--stack", nargs="+", metavar="MODEL:BxS", help="those that are drawn (default: all)")
    args = parser.parse_args()
    rows = [row for row in read_rows(args.rows) if "kernels" in row["engine"]]
    last = {(row["model"], row["batch"], row["length"]): row for row in rows
            if args.stack is None or f"{row['model']}:{row['batch']}x{row['length']}" in args.stack}  # fmt: skip
    figure, axis = new_figure(9.6, 0.9 + 0.62 * len(last))
    labels, place = [], 0.0
    for (model, batch, length), row in last.items():
        for side, sums in bars(row).items():
            left = 0.0
            for group, color in zip(GROUPS, COLORS, strict=False):
                axis.barh(place, sums[group], left=left, color=color, label=group if place == 0 else None, height=0.8)
                if sums[group] > 0.38:
                    axis.text(left + sums[group] / 2, place, f"{sums[group]:.2f}", ha="center", va="center",
                              color="white", fontsize=8)  # fmt: skip
                left += sums[group]
            labels.append((place, f"{model} {batch} x {length}  {side}"))
            print(f"{model} {batch}x{length} {side}: {', '.join(f'{k} {v:.3f}' for k, v in sums.items())} ms")
            place += 1
        place += 0.5
    axis.set_yticks([at for at, _ in labels], [text for _, text in labels])
    axis.invert_yaxis()
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("ms of kernels in one call")
    figure.legend(loc="outside lower center", ncols=len(GROUPS))
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=130, facecolor="white", metadata={"Software": None})


if __name__ == "__main__":
    main()
