"""INT8 sums are exact in both CPU runtimes, whatever the CPU: engines against integer arithmetic in int64."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from engine import backend as backend_module
from engine.backend import BuildOptions, get_backend
from engine.backends.onnxruntime.backend import OrtRunner, make_session_options, plain_session
from engine.cli import UsageError
from engine.hardware import cpu_flags, int8_outlook, saturates
from engine.manifest import manifest_path, read_manifest
from engine.passes.qdq import prepare_for_target
from tests.engine.backends.test_backends import NAMES, build
from tests.engine.graphs import WIDTH, make_model, quantize, samples

# Sums over up to 200 products in fp32: 200 x 2^-24 of the largest partial sum at worst, 1e-5 of it.
TOLERANCE = 1e-5
EXAMPLES = 200


def product_model(codes: np.ndarray, x_scale: float, w_scale: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """Return x (batch, K) -> x @ codes * scales + bias, with Q/DQ as `export.py` writes it; codes (N, K), int8."""
    constants = {
        "x_scale": np.float32(x_scale), "x_zero": np.int8(0), "w": codes.astype(np.float32) * w_scale[:, None],
        "w_scale": w_scale, "w_zero": np.zeros(len(codes), np.int8), "bias": bias,
    }  # fmt: skip
    nodes = [
        *quantize("x", "x_dq", "x_scale", "x_zero", "x"),
        *quantize("w", "w_dq", "w_scale", "w_zero", "w", axis=0),
        helper.make_node("Transpose", ["w_dq"], ["w_t"], name="transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["x_dq", "w_t"], ["xw"], name="product"),
        helper.make_node("Add", ["xw", "bias"], ["y"], name="add"),
    ]
    size_out, size_in = codes.shape
    inputs = [("x", TensorProto.FLOAT, ["batch", size_in])]
    return make_model(nodes, inputs, [("y", TensorProto.FLOAT, ["batch", size_out])], constants)


def codes_of(kind: str, shape: tuple[int, int], seed: int) -> np.ndarray:
    """Return int8 codes: all the largest, all the smallest, ends in turn, one value, small or any numbers."""
    rng = np.random.default_rng(seed)
    made = {
        "largest": np.full(shape, 127),
        "smallest": np.full(shape, -128),
        "one": np.full(shape, rng.integers(-128, 128)),
        "ends": rng.choice([-128, 127], shape),
        "small": rng.integers(-3, 4, shape),
        "any": rng.integers(-128, 128, shape),
    }
    return made[kind].astype(np.int64)


KINDS = st.sampled_from(["largest", "smallest", "one", "ends", "small", "any"])
LAYERS = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 9), "size_in": st.integers(1, 200), "size_out": st.integers(1, 70),
        "x_kind": KINDS, "w_kind": KINDS, "x_scale": st.floats(1e-4, 10), "seed": st.integers(0, 2**31),
    }
)  # fmt: skip


def check_layer(backend, folder: Path, layer: dict) -> None:
    """Assert that an engine of one random layer computes the integers' sums."""
    rng = np.random.default_rng(layer["seed"])
    x = codes_of(layer["x_kind"], (layer["batch"], layer["size_in"]), layer["seed"] + 1)
    w = codes_of(layer["w_kind"], (layer["size_out"], layer["size_in"]), layer["seed"] + 2)
    x_scale = np.float32(layer["x_scale"])
    w_scale = rng.uniform(1e-3, 0.1, layer["size_out"]).astype(np.float32)
    scales = np.float64(x_scale) * w_scale
    bias = rng.normal(size=layer["size_out"]).astype(np.float32)
    expected = (x @ w.T) * scales + bias
    largest = float((np.abs(x) @ np.abs(w.T) * scales + np.abs(bias)).max())
    onnx.save(prepare_for_target(product_model(w, x_scale, w_scale, bias), backend.name), folder / "layer.onnx")
    backend.build(folder / "layer.onnx", folder / "engine", BuildOptions(threads=1, force=True))
    with backend.load(folder / "engine") as runner:
        y = runner({"x": x.astype(np.float32) * x_scale})["y"]
    assert np.abs(y - expected).max() <= TOLERANCE * largest, layer


@pytest.mark.parametrize("name", NAMES)
def test_two_hundred_random_layers_are_summed_as_in_int64(tmp_path_factory, name):
    folder, backend = tmp_path_factory.mktemp(name), get_backend(name)

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(layer=LAYERS)
    def check(layer: dict) -> None:
        check_layer(backend, folder, layer)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_built_for_a_cpu_without_vnni_is_right_on_any(tmp_path, monkeypatch, name):
    monkeypatch.setattr(backend_module, "cpu_flags", lambda: ("avx2",))
    for seed, kind in enumerate(["largest", "ends", "any"]):
        layer = {"batch": 4, "size_in": 96, "size_out": 33, "x_kind": kind, "w_kind": kind, "x_scale": 0.02}
        layer["seed"] = seed
        check_layer(get_backend(name), tmp_path, layer)
    manifest = read_manifest(tmp_path / "engine")
    assert manifest.saturation == "avoided"
    assert (
        "this CPU has no VNNI" in manifest.warnings[0]
        and get_backend(name).info.saturation_mend in manifest.warnings[0]
    )


def test_a_file_with_int8_activations_builds_and_is_right(tmp_path, monkeypatch):
    """As ModelOpt and target tensorrt write it: ONNX Runtime has no kernel of int8 by the uint8 that it makes."""
    monkeypatch.setattr(backend_module, "cpu_flags", lambda: ("avx2",))
    codes = codes_of("ends", (24, 64), 3)
    model = product_model(codes, 0.02, np.full(24, 0.01, np.float32), np.zeros(24, np.float32))
    onnx.save(model, tmp_path / "m.onnx")  # the exporter's graph, as it is
    x = {"x": (codes_of("any", (9, 64), 4) * 0.02).astype(np.float32)}
    expected = plain_session(str(tmp_path / "m.onnx")).run(None, x)[0]
    backend = get_backend("onnxruntime")
    backend.build(tmp_path / "m.onnx", tmp_path / "engine", BuildOptions(threads=1))
    with backend.load(tmp_path / "engine") as runner:
        np.testing.assert_allclose(runner(x)["y"], expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("num_weights", [1, 3], ids=["one weight of three", "one zero point of three"])
def test_products_that_share_a_weight_or_zero_point_build(tmp_path, monkeypatch, num_weights):
    """ONNX Runtime's own mend fails where products share either; `own_constants` can go when it does not."""
    monkeypatch.setattr(backend_module, "cpu_flags", lambda: ("avx2",))
    backend, rng = get_backend("onnxruntime"), np.random.default_rng(0)
    nodes = [node for i in range(3) for node in quantize(f"x{i}", f"x_dq{i}", "x_scale", "x_zero", f"x{i}")]
    nodes = [helper.make_node("Identity", ["x"], ["x0"]), *nodes]  # three inputs: else products of one weight are one
    nodes[0:0] = [helper.make_node("Mul", ["x", f"by{i}"], [f"x{i}"]) for i in (1, 2)]
    constants = {"by1": np.float32(0.5), "by2": np.float32(2), "x_scale": np.float32(0.02), "x_zero": np.int8(0)}
    constants["zeros"] = np.zeros(WIDTH, np.int8)
    for i in range(num_weights):
        constants[f"w{i}"] = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)
        constants[f"s{i}"] = rng.uniform(0.02, 0.05, WIDTH).astype(np.float32)
        nodes += quantize(f"w{i}", f"w_dq{i}", f"s{i}", "zeros", f"w{i}", axis=1)
    for i in range(3):
        nodes.append(helper.make_node("MatMul", [f"x_dq{i}", f"w_dq{i % num_weights}"], [f"y{i}"], name=f"product{i}"))
    outputs = [(f"y{i}", TensorProto.FLOAT, ["batch", WIDTH]) for i in range(3)]
    model = prepare_for_target(
        make_model(nodes, [("x", TensorProto.FLOAT, ["batch", WIDTH])], outputs, constants), "onnxruntime"
    )
    onnx.save(model, tmp_path / "m.onnx")
    backend.build(tmp_path / "m.onnx", tmp_path / "engine", BuildOptions(threads=1))
    expected = plain_session(str(tmp_path / "m.onnx")).run(None, samples(64))
    with backend.load(tmp_path / "engine") as runner:
        for y, ref in zip(runner(samples(64)).values(), expected, strict=True):
            np.testing.assert_allclose(y, ref, rtol=1e-5, atol=1e-4)
    if saturates(cpu_flags()):
        monkeypatch.setattr("engine.backends.onnxruntime.fusion.own_constants", lambda model: 0)
        with pytest.raises(RuntimeError, match="AddInitializerWithOrtValue"):
            backend.build(tmp_path / "m.onnx", tmp_path / "engine", BuildOptions(threads=1, force=True))


def test_openvino_leaves_its_int8_kernels_where_they_saturate_and_says_so(tmp_path, monkeypatch):
    backend = get_backend("openvino")
    engine = build(tmp_path, backend)
    native = read_manifest(engine)
    monkeypatch.setattr(backend_module, "cpu_flags", lambda: ("avx2",))
    avoided = read_manifest(build(tmp_path, backend, force=True))
    assert (avoided.saturation, avoided.products.int8, avoided.products.float) == ("avoided", (), ("lin0",))
    backend.build(tmp_path / "openvino.onnx", engine, BuildOptions(threads=1, force=True, saturation="allow"))
    allowed = read_manifest(engine)
    assert (allowed.saturation, allowed.products.int8) == ("allowed", ("lin0",))
    assert "does not compute what its file says; build with --saturation avoid" in allowed.warnings[0]
    assert native.saturation == ("avoided" if saturates(cpu_flags()) else "impossible")
    assert bool(native.warnings) == saturates(cpu_flags())


@pytest.mark.skipif(not saturates(cpu_flags()), reason="this CPU has VNNI: its INT8 kernels do not saturate")
@pytest.mark.parametrize("name", NAMES)
def test_the_mend_is_needed_here(tmp_path, name):
    """Fails once a runtime's default kernels are exact without VNNI: then its mend can go."""
    w, ones = codes_of("largest", (8, 64), 0), np.ones(8, np.float32)
    model = prepare_for_target(product_model(w, 1.0, ones, 0 * ones), name)
    onnx.save(model, tmp_path / "m.onnx")
    get_backend(name).build(tmp_path / "m.onnx", tmp_path / "e", BuildOptions(threads=1, saturation="allow"))
    with get_backend(name).load(tmp_path / "e") as runner:
        y = runner({"x": np.full((16, 64), 127, np.float32)})["y"]
    assert (y < 64 * 127 * 127 * 0.99).any()


def test_an_engine_of_the_other_kind_of_cpu_is_refused_in_one_line(tmp_path):
    engine = build(tmp_path, get_backend("onnxruntime"))
    path = manifest_path(engine)
    content = json.loads(path.read_text())
    content["cpu_flags"] = ["avx2"] if not saturates(cpu_flags()) else [*cpu_flags(), "avx512_vnni"]
    path.write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match=r"cannot run here: .*avx512_vnni|also has .*\. Build it here") as caught:
        get_backend("onnxruntime").load(engine)
    assert "\n" not in str(caught.value)


def test_a_saturation_that_nobody_knows_is_refused(tmp_path):
    build(tmp_path, get_backend("onnxruntime"))
    for backend, text, message in (
        ("onnxruntime", "avod", r"--saturation 'avod' is unknown; it takes avoid or allow; did you mean avoid\?"),
        ("tensorrt_rtx", "avoid", "--saturation is of CPUs; backend tensorrt_rtx runs on GPUs"),
    ):
        with pytest.raises(UsageError, match=message):
            get_backend(backend).build(
                tmp_path / "onnxruntime.onnx", tmp_path / "other", BuildOptions(threads=1, saturation=text)
            )
    assert not (tmp_path / "other").exists()


def test_an_engine_loads_without_the_session_option_that_made_it(tmp_path, monkeypatch):
    """Its file holds the uint8 weights; another program's plain session computes the same."""
    import onnxruntime

    monkeypatch.setattr(backend_module, "cpu_flags", lambda: ("avx2",))
    engine = build(tmp_path, get_backend("onnxruntime"))
    expected = plain_session(str(tmp_path / "onnxruntime.onnx")).run(None, samples(64))[0]
    session = onnxruntime.InferenceSession(str(engine), make_session_options(1), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(OrtRunner(session, {})(samples(64))["y0"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("flags", "machine", "text"),
    [
        (("avx2",), "x86_64", "CPU: avx2, no VNNI; INT8 products gain at most about 1.3 times"),
        (("avx2", "avx_vnni"), "AMD64", "CPU: avx2, avx_vnni; with VNNI INT8 products gain at most about 4 times"),
        (("amx_int8", "avx512_vnni"), "x86_64", "at most about 16 times"),
        ((), "x86_64", "CPU: instruction sets unknown; sums of INT8 products are taken to saturate"),
        (("asimddp", "i8mm"), "aarch64", "was not run on this kind of processor"),
    ],
)
def test_the_outlook_says_what_int8_can_gain(flags, machine, text):
    assert text in int8_outlook(flags, machine)
    assert saturates(flags, machine) == (flags in ((), ("avx2",)))
