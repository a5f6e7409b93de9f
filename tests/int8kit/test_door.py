"""The one command: its help, wrong words, and a whole run from samples to a folder that stands alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tomllib
import yaml
from transformers import AutoModelForSequenceClassification

from int8kit import hub
from int8kit.__main__ import COMMANDS, main
from int8kit.choose import choose_backend
from tests.eval import tiny

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model_and_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("door")
    return str(tiny.save(tiny.bert(num_layers=1), folder / "model")), str(tiny.write_sentences(folder / "data"))


def door(*words):
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return ended.value.code


def test_the_function_stays_one_when_what_it_runs_is_imported():
    import int8kit

    names = {path.stem for path in (ROOT / "int8kit").glob("*.py")}
    assert callable(int8kit.quantize) and not names & set(int8kit.__all__)  # a module of that name would hide it


def test_help_is_short_and_names_every_command(capsys):
    assert door("--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 40 and all(any(f"  {name} " in line for line in lines) for name in COMMANDS)
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(command):
    words = [sys.executable, "-m", "int8kit", command, "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("usage: ")
    if command == "quantize":
        assert len(done.stdout.splitlines()) <= 60


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, ""),
        (["quantise"], 2, "no command 'quantise' (did you mean quantize?)"),
        (["quantize", "/absent/model", "--samples", "x", "--out", "OUT"], 1, "no model /absent/model"),
        (["quantize", "MODEL", "--samples", "/absent.csv", "--out", "OUT"], 1, "no file or folder /absent.csv"),
        (["quantize", "MODEL", "--samples", "DATA", "--out", "OUT", "--backend", "trt"], 2, "did you mean tensorrt?"),
        (["quantize", "MODEL", "--out", "OUT"], 2, "give --samples"),
        (
            ["quantize", "MODEL", "--samples", "DATA", "--out", "OUT", "--recipe", "int8_ful"],
            1,
            "did you mean int8_full",
        ),
        (["quantize", "MODEL", "--samples", "DATA", "--out", "OUT", "--colum", "a"], 2, "--column"),
        (["quantize", "MODEL", "--samples", "NOTEXT", "--out", "OUT"], 1, "--column"),
        (["quantize", "MODEL", "--samples", "IMAGES", "--out", "OUT"], 1, "text"),
        (["quantize", "MODEL", "--samples", "DATA", "--out", "OUT", "--task", "sst3"], 2, "sst2"),
        (["quantize", "MODEL", "--samples", "DATA", "--out", "FULL"], 1, "is no folder of int8kit quantize"),
    ],
)
def test_what_a_newcomer_types_wrong_is_one_line_with_the_next_step(model_and_data, tmp_path, capsys, words, code,
                                                                    message):  # fmt: skip
    (tmp_path / "no.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "images").mkdir()
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    names = {"MODEL": model_and_data[0], "DATA": model_and_data[1], "OUT": str(tmp_path / "out"),
             "NOTEXT": str(tmp_path / "no.csv"), "IMAGES": str(tmp_path / "images"),
             "FULL": str(tmp_path / "full")}  # fmt: skip
    assert door(*(names.get(word, word) for word in words)) == code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("int8kit")]
    assert message in (error[-1] if error else ""), error
    assert [each.name for each in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_from_samples_to_a_folder_that_stands_alone_and_again_from_what_is_there(model_and_data, tmp_path, capsys,
                                                                                 monkeypatch):  # fmt: skip
    model, data = model_and_data
    out = tmp_path / "int8"
    words = ["quantize", model, "--samples", data, "--num-samples", "16", "--backend", "onnxruntime", "--threads", "1",
             "--out", str(out)]  # fmt: skip
    assert door(*words) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].split()[:2] == ["error", "MB"] and lines[1].startswith("float") and lines[2].startswith("INT8")
    assert all(len(line) <= 60 for line in lines[:3]) and "[5/5]" in printed.err
    assert {"checkpoint", "model.onnx", "engine", "engine.json", "README.md", "report.html", "result.json"} <= {
        each.name for each in out.iterdir()
    }
    result = json.loads((out / "result.json").read_text())
    assert 0 < result["lines"][1]["error"] < 1 and set(result["speedup"]) == set(result["lines"][0]["ms"])
    card = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert "int8" in card["tags"]
    AutoModelForSequenceClassification.from_pretrained(out / "checkpoint")
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    feeds = {x.name: np.ones((1, 8), np.int64) for x in session.get_inputs()}
    assert np.isfinite(session.run(None, feeds)[0]).all()
    monkeypatch.setattr("int8kit.made.collect", None)  # nothing is made twice
    monkeypatch.setattr("int8kit.made.export_checked", None)
    assert door(*words, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["lines"][1]["error"] == result["lines"][1]["error"]


@pytest.mark.slow
def test_with_a_task_it_is_scored(model_and_data, tmp_path, capsys):
    model, data = model_and_data
    out = tmp_path / "int8"
    words = ["quantize", model, "--task", "text-classification", "--data", data, "--backend", "onnxruntime",
             "--seq-length", "16", "--max-loss", "0.9", "--threads", "1", "--out", str(out)]  # fmt: skip
    assert door(*words) == 0
    assert "accuracy" in capsys.readouterr().out.splitlines()[0]
    card = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert card["model-index"][0]["results"][0]["metrics"][0]["type"] == "accuracy"
    assert (out / "report.html").exists() and (out / "checkpoint").is_dir()


class Hub:
    """A stand-in of the hub's API."""

    def __init__(self, error=None):
        self.error, self.calls = error, []

    def create_repo(self, repo, **options):
        if self.error:
            raise self.error
        self.calls.append(("create", repo))
        return f"https://hub/{repo}"

    def upload_folder(self, **options):
        self.calls.append(("upload", options["folder_path"], tuple(options["ignore_patterns"])))


def test_pushing_uploads_the_folder_without_the_work_and_says_what_the_hub_refused(tmp_path, monkeypatch):
    api = Hub()
    monkeypatch.setattr(hub, "HfApi", lambda: api)
    assert hub.push(tmp_path, "me/mine") == "https://hub/me/mine"
    assert api.calls[1][1] == str(tmp_path) and ".work/*" in api.calls[1][2]
    api.error = OSError("401 Client Error")
    with pytest.raises(RuntimeError, match=r"the hub did not take me/mine: 401 Client Error.*hf auth login"):
        hub.push(tmp_path, "me/mine")


def test_the_runtime_is_chosen_by_what_is_here(monkeypatch):
    monkeypatch.setattr("int8kit.choose.find_gpu", lambda: None)
    for flags, name in (((), "onnxruntime"), (("avx2",), "onnxruntime"), (("avx512_vnni",), "openvino")):
        monkeypatch.setattr("int8kit.choose.cpu_flags", lambda flags=flags: flags)
        assert choose_backend("auto")[0] == name
    assert choose_backend("onnxruntime") == ("onnxruntime", "backend onnxruntime: as asked")


def test_the_package_holds_what_it_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["int8kit"] == "int8kit.__main__:main"
    for name in ("ray", "tensorrt", "gpu", "docs"):
        file = project["tool"]["setuptools"]["dynamic"]["optional-dependencies"][name]["file"]
        assert all((ROOT / each).is_file() for each in file)
