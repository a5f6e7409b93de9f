"""What --budget leaves out, and the seconds of a search that was killed in between."""

import json

import pytest

from eval.search import measure
from eval.search.fixes import FIXES
from eval.search.measure import measure_sensitivity
from eval.search.spent import put_down, take_up
from eval.sweep.grid import SweepOptions
from eval.sweep.run_folder import RunFolder
from eval.sweep.store import ArtifactStore
from eval.sweep.workshop import Workshop
from quant.recipe import load_recipe


@pytest.fixture
def workshop(model_and_data, tmp_path):
    model, data = model_and_data
    options = SweepOptions(
        model=str(model), task="text-classification", data=data, split="validation", columns=None, label_column=None,
        samples=data, num_calibration=8, num_samples=None, seed=0, methods=("max",), recipes=("int8_smoothquant",),
        backends=("onnxruntime",), references=(), batch_sizes=(4,), seq_lengths=(16,), shapes="auto", threads=1,
        rounds=2, device="cpu", qat_arguments="", load_clients=(), load_seconds=2.0,
    )  # fmt: skip
    return Workshop(options, ArtifactStore(tmp_path / "artifacts"))


class Clock:
    """Ten seconds pass at each look."""

    now = 0.0

    @classmethod
    def monotonic(cls):
        cls.now += 10.0
        return cls.now


def test_fixes_that_no_time_was_left_for_are_named_and_stay_untried_when_the_search_goes_on(workshop, monkeypatch):
    monkeypatch.setattr(measure, "time", Clock)
    recipe = load_recipe("int8_smoothquant")
    found = measure_sensitivity(workshop, recipe, with_fixes=True, fixes_s=25.0)
    assert found.untried == tuple(FIXES)[2:]
    ways = {way for each in found.tried.values() for way in each}
    assert ways - {measure.AS_IT_IS} and not ways & set(found.untried)
    monkeypatch.setattr(measure, "_try_fix", lambda *_: pytest.fail("tried again"))
    for more in (25.0, 1000.0, None):
        assert measure_sensitivity(workshop, recipe, with_fixes=True, fixes_s=more) == found


def test_the_seconds_of_a_killed_process_count_until_the_last_part_that_it_left(tmp_path):
    run = RunFolder(tmp_path)
    assert take_up(run, "proof") == 0.0
    started = json.loads((tmp_path / "search_spent.json").read_text())["started"]
    timeline = tmp_path / "artifacts" / "timeline.jsonl"
    timeline.parent.mkdir()
    timeline.write_text(json.dumps({"started": started - 1000, "seconds": 1040}) + "\n")
    assert take_up(run, "proof") == pytest.approx(40)
    put_down(run, 55.0)
    timeline.write_text(json.dumps({"started": started - 1000, "seconds": 900}) + "\n")
    assert take_up(run, "proof") == 55.0
    assert take_up(run, "proof") == 55.0  # killed at once: what lies there is older than its start
