"""What every command shares: near matches, one-line errors, exit codes, and outputs that are whole or absent."""

import errno

import pytest

from engine.cli import CommandParser, UsageError, did_you_mean, one_line, run_command, whole_output


def parser():
    made = CommandParser("python -m thing", "Does a thing.")
    made.add_argument("--model", required=True, help="the model")
    made.add_argument("--method", choices=("max", "mse"), default="max", help="the method")
    return made


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modle", "x"], "unknown argument --modle (did you mean --model"),
        (["--model", "x", "--methid=mse"], "unknown argument --methid"),
        (["--model", "x", "--method", "maxx"], "invalid choice: 'maxx'"),
        ([], "required: --model"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(words, message, capsys):
    with pytest.raises(SystemExit) as end:
        run_command(parser(), lambda arguments: None, words)
    captured = capsys.readouterr().err
    assert end.value.code == 2 and message in captured and len(captured.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ValueError("two\nlines"), 1, "python -m thing: two lines"),
        (UsageError("not that"), 2, "python -m thing: not that"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was written"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(error, code, message, capsys):
    def fail(arguments):
        raise error

    with pytest.raises(SystemExit) as end:
        run_command(parser(), fail, ["--model", "x"])
    captured = capsys.readouterr().err
    assert end.value.code == code and message in captured and len(captured.splitlines()) == 1


def test_debug_shows_the_traceback():
    def fail(arguments):
        raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        run_command(parser(), fail, ["--model", "x", "--debug"])


def test_of_the_exporters_pages_what_went_wrong_is_kept():
    pages = ("Failed to convert the exported program to an ONNX model. \x1b[96mThis is step 3/3\x1b[0m of exporting "
             "the model to ONNX. Next steps:\n- If there is a missing ONNX function, implement it.\n"
             "## Exception summary\n\nNo ONNX function found for grouped_mm. ")  # fmt: skip
    wanted = "Failed to convert the exported program to an ONNX model. No ONNX function found for grouped_mm."
    assert one_line(RuntimeError(pages)) == wanted
    assert one_line(RuntimeError(pages + "x " * 500)).endswith("... (--debug shows all)")
    assert one_line(RuntimeError("y" * 900)) == "y" * 900 and one_line(KeyError()) == "KeyError"


def test_an_output_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "out.bin"
    with pytest.raises(OSError, match="disk"), whole_output(out) as path:
        path.write_bytes(b"half")
        raise OSError("disk")
    assert not out.exists() and not list(out.parent.iterdir())
    with whole_output(out) as path:
        path.write_bytes(b"whole")
    assert out.read_bytes() == b"whole" and list(out.parent.iterdir()) == [out]
    with pytest.raises(FileExistsError, match="choose another --out, or replace it with --force"), whole_output(out):
        pytest.fail("must be refused before any work")


def test_force_keeps_the_old_folder_until_the_new_one_is_whole(tmp_path):
    out = tmp_path / "folder"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(RuntimeError), whole_output(out, force=True) as path:
        path.mkdir()
        raise RuntimeError
    assert [p.name for p in out.iterdir()] == ["old"]
    with whole_output(out, force=True) as path:
        path.mkdir()
        (path / "new").touch()
    assert [p.name for p in out.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [out]


def test_of_two_processes_with_one_out_the_later_is_refused_and_the_first_ones_files_stay(tmp_path):
    out = tmp_path / "engine"
    (tmp_path / "engine.json").write_text("of a build that was killed between the two")
    with pytest.raises(FileExistsError, match="exists; choose another --out"), whole_output(out) as late:
        late.write_text("late")
        (late.parent / "engine.json").write_text("late")
        with whole_output(out) as early:
            early.write_text("early")
            (early.parent / "engine.json").write_text("early")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"engine": "early", "engine.json": "early"}


def test_a_full_disk_is_named_with_the_file_that_did_not_fit(tmp_path):
    with pytest.raises(OSError, match=r"model cannot be written: No space left"), whole_output(tmp_path / "model"):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_hint_names_near_matches_and_is_silent_without_any():
    allowed = {"onnxruntime": 1, "openvino": 2}
    assert did_you_mean("openvin", allowed) == "; did you mean openvino?"
    assert did_you_mean("onnxrunt", allowed, " ({})", most=3) == " (did you mean onnxruntime?)"
    assert did_you_mean("a", ["ab", "ac", "ad", "ae"], "{}", most=3).count(",") == 2
    assert did_you_mean("zzz", allowed) == did_you_mean("zzz", [], "{}") == ""
