"""What the kernels of TensorRT engines spend their time on, from traces of `engine.inspect.cupti`: rows and a picture.

python -m benchmarks.gpu.fake_quantize fp16=E1.kernels.json int8_full=E2.kernels.json ... --out rows.jsonl \\
    --plot kernels.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.rows import append_row
from engine.backends.tensorrt.inspect import TRACE_SUFFIX
from engine.inspect.kernel_trace import Kernel, read_trace
from engine.manifest import manifest_path, parse_manifest

QUIET = "norms, softmax, GELU, quantizing"
GROUPS = {
    "INT8 products": "#1b7f5c",
    "fp16 products": "#5b8dc9",
    "fp32 and TF32 products": "#9db8d9",
    "casts and moves alone": "#c9553d",
    QUIET: "#d9b44a",
}


def group_of(kernel: Kernel) -> str:
    """Return the group of a kernel by its name; Myelin's names list their operations (Cas: cast, Res: reshape, ...)."""
    if kernel.is_product:
        return {"int8": "INT8 products", "fp16": "fp16 products"}.get(kernel.precision, "fp32 and TF32 products")
    words = kernel.name.rsplit("_", 1)[-1]
    parts = {words[i : i + 3] for i in range(0, len(words), 3)}
    return "casts and moves alone" if parts <= {"Cas", "Mov", "Res", "Tra"} else QUIET


def summarize(path: str) -> dict[str, dict[str, float]]:
    """Return for each group the number of kernels of one call and their microseconds."""
    sums = {name: {"count": 0, "us": 0.0} for name in GROUPS}
    for kernel in read_trace(path):
        one = sums[group_of(kernel)]
        one["count"] += kernel.count
        one["us"] += (kernel.time_ms or 0.0) * 1e3
    return sums


def plot(engines: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw one bar for each engine, divided by what its kernels do."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.62 * len(engines) + 1.6), layout="constrained")
    for row, (_name, groups) in enumerate(engines.items()):
        left = 0.0
        for group, color in GROUPS.items():
            width = groups[group]["us"]
            axes.barh(row, width, left=left, color=color, edgecolor="white", height=0.66,
                      label=group if row == 0 else None)  # fmt: skip
            if width > 25:
                axes.text(left + width / 2, row, f"{width:.0f}", ha="center", va="center", fontsize=9,
                          color="#222222" if color == GROUPS[QUIET] else "white")  # fmt: skip
            left += width
        axes.text(left + 5, row, f"{left:.0f} µs", va="center", fontsize=9)
    axes.set_yticks(range(len(engines)), list(engines))
    axes.invert_yaxis()
    axes.set_xlim(0, max(sum(g["us"] for g in each.values()) for each in engines.values()) * 1.12)
    axes.set_xlabel("kernel time of one call, µs")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=3, fontsize=9, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", metavar="NAME=TRACE")
    parser.add_argument("--model", required=True, help="what the rows call the model")
    parser.add_argument("--out", required=True)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    paths = dict(each.split("=", 1) for each in arguments.traces)
    engines = {name: summarize(path) for name, path in paths.items()}
    for name, groups in engines.items():
        built = parse_manifest(manifest_path(paths[name].removesuffix(TRACE_SUFFIX)))
        shapes = {key: str(each) for key, each in built.shapes.items()}
        append_row(arguments.out, "kernels", model=arguments.model, engine=name, groups=groups, gpu=built.device,
                   tensorrt=built.versions.get("tensorrt"), shapes=shapes)  # fmt: skip
        print(name, {group: round(each["us"], 1) for group, each in groups.items()})
    if arguments.plot:
        plot(engines, arguments.plot)


if __name__ == "__main__":
    main()
