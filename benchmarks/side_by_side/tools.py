"""The tools: for each its recipe, where the recipe leaves its INT8 file, and what is to be known about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.runtimes import Artifact, engine_artifact

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Tool:
    """One row of the table.

    Attributes:
        title: what the table calls it.
        recipe: file in recipes/.
        environment: the KEY of `--python KEY=PATH` that runs it; "int8kit" is this project's own.
        packages: whose versions its row tells.
        made: pattern of its INT8 file in the folder that it is given.
        arguments: words that the recipe takes after the job's.
    """

    title: str
    recipe: str
    environment: str
    packages: tuple[str, ...]
    made: str
    arguments: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where the recipe stands."""
        return RECIPES / self.recipe

    def artifact(self, folder: Path) -> Artifact:
        """Return what the recipe left in `folder`. Raises: FileNotFoundError: nothing, or several files."""
        found = sorted(folder.glob(self.made))
        if len(found) != 1:
            raise FileNotFoundError(f"{self.recipe} left {len(found)} files {self.made}; one is expected")
        return engine_artifact(found[0])


TOOLS = {
    "int8kit": Tool("int8kit", "int8kit.sh", "int8kit", ("onnxruntime",), "engine"),
    "int8kit-openvino": Tool("int8kit, OpenVINO", "int8kit_openvino.sh", "int8kit", ("openvino",), "engine"),
    "optimum": Tool("optimum-intel", "optimum_intel.py", "optimum", ("optimum-intel", "nncf", "openvino"),
                    "openvino_model.xml"),
    "nncf": Tool("NNCF", "nncf_openvino.py", "nncf", ("nncf", "openvino"), "model.xml"),
    "olive-example": Tool("Olive, as its example", "olive_example.sh", "olive", ("olive-ai", "onnxruntime"),
                          "model.onnx"),
    "olive": Tool("Olive, matrix products", "olive_products.sh", "olive", ("olive-ai", "onnxruntime"), "model.onnx"),
    "modelopt": Tool("ModelOpt, ONNX", "modelopt_onnx.py", "modelopt", ("nvidia-modelopt", "onnxruntime"),
                     "model.onnx"),
    "ort-static": Tool("ONNX Runtime's tool, static", "ort_static.py", "onnxruntime", ("onnxruntime",), "model.onnx"),
    "ort-dynamic": Tool("ONNX Runtime's tool, dynamic", "ort_dynamic.py", "onnxruntime", ("onnxruntime",),
                        "model.onnx"),
}  # fmt: skip

# Searches for what to quantize: a row file of their own, from twice the sentences.
SEARCHES = {
    "search-int8kit": Tool("int8kit search", "search_int8kit.sh", "int8kit", ("onnxruntime",), "engine",
                           ("onnxruntime",)),
    "search-int8kit-openvino": Tool("int8kit search, OpenVINO", "search_int8kit.sh", "int8kit", ("openvino",), "engine",
                                    ("openvino",)),
    "search-nncf": Tool("NNCF, accuracy control", "search_nncf.py", "nncf", ("nncf", "openvino"), "model.xml"),
    "search-modelopt": Tool("ModelOpt, auto_quantize", "search_modelopt.py", "modelopt", ("nvidia-modelopt",),
                            "model.onnx"),
}  # fmt: skip


def get_tool(key: str) -> Tool:
    """Return the tool registered under `key`. Raises: ValueError: naming those there are."""
    known = TOOLS | SEARCHES
    if key not in known:
        raise ValueError(f"no tool {key!r}; choose from {', '.join(known)}")
    return known[key]
