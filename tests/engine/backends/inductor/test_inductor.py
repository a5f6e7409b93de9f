"""Backend inductor without a GPU: what a program says of itself, buckets, refusals, and a runner on the CPU."""

import dataclasses
import re
import zipfile

import numpy as np
import pytest
import torch

from engine.backend import BuildOptions, get_backend
from engine.backends.inductor import backend as inductor
from engine.backends.inductor import runner as runner_module
from engine.backends.inductor.compiled import load_module, tuned_nodes, with_plans
from engine.backends.inductor.inspect import layers_of, op_calls
from engine.backends.inductor.program import PROGRAM, bucket_for, buckets_of, open_stored, ranges_of, read_program
from engine.backends.inductor.runner import InductorRunner
from engine.bug_report.__main__ import main as bug_report
from engine.cli import UsageError
from engine.gpu import Gpu, enough_memory
from engine.shapes import parse_shapes
from engine.source import read_onnx
from eval.parity.program import ProgramRunner, check_program
from kernels.tiles import ProductTile, store_plan
from quant.int8_program.export import export_program, save_program
from quant.models.pretrained import LoadedModel
from tests.families import get_family
from tests.quant.test_families import calibrated


@pytest.fixture(scope="module")
def model():
    family = get_family("bert")
    return calibrated(family, family.model(is_short=True))


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    made = tmp_path_factory.mktemp("program") / "model.pt2"
    save_program(*export_program(model, metadata={"int8kit.recipe_digest": "abc"}), made)
    return made


def feeds(batch, length, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[-1, length // 2 :] = 0
    ids = rng.integers(10, 99, (batch, length))
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def test_a_program_says_what_it_is(path):
    program = read_program(path)
    assert program.axes == ["batch", "sequence"] and program.limits == {"sequence": 64}
    products = program.sorted_products()
    assert len(products.int8) == 6 and len(products.attention_int8) == 2
    assert products.float == ("bert.pooler.dense", "classifier")


def test_files_that_are_no_programs_are_told_in_one_line(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no program .*absent.pt2; export one with 'python export.py --target"):
        read_program(tmp_path / "absent.pt2")
    cut = tmp_path / "cut.pt2"
    cut.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"is not a whole .pt2 archive: .*Export it again"):
        read_program(cut)
    other = tmp_path / "other.pt2"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("a", "b")
    with pytest.raises(ValueError, match=r"is no program of int8kit; export it with 'python export.py --target"):
        read_program(other)
    with pytest.raises(ValueError, match=r"model.pt2 is a torch program \(target inductor\), and an ONNX file is"):
        read_onnx(path)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (["input_id:8x16"], "--shapes names 'input_id', which is no input of the program; .*did you mean input_ids"),
        (["input_ids:8"], "--shapes input_ids:8:8:8 has 1 axes, the program's input has 2"),
        (["input_ids:8x128"], "the program takes a sequence of at most 64"),
        (["input_ids:8x16", "attention_mask:4x16"], "gives the axis batch two ranges"),
        ([], r"--shapes does not tell the batch and sequence; for example --shapes input_ids:8x128"),
        (["input_ids:1x1:64x64:4096x64"], None),
    ],
)
def test_shapes_that_do_not_fit(path, shapes, message):
    program = read_program(path)
    if message is None:
        assert len(buckets_of(program, ranges_of(program, parse_shapes(shapes)))) == 13 * 3
    else:
        with pytest.raises(UsageError, match=message):
            ranges_of(program, parse_shapes(shapes))


def test_buckets(path):
    program = read_program(path)
    ranges = ranges_of(program, parse_shapes(["input_ids:1x1:6x40:8x64"]))
    assert ranges["attention_mask"] == ranges["input_ids"]
    buckets = buckets_of(program, ranges)
    assert buckets[0] == {"batch": 6, "sequence": 40}
    assert {each["batch"] for each in buckets} == {1, 2, 4, 6, 8}
    assert {each["sequence"] for each in buckets} == {16, 32, 40, 64}
    assert bucket_for(buckets, {"batch": 5, "sequence": 33}) == {"batch": 6, "sequence": 40}
    assert bucket_for(buckets, {"batch": 9, "sequence": 33}) is None
    short = buckets_of(program, ranges_of(program, parse_shapes(["input_ids:1x4:4x8:8x64"])))
    assert short[0] == {"batch": 4, "sequence": 16}  # the usual length is below the shortest bucket


def test_a_program_that_reads_its_padding_gets_no_bucket_that_it_could_not_use(path):
    program = dataclasses.replace(read_program(path), reads_padding=True)
    fixed = buckets_of(program, ranges_of(program, parse_shapes(["input_ids:1x8:4x8:8x8"])))
    assert {each["sequence"] for each in fixed} == {8} and {each["batch"] for each in fixed} == {1, 2, 4, 8}
    with pytest.raises(UsageError, match="give one sequence in --shapes instead of 4 to 64"):
        buckets_of(program, ranges_of(program, parse_shapes(["input_ids:1x4:4x8:8x64"])))


class OnCpu:
    """Stands where `Captured` captures a CUDA graph: the same module, run op by op."""

    def __init__(self, module, feeds, pool=None):
        self.module, self.inputs, self.outputs = module, feeds, ()

    def feed(self, arrays):
        self.inputs = [torch.from_numpy(array) for array in arrays]

    def replay(self):
        with torch.no_grad():
            self.outputs = self.module(*self.inputs)


@pytest.fixture
def runner(path, monkeypatch):
    monkeypatch.setattr(runner_module, "Captured", OnCpu)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    of_gpu = runner_module.example_feeds
    monkeypatch.setattr(runner_module, "example_feeds", lambda program, bucket: of_gpu(program, bucket, "cpu"))
    program = read_program(path)
    ranges = ranges_of(program, parse_shapes(["input_ids:1x1:4x16:4x32"]))
    plans = [(bucket, {}) for bucket in buckets_of(program, ranges)]
    with InductorRunner(load_module(path, "cpu"), program, ranges, plans, {}) as made:
        yield made


def test_a_call_is_padded_up_to_its_bucket_and_cut_again(runner, path):
    plain = ProgramRunner(path)
    for batch, length in ((3, 11), (1, 32), (4, 16)):
        given = feeds(batch, length)
        got = runner(given)["logits"]
        assert got.shape == (batch, 3)
        np.testing.assert_allclose(got, plain(given)["logits"], atol=2e-3)
    with pytest.raises(ValueError, match="the engine takes"):
        runner(feeds(5, 16))


def test_a_program_that_reads_its_padding_is_not_padded_along_its_length(runner):
    runner.program = dataclasses.replace(runner.program, reads_padding=True)
    assert runner(feeds(2, 16))["logits"].shape == (2, 3)  # a bucket's own length
    with pytest.raises(ValueError, match="a sequence of 11 would be padded to 16, and this model reads its padding"):
        runner(feeds(2, 11))


def test_a_closed_engine_says_so_and_closes_again(runner):
    runner.close()
    with pytest.raises(RuntimeError, match="this engine is closed; load it again"):
        runner(feeds(2, 16))
    runner.close()


def test_kernels_get_the_names_of_the_products_that_they_compute(runner):
    captured, bucket = runner.fed(feeds(4, 16))
    ops = op_calls(captured, runner.program)
    assert bucket == runner.usual == {"batch": 4, "sequence": 16}
    linears = [each for each in ops if each.op == "linear"]
    assert [len(each.names) for each in linears] == [3, 1, 1, 1] and linears[0].macs == 4 * 16 * 32 * 96
    names = {"linear": "linear_kernel", "attention": "attention_kernel", "norm_quantize": "norm_kernel"}
    call = [("triton_poi_fused_add_0", 1.0), *((names[each.op], 2.0) for each in ops)]
    layers, notes = layers_of([call, call], ops)
    assert len(notes) == 1 and layers[0].kind == "other"
    own = [layer for layer in layers if layer.type == "linear"]
    assert own[0].sources == linears[0].names and {layer.precision for layer in own} == {"int8"}
    layers, notes = layers_of([[*call, ("attention_kernel", 1.0)]], ops)  # one more than was called
    assert "2 kernels of attention were seen for 1 calls" in notes[1]
    assert not any(layer.type == "attention" for layer in layers)


def test_plans_reach_the_ops_and_share_the_weights(path):
    module = load_module(path, "cpu")
    linear = next(node for node in tuned_nodes(module) if "linear" in str(node.target))
    plan = store_plan({2**31 - 1: ProductTile(32, 32, 32, 4, 2, 1)})
    made = with_plans(module, {linear.name: plan})
    assert next(node for node in tuned_nodes(made) if node.name == linear.name).kwargs["tiles"] == plan
    assert "tiles" not in linear.kwargs
    given = [torch.from_numpy(x) for x in feeds(2, 9).values()]
    with torch.no_grad():
        torch.testing.assert_close(made(*given)[0], module(*given)[0])
    pointers = {x.data_ptr() for x in module.buffers()}
    assert all(x.data_ptr() in pointers for x in made.buffers())


def test_what_no_gpu_and_an_old_one_say(path, tmp_path, monkeypatch):
    backend = get_backend("inductor")
    options = BuildOptions(parse_shapes(["input_ids:2x16"]))
    monkeypatch.setattr(inductor, "find_gpu", lambda: None)
    with pytest.raises(RuntimeError, match="none is seen here; do this on a box with one, or export for a CPU"):
        backend.build(path, tmp_path / "e", options)
    monkeypatch.setattr(inductor, "find_gpu", lambda: Gpu("Tesla T4", (7, 5)))
    with pytest.raises(RuntimeError, match=r"capability 8.0 or newer, here is Tesla T4 .*; take --target tensorrt"):
        backend.build(path, tmp_path / "e", options)
    with pytest.raises(UsageError, match=r"computes in fp16; export it with --dtype bf16"):
        backend.build(path, tmp_path / "e", BuildOptions(options.shapes, precision="bf16"))
    with pytest.raises(RuntimeError, match="cannot run inductor engines"):
        backend.load(tmp_path / "e")
    assert not list(tmp_path.iterdir())


def test_a_program_is_read_where_it_lies_in_an_engine(path, tmp_path):
    engine = tmp_path / "x.engine"
    with zipfile.ZipFile(engine, "w") as archive:
        archive.writestr("before", b"something else")
        archive.write(path, PROGRAM)
        archive.writestr("after", b"more")
    with open_stored(engine, PROGRAM) as member:
        assert read_program(member) == read_program(path)
        member.seek(0)
        inside = load_module(member, "cpu").state_dict()
        member.seek(0)
        assert member.read() == path.read_bytes() and member.read(1) == b""
    assert member.closed
    alone = load_module(path, "cpu").state_dict()
    assert inside.keys() == alone.keys() and all(torch.equal(inside[key], alone[key]) for key in alone)


def test_a_program_with_a_wrong_weight_fails_its_check(model, path, tmp_path):
    loaded, small = LoadedModel(model, None, "bert"), [feeds(3, 9, seed) for seed in range(2)]
    assert check_program(path, loaded, "fp16", feeds=small).num_weights == 6
    program, description = export_program(model)
    name = next(name for name, x in program.state_dict.items() if x.dtype == torch.int8)
    with torch.no_grad():
        program.state_dict[name].neg_()
    wrong = tmp_path / "wrong.pt2"
    save_program(program, description, wrong)
    with pytest.raises(ValueError, match="the program does not compute what the quantized model computes"):
        check_program(wrong, loaded, "fp16", feeds=small)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory."),
                                   RuntimeError("Triton Error [CUDA]: out of memory")])  # fmt: skip
def test_memory_that_does_not_suffice_is_one_line_whoever_says_it(error):
    with pytest.raises(RuntimeError, match=r"^out of GPU memory while tuning 8x128; free the GPU$"):
        with enough_memory("tuning 8x128", "free the GPU"):
            raise error
    with pytest.raises(RuntimeError, match=r"^another$"), enough_memory("a", "b"):
        raise RuntimeError("another")


def test_a_bug_report_says_what_a_program_is_and_its_script_runs_as_far_as_a_cpu_goes(path, tmp_path, monkeypatch):
    monkeypatch.setattr(inductor, "find_gpu", lambda: None)
    out = tmp_path / "bug.md"
    flags = ["--onnx", str(path), "--backend", "inductor", "--shapes", "input_ids:2x16", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        bug_report([*flags])
    text = out.read_text()
    assert ended.value.code == 0 and "- inputs: `input_ids` int64 batchxsequence" in text
    assert re.search(r"- products: .*\d+ linear in INT8", text) and "attach `model.pt2`" in text
    assert "was not built where this was written" in text and "Shapes: " in text
    script = text.partition("```python\n")[2].partition("compiled = ")[0]
    monkeypatch.chdir(path.parent)
    found: dict = {}
    exec(script, found)
    assert found["expected"][0].shape[0] == 2
