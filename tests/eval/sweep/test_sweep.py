"""The sweep on a tiny model: every point a row, artifacts shared, failures and skips as rows, kills and full disks."""

import errno
import json
import shutil
from pathlib import Path

import pytest

from engine import backend
from engine.cli import UsageError
from eval.report.__main__ import build, check, write_report
from eval.report.run_data import read_run
from eval.reproduce import choose_row, reproduce
from eval.results import ResultRow
from eval.sweep.grid import primary_shape, shapes_of, systems_of
from eval.sweep.run import run_sweep
from eval.sweep.run_folder import RunFolder, SweepRow, claim
from eval.sweep.store import ArtifactStore, check_disk
from eval.timing import latency
from tests.eval.sweep import sweeps
from tests.eval.sweep.sweeps import COMMAND, sweep_options
from tests.forks import fork_context

BAD_RECIPE = "extends: int8_linear\nrules:\n  - {match: '*no_such_layer*', enable: false}\n"
ABSENT = """
from engine.backend import Backend
from engine.backends.info import BackendInfo
class Absent(Backend):
    info = BackendInfo("absent", "Absent", "onnxruntime", ("absent",))
    def check_build(self):
        return "its runtime is not installed"
    build = load = inspect = reproduction = None
BACKEND = Absent()
"""


LENGTHS = (8, 12)  # of every run here: samples, ranges and with them the exported graphs are then the same


@pytest.fixture(scope="module")
def finished(model_and_data, tmp_path_factory):
    """A finished run, prepared in two processes, with a failing recipe and a backend that is not there."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "bad.yaml").write_text(BAD_RECIPE)
    (folder / "absent_backend.py").write_text(ABSENT)
    options = sweep_options(
        *model_and_data, methods=("fp32", "max", "mse"), recipes=("int8_linear", str(folder / "bad.yaml")),
        backends=("onnxruntime", "absent"), references=("pytorch", "onnxruntime-fastest", "onnxruntime-dynamic"),
        seq_lengths=LENGTHS, load_clients=(1, 2),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "PAUSE_S", 0.0)
        patch.syspath_prepend(str(folder))
        patch.setitem(backend.BACKENDS, "absent", "absent_backend")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
        result = run_sweep(options, folder / "run", COMMAND, num_processes=2)
        again = run_sweep(options, folder / "run", COMMAND)
    return result, again, options


def start_with_graphs(path, options, finished):
    """Begin a run that has the exported graphs of the finished one already: they are most of a small sweep's time."""
    made = finished[0].run
    run, _ = claim(path, options, made.manifest()["identity"], COMMAND)
    for graph in made.artifacts.glob("exported-*"):
        shutil.copytree(graph, run.artifacts / graph.name)


def test_every_point_has_one_row_and_a_finished_run_adds_none(finished):
    result, again, options = finished
    rows = RunFolder(result.run.path).rows()
    points = {(s.name, shape.name) for s in systems_of(options) for shape in shapes_of(options)}
    assert {(row.system, row.shape) for row in rows} == points and len(rows) == len(points) == result.num_points
    assert again.counts == result.counts and result.num_left == 0


def test_a_failed_point_and_an_absent_backend_are_rows_with_their_reason(finished):
    rows = finished[0].run.rows()
    failed = [row for row in rows if row.row.status == "failed"]
    assert {row.row.recipe for row in failed} == {finished[2].recipes[1]} and len(failed) == 2 * 4
    assert all("match no quantizer of this model" in row.row.error for row in failed)
    skipped = [row for row in rows if row.row.status == "skipped"]
    assert all(row.row.error == "its runtime is not installed" and row.row.backend == "absent" for row in skipped)
    assert len(skipped) == 5 * 4


def test_rows_say_accuracy_error_latency_speedup_and_the_loss_with_its_interval(finished):
    rows = {(row.system, row.shape): row for row in finished[0].run.rows()}
    row = rows["max int8_linear onnxruntime", "2x8"]
    assert row.row.status == "ok" and row.row.error_abs_mean > 0 and row.row.num_samples == 24
    assert row.details.latency_ms_low <= row.row.latency_ms_p50 * 1.5 and row.row.iterations == 10
    assert row.details.baseline == "fp32-fastest onnxruntime" and row.details.products.int8
    base = rows["fp32-fastest onnxruntime", "2x8"]
    assert base.details.speedup == 1 and base.details.session and base.row.error_abs_max < 1e-4
    assert row.details.speedup == pytest.approx(base.details.latency_ms / row.details.latency_ms, rel=1e-9)
    assert 0 <= row.row.mcnemar_p <= 1 and row.row.loss_low <= row.row.loss_high


def test_calibrators_of_one_recipe_run_one_graph_and_are_timed_once(finished):
    rows = {(row.system, row.shape): row for row in finished[0].run.rows()}
    for shape in shapes_of(finished[2]):
        first, second = (rows[f"{method} int8_linear onnxruntime", shape.name] for method in ("max", "mse"))
        assert first.details.graph == second.details.graph
        assert first.details.digests != second.details.digests
        assert second.details.timed_as == first.system and second.details.block_ms == first.details.block_ms
        own = rows["fp32 onnxruntime", shape.name].details
        assert own.graph != first.details.graph and own.timed_as == "fp32 onnxruntime"
    timings = [finished[0].run.read_json(f"timings/{shape.name}.0.json") for shape in shapes_of(finished[2])]
    assert all("mse int8_linear onnxruntime" not in timing["systems"] for timing in timings)


def test_artifacts_are_made_once_and_shared(finished):
    names = [path.name for path in finished[0].run.artifacts.iterdir() if path.is_dir()]
    made = {kind: sum(name.startswith(f"{kind}-") for name in names) for kind in ("statistics", "checkpoint", "engine")}
    assert made == {"statistics": 1, "checkpoint": 2, "engine": 3}  # engines: float, max, mse, for all four shapes


def test_the_report_is_whole_and_its_check_finds_a_changed_figure(finished):
    run = finished[0].run.path
    page = write_report(run, max_loss=0.5)
    text, html = (run / "report.md").read_text(), page.read_text()
    row = next(r for r in finished[0].run.rows() if r.system == "max int8_linear onnxruntime" and r.shape == "2x12")
    assert f"{100 * row.row.metric:.2f}" in text and f"#{row.number} |" in text
    assert "its runtime is not installed" in text and "match no quantizer" in text
    assert html.count("<svg") == 16 and "src=" not in html and f'id="row-{row.number}"' in html
    check(run)
    changed = text.replace("2x12 | ok", "2x12 | fine", 1)
    assert changed != text
    (run / "report.md").write_text(changed)
    with pytest.raises(ValueError, match=r"line \d+: the report says .*fine"):
        check(run)


def test_the_contests_report_marks_missing_notes_and_takes_those_there(finished):
    run = finished[0].run.path
    (run / "notes.yaml").write_text("use: tells good films from bad\nlessons: ['measure first, then speak']\n")
    for lang, heading, missing in (("en", "## 6. Bugs", "missing note: `users`"), ("zh", "## 6. Bug 报告", "缺少说明")):
        text, _ = build(read_run(run), {}, "hackathon", lang, 0.01)
        assert heading in text and missing in text and "tells good films from bad" in text
        assert "- measure first, then speak" in text and "docker pull" in text
        assert f"--template hackathon --lang {lang} --max-loss 0.01\n" in text
        assert text.count("its runtime is not installed") == 6  # once for its steps, and in the table of what was not
    (run / "notes.yaml").write_text("usage: x\n")
    with pytest.raises(ValueError, match="unknown notes usage; allowed: title"):
        build(read_run(run), {}, "hackathon", "en", 0.01)
    (run / "notes.yaml").unlink()


def test_a_row_is_rebuilt_to_the_bit(finished):
    data = read_run(finished[0].run.path)
    row = next(row for row in data.rows if row.system == "mse int8_linear onnxruntime")
    result = reproduce(data, choose_row(data, row.number))
    assert result.is_same and result.num_scales == result.num_scales_equal == 10 and result.is_onnx_equal
    failed = next(row.number for row in data.rows if row.row.status == "failed")
    with pytest.raises(UsageError, match=f"--row {failed}: there is no such measured row"):
        choose_row(data, failed)


def stripped(rows: list[SweepRow]) -> list[tuple]:
    """Return rows without times, and without what follows from times."""
    out = []
    for row in rows:
        plain = {k: v for k, v in row.row.as_dict().items() if not k.startswith("latency") and k != "throughput_per_s"}
        kept = {k: v for k, v in row.details.as_dict().items() if k in ("digests", "products", "baseline")}
        out.append((row.system, row.shape, json.dumps([plain, kept], sort_keys=True)))
    return sorted(out)


# Four kills with the graphs made before, so that they fall on all other steps; ten, exports among what they interrupt.
@pytest.mark.parametrize(("num_kills", "has_graphs"), [(4, True), pytest.param(10, False, marks=pytest.mark.slow)])
def test_kills_at_random_moments_leave_the_rows_of_an_undisturbed_run(
    model_and_data, finished, tmp_path, num_kills, has_graphs
):
    options = sweep_options(*model_and_data, references=(), batch_sizes=(1,), seq_lengths=LENGTHS)
    for name in ("killed", "calm") if has_graphs else ():
        start_with_graphs(tmp_path / name, options, finished)

    def exit_code(name: str, seed: int | None) -> int | None:
        child = fork_context().Process(target=sweeps.run_and_die, args=(options, tmp_path / name, seed))
        child.start()
        child.join(300)
        return child.exitcode

    ends = [exit_code("killed", seed) for seed in range(num_kills)]
    assert set(ends) <= {0, -9} and [exit_code(name, None) for name in ("killed", "calm")] == [0, 0]
    killed, calm = (RunFolder(tmp_path / name).rows() for name in ("killed", "calm"))
    assert ends.count(-9) >= 2  # the rest found little or nothing left to do: how many depends on the machine
    assert len(calm) == 4 and stripped(killed) == stripped(calm)


def test_a_broken_last_line_is_cut_off_and_said(tmp_path):
    run = RunFolder(tmp_path)
    row = SweepRow(ResultRow(), "max", "1")
    run.append(row)
    assert run.repair() is None
    whole = run.rows_path.read_bytes()
    for broken in (b'{"schema": 1, "sta', b'{"schema": 1, "sta\n'):
        run.rows_path.write_bytes(whole + broken)
        assert f"the last line was broken by a crash ({len(broken)} bytes); it was cut off" in run.repair()
        assert run.rows_path.read_bytes() == whole and len(run.rows()) == 1


def test_rows_of_another_schema_are_refused(tmp_path):
    run = RunFolder(tmp_path)
    run.append(SweepRow(ResultRow(), "max", "1"))
    good = run.rows_path.read_text()
    run.rows_path.write_text(good.replace('"schema": 1', '"schema": 7', 1))
    with pytest.raises(ValueError, match="line 1: schema 7, this version reads 1"):
        run.rows()
    values = json.loads(good)
    values["sweep"]["schema"] = 9
    run.rows_path.write_text(json.dumps(values) + "\n")
    with pytest.raises(ValueError, match="sweep schema 9, this version reads 1; start a new sweep"):
        run.rows()


def test_a_run_folder_is_locked_and_of_one_sweep(model_and_data, tmp_path):
    options = sweep_options(*model_and_data)
    run, is_resumed = claim(tmp_path / "run", options, {"model_digest": "a"}, COMMAND)
    assert not is_resumed and claim(run.path, options, {"model_digest": "a"}, COMMAND)[1]
    other = sweep_options(*model_and_data, batch_sizes=(4,))
    with pytest.raises(FileExistsError, match=r"holds another sweep: batch_sizes is \[1, 2\] there, \[4\] here"):
        claim(run.path, other, {"model_digest": "a"}, COMMAND)
    with pytest.raises(FileExistsError, match="model_digest is a there, b here"):
        claim(run.path, options, {"model_digest": "b"}, COMMAND)
    (tmp_path / "full" / "of").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="is no run folder of a sweep"):
        claim(tmp_path / "full", options, {}, COMMAND)
    with run.locked(), pytest.raises(RuntimeError, match="is in use by process"):
        run_sweep(options, run.path, COMMAND)


def test_a_full_disk_is_one_line_and_loses_no_row(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="is full; all finished rows are kept") as caught:
        check_disk(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    assert caught.value.errno == errno.ENOSPC
    check_disk(ValueError("a point's own fault"), tmp_path)
    run = RunFolder(tmp_path)
    run.append(SweepRow(ResultRow(), "max", "1"))
    monkeypatch.setattr("eval.sweep.run_folder.os.write", lambda descriptor, data: len(data) // 2)
    with pytest.raises(OSError, match="bytes of a row could be written"):
        run.append(SweepRow(ResultRow(), "max", "2"))
    assert [row.shape for row in run.rows()] == ["1"] and run.repair() is None


def test_an_artifact_is_whole_or_not_there(tmp_path):
    store = ArtifactStore(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        store.make("onnx", {"a": 1}, fail)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    calls = []
    for _ in range(2):
        path = store.make("onnx", {"a": 1}, lambda folder: calls.append((folder / "whole").write_text("x")))
    assert len(calls) == 1 and (path / "whole").is_file() and json.loads((path / "inputs.json").read_text()) == {"a": 1}


def test_a_budget_leaves_points_out_and_the_next_run_takes_them(model_and_data, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "PAUSE_S", 0.0)
    options = sweep_options(*model_and_data, methods=("fp32",), references=(), batch_sizes=(1,), seq_lengths=LENGTHS)
    start_with_graphs(tmp_path / "run", options, finished)
    first = run_sweep(options, tmp_path / "run", COMMAND, budget_s=1e-3)
    assert first.num_left == 1 and first.run.rows()[0].shape == primary_shape(options).name  # always one, the best
    assert run_sweep(options, tmp_path / "run", COMMAND).counts == {"ok": 2}


def test_preparing_on_two_ray_nodes(model_and_data, finished, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setattr(latency, "PAUSE_S", 0.0)
    options = sweep_options(
        *model_and_data, methods=("max", "mse"), references=(), batch_sizes=(1,), seq_lengths=LENGTHS
    )
    start_with_graphs(tmp_path / "run", options, finished)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        result = run_sweep(options, tmp_path / "run", COMMAND, ray=cluster.address)
    finally:
        cluster.shutdown()
    steps = [json.loads(line) for line in (result.run.artifacts / "timeline.jsonl").read_text().splitlines()]
    assert result.counts == {"ok": 4} and sum(step["kind"] == "checkpoint" for step in steps) == 2
