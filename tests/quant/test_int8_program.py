"""An INT8 program against the fake-quantized model it is made of: what fuses, what does not, both right."""

import copy
import dataclasses

import pytest
import torch
import transformers

from calib.apply import apply_statistics
from calib.collect import collect
from quant.insert import insert_quantizers
from quant.int8_program.export import DESCRIPTION, PASSES, export_program, save_program, table_of_positions
from quant.models.encoder_decoder import PARTS, model_part
from quant.models.example_inputs import example_inputs
from quant.recipe import Rule, load_recipe
from quant.tensor_quantizer import named_quantizers
from tests.families import ENCODER_DECODERS, FAMILIES, get_family
from tests.quant.test_families import calibrated

# Exporting takes seconds: these differ most (post-norm, pre-norm, patches, rotary and gated, gelu_new and Conv1D).
QUICK = {"bert": "int8_full", "vit": "int8_smoothquant", "llama": "int8_attention", "gpt2": "int8_smoothquant"}
OTHERS = [
    (name, recipe) for name in FAMILIES for recipe in ("int8_smoothquant", "int8_full")
    if not FAMILIES[name].is_slow and QUICK.get(name) != recipe
]  # fmt: skip


def noise_of(model, batch, dtype=torch.float16):
    """Return the outputs, and how far the model itself moves them when PyTorch computes it in a half type."""
    half = copy.deepcopy(model).to(dtype)
    given = {name: x.to(dtype) if x.is_floating_point() else x for name, x in batch.items()}
    with torch.no_grad():
        return model(**batch), half(**given)


def check_near(program, description, model, batch):
    expected, half = noise_of(model, batch)
    with torch.no_grad():
        got = program.module(check_guards=False)(*[batch[name] for name in description.inputs])
    for name, y in zip(description.outputs, got, strict=True):
        keep = torch.ones(y.shape[:2], dtype=torch.bool)
        if "attention_mask" in batch and batch["attention_mask"].shape == y.shape[:2]:
            keep = batch["attention_mask"].bool()
        error = (y - expected[name])[keep].abs().mean()
        moved = (half[name].float() - expected[name])[keep].abs().mean()
        assert error <= 2 * moved + 1e-3 * expected[name].abs().mean(), (name, error, moved)


@pytest.mark.parametrize(
    ("name", "recipe"), [*QUICK.items(), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)]
)
def test_a_program_computes_the_quantized_model(name, recipe):
    family = get_family(name)
    model = calibrated(family, family.model(is_short=True), recipe)
    program, description = export_program(model)
    check_near(program, description, model, family.batch(model, 4, 12, 3))
    check_near(program, description, model, family.batch(model, 1, 9, 4))
    active = sum("weight" in site and quantizer.enabled for site, quantizer in named_quantizers(model))
    ours = sum(each.is_int8 and each.kind == "linear" for each in description.products)
    assert ours >= 0.75 * active  # the rest: convolutions whose windows overlap, and what the description names


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_each_part_of_an_encoder_decoder(name, part):
    family = ENCODER_DECODERS[name]
    model = family.model()
    insert_quantizers(model, load_recipe("int8_smoothquant"))
    apply_statistics(model, collect(model, [example_inputs(model, seed=seed) for seed in range(2)], progress=False))
    half = model_part(model, part)
    program, description = export_program(half)  # Triton's interpreter has no bf16 product
    inputs = example_inputs(half, batch_size=3, seq_length=8, seed=5)
    with torch.no_grad():
        expected = half(**inputs)
        got = program.module(check_guards=False)(*[inputs[each] for each in description.inputs])
    for each, y in zip(description.outputs, got, strict=True):
        assert (y - expected[each]).abs().mean() < 0.1 * expected[each].abs().mean() + 0.01


def ops_of(description, kind):
    return [each.op for each in description.products if each.kind == kind and each.is_int8]


def test_what_fuses_in_a_post_norm_encoder():
    family = get_family("bert")
    model = calibrated(family, family.model(is_short=True))
    program, description = export_program(model)
    assert ops_of(description, "linear") == [
        "linear, quantize", "linear, quantize", "linear, quantize", "linear, residual", "linear, gelu_fast, quantize",
        "linear, residual",
    ]  # fmt: skip
    assert ops_of(description, "attention") == ["attention, quantize"] * 2
    groups = [each.group for each in description.products[:3]]
    assert len(set(groups)) == 1  # Q, K and V are one product
    assert description.unfused == 0
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("int8kit_program" in target for target in targets)


def test_what_no_pass_fuses_still_computes_the_quantized_model():
    pytest.importorskip("triton", reason="the ladder times kernels")
    from benchmarks.gpu.ladder import STEPS, passes_of

    family = get_family("bert")
    model = calibrated(family, family.model(is_short=True), "int8_full")
    named = [each for added in STEPS.values() for each in added]
    assert len(set(named)) == len(named) and set(named) < set(PASSES)
    assert [len(PASSES) - len(passes_of(step)) for step in STEPS] == [6, 4, 2, 1, 0]
    found = {step: export_program(model, passes=passes_of(step)) for step in STEPS}
    unfused = [description.unfused for _, description in found.values()]
    assert unfused[0] > unfused[1] == unfused[2] > unfused[3] > unfused[4] == 0
    bare, _, merged, *_ = found.values()
    assert {each.op for each in bare[1].products if each.is_int8} == {"linear", "attention"}
    assert len({each.group for each in merged[1].products}) < len({each.group for each in bare[1].products})
    check_near(*bare, model, family.batch(model, 4, 12, 3))


def test_a_gated_pair_is_one_product():
    family = get_family("llama")
    model = calibrated(family, family.model(is_short=True), "int8_smoothquant")
    _, description = export_program(model)
    gated = [each for each in description.products if "gated" in each.op]
    assert [each.name.rpartition(".")[2] for each in gated] == ["gate_proj", "up_proj"]
    assert {each.op for each in gated} == {"linear, silu, gated, quantize"}


def test_causal_and_padding_masks_become_arguments():
    family = get_family("gpt2")
    program, _ = export_program(family.model(is_short=True))
    found = [node for node in program.graph.nodes if str(node.target) == "int8kit.attention.default"]
    assert found and all(node.args[8] is True and len(node.args[3].meta["val"].shape) == 2 for node in found)


def test_a_float_model_has_a_twin():
    family = get_family("bert")
    model = family.model(is_short=True)
    program, description = export_program(model)
    assert not any(each.is_int8 for each in description.products)
    check_near_float(program, description, model, family.batch(model, 4, 12, 3))


def check_near_float(program, description, model, batch):
    with torch.no_grad():
        expected = model(**batch)
        got = program.module(check_guards=False)(*[batch[name] for name in description.inputs])
    for name, y in zip(description.outputs, got, strict=True):
        assert (y - expected[name]).abs().max() < 0.05 * expected[name].abs().max() + 0.02


def test_the_archive_says_what_it_is_and_holds_no_float_weight_twice(tmp_path):
    family = get_family("bert")
    model = calibrated(family, family.model(is_short=True), "int8_linear")
    program, description = export_program(model, metadata={"int8kit.recipe": "int8_linear"})
    path = tmp_path / "m.pt2"
    save_program(program, description, path)
    extra = {DESCRIPTION: ""}
    loaded = torch.export.load(path, extra_files=extra)
    assert '"int8kit.recipe": "int8_linear"' in extra[DESCRIPTION]
    linears = {each.name for each in description.products if each.is_int8}
    names = [*loaded.state_dict]
    assert not any(name.removeprefix("model.").removesuffix(".weight") in linears for name in names)
    assert description.inputs["input_ids"] == ("int64", ("batch", "sequence"))
    assert description.outputs["logits"] == ("batch", 3)
    assert description.limits == {"sequence": 64}


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "opt", "mpnet"])
def test_a_table_of_positions_bounds_the_length_whether_or_not_the_trace_does(name):
    model = get_family(name).model(is_short=True)
    longest = table_of_positions(model)
    ids = torch.full((1, longest + 1), 5)
    with torch.no_grad():
        model(input_ids=ids[:, :longest])
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=ids)
    _, description = export_program(model)
    assert description.limits["sequence"] == longest


def test_a_model_of_two_towers_has_the_table_of_its_text():
    model = get_family("clip").model(is_short=True)
    assert table_of_positions(model) == model.config.text_config.max_position_embeddings


@pytest.mark.parametrize("recipe", [None, "int8_linear"])
def test_a_layer_that_runs_several_times_is_joined_once(recipe):
    family = get_family("albert")
    model = family.model()
    model = model if recipe is None else calibrated(family, model, recipe)
    program, _ = export_program(model)
    joined = [x for name, x in program.state_dict.items() if "int8kit_constant" in name and x.dim() == 2]
    assert model.config.num_hidden_layers > 1 and len(joined) == 1


def test_rotary_positions_have_no_table():
    assert table_of_positions(get_family("llama").model(is_short=True)) is None


def test_more_fixed_keys_than_the_kernel_takes_are_multiplied_by_torch(monkeypatch):
    family = get_family("vit")
    model = family.model(is_short=True)
    batch = family.batch(model, 2, 12, 0)
    quantized = calibrated(family, model, "int8_full")
    monkeypatch.setattr("quant.int8_program.attention.MAX_KEYS", 4)
    program, description = export_program(quantized)
    assert not [each for each in description.products if each.kind == "attention" and each.is_int8]
    with torch.no_grad():
        expected = quantized(**batch).logits
        got = program.module(check_guards=False)(*[batch[name] for name in description.inputs])[0]
    assert (got - expected).abs().max() < 0.05 * expected.abs().max() + 0.02


def test_a_model_that_reads_its_padding_says_so():
    config = {**FAMILIES["llama"].config, "pad_token_id": 2, "num_labels": 3, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**config)).train()
    _, description = export_program(model)
    assert description.reads_padding and model.training  # zeros are tokens there, and the caller's model is as it was
    assert not export_program(get_family("bert").model(is_short=True))[1].reads_padding


@pytest.mark.parametrize("activation", ["relu6", "gelu_10"])
def test_a_clipped_activation_is_not_taken_for_its_like(activation):
    config = transformers.BertConfig(**FAMILIES["bert"].config | {"hidden_act": activation, "num_hidden_layers": 1})
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    model = calibrated(get_family("bert"), model, "int8_linear")
    _, description = export_program(model)
    assert not any("relu" in each.op or "gelu" in each.op for each in description.products)


def test_a_softmax_of_seven_bits_is_not_rounded_to_eight():
    recipe = load_recipe("int8_attention")
    softmax = Rule(kind="softmax", format="int7")
    family = get_family("bert")
    model = family.model(is_short=True)
    insert_quantizers(model, dataclasses.replace(recipe, rules=(*recipe.rules, softmax)), family.batch(model, 4, 12, 0))
    apply_statistics(model, collect(model, [family.batch(model, 4, 12, 0)], progress=False))
    program, description = export_program(model)
    assert ops_of(description, "attention") == []
    check_near(program, description, model, family.batch(model, 4, 12, 3))


def test_a_model_without_ranges_is_refused():
    family = get_family("bert")
    model = family.model(is_short=True)
    insert_quantizers(model, load_recipe("int8_linear"), family.batch(model, 2, 8, 0))
    with pytest.raises(RuntimeError, match="no amax"):
        export_program(model)
