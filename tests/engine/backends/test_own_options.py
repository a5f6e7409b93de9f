"""Options of one backend alone: from manifests of before, and never taken by another backend."""

from __future__ import annotations

import json

import pytest

from engine.backend import BuildOptions, get_backend
from engine.backends.own_options import own_as_json, own_from_json, own_from_words
from engine.backends.tensorrt.options import TensorRTOptions
from engine.cli import UsageError
from engine.manifest import parse_manifest

# As build_engine.py wrote it before a backend declared its options itself (TensorRT-RTX 1.7.1.116).
WRITTEN_BEFORE = """{"are_products_measured": false,
"backend": "tensorrt_rtx", "cpu_flags": [], "device": "a CPU, no GPU",
"engine_data_sha256": null, "engine_sha256": "60af",
"metadata": {"int8kit.dtype": "fp16", "int8kit.target": "tensorrt"},
"onnx": "tensorrt.onnx", "onnx_data_sha256": null, "onnx_sha256": "e954", "options": {"builder_level": 3,
"compute_capabilities": ["8.9"], "hardware_compatibility": null, "refit": true, "tactic_sources": [],
"timing_cache": null, "version_compatible": false, "workspace_mib": null}, "precision": "fp16", "products":
{"attention_float": [], "attention_int8": [], "float": [], "int8": ["lin0"]}, "recipe_digest": null, "saturation": null,
"schema": 1, "shapes": {"x": {"max": [4, 16], "min": [4, 16], "opt": [4, 16]}}, "size_bytes": 269756,
"target": "tensorrt", "threads": 1, "trtexec": "tensorrt_rtx --onnx=tensorrt.onnx", "versions": {"tensorrt_rtx": "1.7"},
"warnings": []}"""


def test_a_manifest_of_before_is_read_with_its_options(tmp_path):
    (tmp_path / "engine.json").write_text(WRITTEN_BEFORE)
    manifest = parse_manifest(tmp_path / "engine.json")
    options = own_from_json(manifest.options, manifest.backend, "engine.json")
    assert options == TensorRTOptions(builder_level=3, refit=True, compute_capabilities=("8.9",))
    assert json.loads(json.dumps(own_as_json(options))) == json.loads(WRITTEN_BEFORE)["options"]


def test_words_are_read_for_the_backend_that_has_them_alone(capsys):
    words = "--builder-level 3 --tactic-sources CUBLAS CUDNN"
    assert own_from_words("--build-arguments", words, "tensorrt") == TensorRTOptions(None, 3, None, ("CUBLAS", "CUDNN"))
    assert own_from_words("--build-arguments", words, "openvino") is None
    with pytest.raises(UsageError, match="--builder-level 9 must be 0 to 5"):
        own_from_words("--build-arguments", "--builder-level 9", "tensorrt_rtx")
    with pytest.raises(SystemExit):
        own_from_words("--build-arguments", "--builder-levl 3", "tensorrt")
    assert "did you mean --builder-level" in capsys.readouterr().err


def test_a_backend_refuses_the_options_of_another(tmp_path):
    with pytest.raises(UsageError, match="backend openvino takes no TensorRTOptions; leave them out"):
        get_backend("openvino").build(
            tmp_path / "m.onnx", tmp_path / "e", BuildOptions(own=TensorRTOptions(refit=True))
        )
