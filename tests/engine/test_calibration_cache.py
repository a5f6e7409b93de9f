"""The calibration cache: TensorRT's own bits, what is read is what was written, and a float graph that fits it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from engine.calibration_cache import CalibrationCache, fill_scales, main, read_cache, version_number, write_cache
from engine.passes.float_graph import activation_scales, without_quantization
from engine.passes.qdq import prepare_for_target
from tests.engine.graphs import count, linear_model, run_plain, samples, table_model


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, arguments)])
    return int(stopped.value.code or 0)


def test_the_bits_are_those_of_tensorrts_own_caches(tmp_path):
    # Lines of the cache that TensorRT's sampleINT8 ships for MNIST, and the floats they stand for.
    text = "TRT-7000-EntropyCalibration2\ndata: 3c008912\nconv1: 3c88edfc\n(Unnamed Layer* 3) [Shuffle]: out: 0\n"
    path = tmp_path / "calib.cache"
    path.write_text(text)
    cache = read_cache(path)
    assert (cache.version, cache.algorithm) == (7000, "EntropyCalibration2")
    assert cache.scales["data"] * 127 == pytest.approx(0.99634, abs=1e-5)  # pixels in [0, 1]
    assert cache.scales["(Unnamed Layer* 3) [Shuffle]: out"] == 0
    write_cache(cache, tmp_path / "again.cache")
    assert (tmp_path / "again.cache").read_text() == text


def test_every_float32_scale_survives_the_file(tmp_path):
    scales = {f"t{i}": float(np.float32(x)) for i, x in enumerate(np.geomspace(1e-30, 1e30, 50))}
    write_cache(CalibrationCache(8503, "MinMaxCalibration", scales), tmp_path / "c")
    assert read_cache(tmp_path / "c").scales == scales


@pytest.mark.parametrize(
    ("text", "number"), [("8.5.3", 8503), ("8.5.3.1", 8503), ("10.14.1", 101401), ("10.0.1", 100001)]
)
def test_versions_are_numbered_as_tensorrt_does(text, number):
    assert version_number(text) == number


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "first line is not like TRT-8503"),
        (b"\xff\xfe\x00", "is no text"),
        (b"hello\n", "first line is not like"),
        (b"TRT-8503-EntropyCalibration2\nx: zz\n", "line 2: 'x: zz' is not"),
        (b"TRT-8503-EntropyCalibration2\nx: 3c008912\nnonsense\n", "line 3"),
    ],
)
def test_what_is_no_cache_is_refused(tmp_path, content, message):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_cache(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="no calibration cache"):
        read_cache(tmp_path / "missing")


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_the_scales_and_the_float_graph_are_those_of_the_file(target):
    prepared = prepare_for_target(linear_model(num_siblings=2), target)
    assert activation_scales(prepared) == {"x": pytest.approx(0.02)}
    plain = without_quantization(prepared)
    onnx.checker.check_model(plain)
    assert count(plain, "QuantizeLinear") == count(plain, "DequantizeLinear") == 0
    float_outputs = run_plain(linear_model(num_siblings=2, quantized=False), samples())
    for y, expected in zip(run_plain(plain, samples()), float_outputs, strict=True):
        # what is left is the rounding of the weights: at most half a step of each of 16 products
        np.testing.assert_allclose(y, expected, atol=0.6)
        assert not np.array_equal(y, expected)


def test_a_float_weight_behind_q_dq_is_given_back_to_the_bit():
    plain = without_quantization(linear_model())
    np.testing.assert_array_equal(
        run_plain(plain, samples())[0], run_plain(linear_model(quantized=False), samples())[0]
    )


@pytest.mark.parametrize("per_column", [True, False])
def test_an_embedding_table_becomes_float_rows(per_column):
    prepared = prepare_for_target(table_model(per_column), "openvino")
    feeds = {"ids": np.arange(6).reshape(2, 3)}
    plain = without_quantization(prepared)
    np.testing.assert_allclose(run_plain(plain, feeds)[0], run_plain(prepared, feeds)[0], rtol=1e-6)
    assert count(plain, "DequantizeLinear") == 0


def test_tensors_without_a_quantizer_get_their_maximum():
    plain = without_quantization(prepare_for_target(linear_model(), "openvino"))
    scales = fill_scales(plain, {"x": 0.02}, samples(11))
    assert scales["x"] == 0.02
    assert scales["y0"] == pytest.approx(np.abs(run_plain(plain, samples(11))[0]).max() / 127)
    with pytest.raises(ValueError, match="--feeds lack x"):
        fill_scales(plain, {}, {"z": np.ones((2, 16), np.float32)})


def test_an_asymmetric_tensor_is_refused():
    model = linear_model()
    for tensor in model.graph.initializer:
        if tensor.name == "x_zero":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.int8(5), "x_zero"))
    with pytest.raises(ValueError, match="tensor x has a zero point other than"):
        activation_scales(model)


def test_the_command_writes_reads_and_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(prepare_for_target(linear_model(), "onnxruntime"), "model.onnx")
    onnx.save(linear_model(quantized=False), "float.onnx")
    np.savez("feeds.npz", **samples(4))
    written = ["--onnx", "model.onnx", "--out", "c", "--float-onnx", "plain.onnx", "--feeds", "feeds.npz"]
    assert call(*written) == 0 and "tensors for TensorRT 8.5.3" in capsys.readouterr().out
    assert call("--read", "c") == 0 and "  x" in capsys.readouterr().out
    for arguments, code, message in (
        (written, 1, "c exists"),
        (["--onnx", "model.onnx"], 2, "--onnx needs --out"),
        (["--onnx", "model.onnx", "--out", "d", "--trt-version", "11.0.0"], 2, "exists in 7.x to 10.x"),
        (["--onnx", "float.onnx", "--out", "d"], 1, "quantizes no activation"),
        (["--onnx", "model.onnx", "--out", "d", "--feeds", "feeds.npz"], 2, "--float-onnx"),
        ([], 2, "give either --onnx"),
    ):
        assert call(*arguments) == code
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert not (tmp_path / "d").exists()
