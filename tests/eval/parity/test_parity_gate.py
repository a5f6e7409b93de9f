"""What the gate of `export.py` is for: each fault that a file can have is refused, on each target, by its name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from engine.passes.qdq import TARGETS, prepare_for_target
from eval.parity import check as parity
from eval.parity.check import check_parity
from eval.parity.limits import Comparison, Limits, compare, quantized_limits
from eval.parity.rounding_noise import rounding_noise
from quant.insert import insert_quantizers
from quant.onnx_export import export_onnx
from quant.recipe import load_recipe
from quant.tensor_quantizer import named_quantizers, rounded_scales
from tests.eval import tiny


@pytest.fixture(scope="module")
def gate():
    """A tiny BERT whose sites have ranges 3 % apart, in scales that every target's type can hold, and its export."""
    loaded = tiny.bert()
    loaded.model.config._attn_implementation = "sdpa"
    torch.manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if name.endswith("bias"):  # zeros as they are made: equal constants, of which the exporter keeps one
            torch.nn.init.normal_(parameter, std=0.1)
    insert_quantizers(loaded.model, load_recipe("int8_full"))
    for i, (name, quantizer) in enumerate(named_quantizers(loaded.model)):
        weight = getattr(loaded.model.get_submodule(name.rpartition(".")[0]), "weight", None)
        if name.endswith("weight_quantizer"):
            quantizer.set_amax(weight.detach().abs().amax(1))
        else:
            quantizer.set_amax(torch.ones(1) if "softmax" in name else torch.full((1,), 3 * 1.03**i))
    with rounded_scales(loaded.model, torch.bfloat16), pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.parity.random_feeds.NUM_ROUNDS", 4)
        yield loaded, export_onnx(loaded.model, processor=loaded.processor)


def lost_mask(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[i] = "all_ones"
    graph.node.insert(0, onnx.helper.make_node("Pow", ["attention_mask", "zero_exponent"], ["all_ones"]))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "zero_exponent"))


def scaled(suffix: str):
    def change(graph: onnx.GraphProto) -> None:
        found = next(each for each in graph.initializer if each.name.endswith(suffix))
        array = numpy_helper.to_array(found)
        found.CopyFrom(numpy_helper.from_array((array * 1.02).astype(array.dtype), found.name))

    return change


def missing_quantizer(graph: onnx.GraphProto) -> None:
    constants = {each.name for each in graph.initializer}
    quantize = next(n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in constants)
    dequantize = next(n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] == quantize.output[0])
    rewire(graph, {dequantize.output[0]: quantize.input[0]})


def wrong_axis(graph: onnx.GraphProto) -> None:
    for node in graph.node:  # 32 x 32: the scales fit both axes
        if any(name.endswith("0.attention.self.key.weight_quantizer.export_scale") for name in node.input):
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("axis", 1))


def swapped_input(graph: onnx.GraphProto) -> None:
    key, value = (
        next(n.output[0] for n in graph.node if any(i.endswith(f"0.attention.self.{name}.bias") for i in n.input))
        for name in ("key", "value")
    )
    rewire(graph, {key: value, value: key})


def rewire(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)


FAULTS = {
    "a lost mask": (lost_mask, r"what stands in the padding\. Look for a lost mask"),
    "an input's scale off by 2 %": (scaled("1.output.dense.input_quantizer.export_scale"), "has its scale"),
    "a weight's scale off by 2 %": (
        scaled("key.weight_quantizer.export_scale"),
        r"key\.weight_quantizer: .*(differ|holds no INT8 constant)",
    ),
    "one missing quantizer": (missing_quantizer, r"no QuantizeLinear has its scale"),
    "a wrong axis": (wrong_axis, r"key\.weight_quantizer: .*(differ|holds no INT8 constant)"),
    "a swapped input": (swapped_input, r"the file does not compute what the quantized model computes: .* mean of"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_fault_is_refused_by_its_name(tmp_path, gate, target, fault):
    loaded, exported = gate
    change, message = FAULTS[fault]
    broken = onnx.ModelProto()
    broken.CopyFrom(exported)
    if change is lost_mask:  # target tensorrt8 makes a mask of its own: lost behind that
        broken = prepare_for_target(broken, target)
        change(broken.graph)
    else:
        change(broken.graph)
        broken = prepare_for_target(broken, target)
    onnx.save(broken, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=message) as caught:
        check_parity(tmp_path / "model.onnx", loaded, backend=target)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_the_file_without_a_fault_passes(tmp_path, gate, target):
    loaded, exported = gate
    onnx.save(prepare_for_target(exported, target), tmp_path / "model.onnx")
    report = check_parity(tmp_path / "model.onnx", loaded, backend=target)
    assert report.num_flips == 0 and report.file_error_mean < 0.5 * report.quantization_error_mean


def test_an_engine_that_is_not_its_file_is_told_apart_from_a_wrong_file(tmp_path, gate, monkeypatch):
    """The file is right; the engine's outputs are not: as kernels that saturate would give."""
    loaded, exported = gate
    onnx.save(prepare_for_target(exported, "onnxruntime"), tmp_path / "model.onnx")
    real = parity._engine

    class Wrong:
        def __init__(self, runner):
            self.input_names, self._runner = runner.input_names, runner

        def __call__(self, feeds):
            return {name: y * 0.5 for name, y in self._runner(feeds).items()}

    @parity.contextmanager
    def engine(*arguments):
        with real(*arguments) as runner:
            yield Wrong(runner)

    monkeypatch.setattr(parity, "_engine", engine)
    for saturation, why in (("allow", "no VNNI, and INT8 sums saturate"), (None, "round otherwise")):
        monkeypatch.setattr(parity, "cpu_flags", lambda: ("avx2",))
        monkeypatch.setattr("engine.hardware.platform.machine", lambda: "x86_64")
        with pytest.raises(ValueError, match=rf"the file is right as written \(.*but the engine that onnx.*{why}"):
            check_parity(tmp_path / "model.onnx", loaded, saturation=saturation)


def test_a_half_type_that_rounds_otherwise_is_told_apart_from_a_wrong_file(tmp_path, gate, monkeypatch):
    """A sum that keeps few digits in bf16: the graph is right in fp32, and the message says so."""
    loaded, exported = gate
    graph = onnx.ModelProto()
    graph.CopyFrom(exported)
    bias = next(n for n in graph.graph.node if any(i.endswith("0.intermediate.dense.bias") for i in n.input))
    for name, number in (("huge", 6e4), ("less_huge", -6e4)):  # x + 60000 - 60000 keeps no digit of x in bf16
        graph.graph.initializer.append(numpy_helper.from_array(np.array(number, np.float32), name))
    inner = onnx.helper.make_node("Add", [bias.output[0], "huge"], ["raised"])
    outer = onnx.helper.make_node("Add", ["raised", "less_huge"], ["lowered"])
    rewire(graph.graph, {bias.output[0]: "lowered"})
    inner.input[0] = bias.output[0]
    place = list(graph.graph.node).index(bias) + 1
    graph.graph.node.insert(place, outer)
    graph.graph.node.insert(place, inner)
    onnx.save(prepare_for_target(graph, "tensorrt", dtype="bf16"), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"bf16 rounds otherwise: the file's graph is right in fp32 .*other --dtype"):
        check_parity(tmp_path / "model.onnx", loaded, backend="tensorrt")


@pytest.mark.parametrize(("dtype", "bias"), [("bf16", 3e4), ("fp16", 6.6e4)], ids=["no digit left", "infinite"])
def test_a_half_type_in_which_the_model_itself_is_lost_is_refused(tmp_path, gate, dtype, bias):
    """Whatever PyTorch's own error in that type: it does not excuse any file."""
    loaded, exported = gate
    classifier = loaded.model.classifier
    before = classifier.bias.detach().clone()
    graph = onnx.ModelProto()
    graph.CopyFrom(exported)
    try:
        classifier.bias.data += bias
        with pytest.raises(ValueError, match=rf"{dtype} rounds otherwise: PyTorch itself, .*other --dtype"):
            onnx.save(prepare_for_target(graph, "tensorrt", dtype=dtype), tmp_path / "model.onnx")
            check_parity(tmp_path / "model.onnx", loaded, backend="tensorrt")
    finally:
        classifier.bias.data.copy_(before)


def logits(*rows: tuple[float, float]) -> list[dict[str, np.ndarray]]:
    return [{"logits": np.array(rows)}]


def test_a_near_tie_in_a_hundred_never_decides():
    """Two of a hundred rows lie nearer to a tie than other roundings move them: no flip. A wide margin is one."""
    fake = logits(*[(1.0, -1.0)] * 98, (0.001, 0.0), (0.002, 0.0))
    plain = logits(*[(1.2, -1.2)] * 98, (0.1, -0.1), (0.1, -0.1))
    rounded = logits(*[(1.01, -1.0)] * 98, (0.0, 0.001), (0.002, 0.0))
    limits = quantized_limits(fake, fake, plain, [rounded])
    assert limits.max_flips == 1 and limits.margin == pytest.approx(0.02)
    ties = logits(*[(1.0, -1.0)] * 98, (0.0, 0.001), (0.0, 0.002))
    found = compare(ties, fake, fake, limits.margin)
    assert (found.num_flips, limits.admits(found)) == (0, True)
    wrong = logits(*[(1.0, -1.0)] * 96, (-1.0, 1.0), (-1.0, 1.0), (0.001, 0.0), (0.002, 0.0))
    found = compare(wrong, fake, fake, limits.margin)
    assert found.num_flips == 2 and not limits.admits(found)


def test_a_mean_error_beyond_what_rounding_explains_is_refused():
    limits = Limits(max_mean=0.1, margin=0.2, max_flips=1)
    assert limits.admits(Comparison(3.0, 0.09, 1, 100)) and not limits.admits(Comparison(3.0, 0.11, 0, 100))
    assert limits.admits(Comparison(9e-6, 9e-6, 5, 100)), "equal to 1e-5 is equal"


def test_rounding_noise_is_that_of_float32_and_ends_with_its_block(gate, monkeypatch):
    loaded, _ = gate
    inputs = loaded.processor("a film is good", return_tensors="pt")
    with torch.no_grad():
        before = loaded.model(**inputs).logits
        with rounding_noise(loaded.model):
            torch.testing.assert_close(loaded.model(**inputs).logits, before, rtol=1e-5, atol=1e-5)
        monkeypatch.setattr("eval.parity.rounding_noise.STEP", 1e-2)  # more than an INT8 step: every site is disturbed
        with rounding_noise(loaded.model):
            assert not torch.allclose(loaded.model(**inputs).logits, before, atol=1e-2)
        assert torch.equal(loaded.model(**inputs).logits, before)
