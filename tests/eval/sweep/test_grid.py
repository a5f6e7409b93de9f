"""The grid of a sweep: what may be asked for, in which order it is measured, and what is refused."""

import pytest

from engine.cli import UsageError
from eval.sweep.__main__ import add_arguments, main, options_of
from eval.sweep.grid import System, options_from_dict, primary_shape, shapes_of, systems_of
from tests.eval.sweep.sweeps import sweep_options


def parsed(*words: str):
    from engine.cli import CommandParser

    parser = CommandParser("test", "test")
    add_arguments(parser)
    return options_of(parser.parse_args(["--model", "m", "--task", "sst2", "--out", "o", *words]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods"], "the grid is empty: --methods names nothing"),
        (["--batch-sizes", ","], "the grid is empty: --batch-sizes names nothing"),
        (["--recipes"], "the grid is empty: --recipes names nothing"),
        (["--methods", "entropi"], r"--methods does not know 'entropi' \(did you mean entropy\?\)"),
        (["--backends", "onnxrutime"], r"did you mean onnxruntime\?"),
        (["--batch-sizes", "1,0"], "--batch-sizes takes whole numbers from 1, got 0"),
        (["--budget", "0"], "--budget 0 must be above 0 minutes"),
        (["--rounds", "1"], "--rounds must be at least"),
        (["--rounds", "9", "--max-rounds", "8"], "--max-rounds 8 is below --rounds 9"),
        (["--load-clients", "1", "--load-seconds", "0"], "--load-seconds 0 must be above 0"),
    ],
)
def test_grids_that_cannot_be_right_are_wrong_usage(words, message):
    with pytest.raises(UsageError, match=message):
        parsed(*words)


def test_the_default_grid_holds_what_calibration_makes_by_default():
    from calib.__main__ import DEFAULT_RECIPE, SAMPLE_FLAGS
    from quant.recipe import load_recipe

    options = parsed()
    default = System(load_recipe(DEFAULT_RECIPE).calibrator.method, DEFAULT_RECIPE, "onnxruntime")
    assert default in systems_of(options) and options.num_calibration == SAMPLE_FLAGS["num_samples"]
    assert System("max", "int8_linear", "onnxruntime") in systems_of(options)  # what SmoothQuant is held against


def test_options_of_an_older_manifest_take_the_defaults_of_what_they_lack():
    options = sweep_options("m", "d")
    older = {name: value for name, value in options.as_dict().items() if name not in ("max_rounds", "build_arguments")}
    assert options_from_dict(older) == options
    with pytest.raises(ValueError, match="of another version: model"):
        options_from_dict({name: value for name, value in older.items() if name != "model"})
    with pytest.raises(ValueError, match="of another version: colour"):
        options_from_dict({**older, "colour": "red"})


def test_the_most_telling_points_come_first():
    options = parsed("--methods", "fp32,max,mse", "--recipes", "int8_linear,int8_full", "--batch-sizes", "1,8,32",
                     "--seq-lengths", "32", "64,128")  # fmt: skip
    names = [system.name for system in systems_of(options)]
    assert names[:3] == ["fp32-fastest onnxruntime", "fp32 pytorch", "fp32 onnxruntime"]
    assert names[3:7] == ["max int8_linear onnxruntime", "max int8_full onnxruntime", "mse int8_linear onnxruntime",
                          "mse int8_full onnxruntime"]  # fmt: skip
    shapes = shapes_of(options)
    assert [shape.name for shape in shapes[:3]] == ["8x64", "1x32", "32x128"] and len(shapes) == 9
    assert primary_shape(options) == shapes[0] and System("max", "r", "b").is_int8


def test_the_command_ends_in_one_line(model_and_data, tmp_path, capsys):
    words = ["--model", model_and_data[0], "--task", "sst2", "--data", model_and_data[1], "--out", str(tmp_path / "r")]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--seq-lengths", "4096"])
    assert ended.value.code == 1 and "4096 is over the maximum of" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main([*words, "--methods"])
    assert ended.value.code == 2
