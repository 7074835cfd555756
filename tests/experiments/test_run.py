"""The runner: killed runs go on, runs share a folder, and numbers stay the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sklearn_relflat.experiments._results_file import (
    ResultsFile,
    ResultsFileError,
    key_of,
    rounded,
)
from sklearn_relflat.experiments._run import run
from sklearn_relflat.experiments._workers import WorkerError

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
TINY = "tiny_experiment"
HEADER = {"experiment": "a", "preset": "quick", "config": {"n": [1, 2]}, "seed": 0}


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    """Let this process and its workers find the tiny experiment."""
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(REPOSITORY)]))


def start(out, preset="slow", n_jobs=2):
    """Start a run in a process of its own."""
    code = (
        "from sklearn_relflat.experiments._run import run\n"
        f"run({TINY!r}, {preset!r}, {str(out)!r}, n_jobs={n_jobs}, progress=False)"
    )
    # A file: Python's spawned processes import the main module again.
    script = out.parent / f"{out.name}-{preset}.py"
    script.write_text(
        f"if __name__ == '__main__':\n    {code.replace(chr(10), chr(10) + '    ')}\n"
    )
    return subprocess.Popen([sys.executable, str(script)])


def lines(out, preset="slow"):
    """Whole lines behind the header."""
    path = out / f"{TINY}-{preset}.jsonl"
    return path.read_text().split("\n")[1:-1] if path.exists() else []


def wait_for_lines(out, n):
    """Wait until a run has finished n tasks."""
    end = time.monotonic() + 60
    while len(lines(out)) < n:
        assert time.monotonic() < end, "the run does not finish its tasks"
        time.sleep(0.02)


def numbers(out, preset="slow"):
    """What the summary says, without times."""
    result = json.loads((out / f"{TINY}-{preset}.json").read_text())
    return {name: value for name, value in result.items() if name != "seconds"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Numbers of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(REPOSITORY)]))
        run(TINY, "slow", out, n_jobs=1, progress=False)
    return numbers(out)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_run_that_is_killed_twice_ends_with_the_same_numbers(tmp_path, undisturbed):
    out = tmp_path / "out"
    for n in (2, 5):
        process = start(out)
        wait_for_lines(out, n)
        process.kill()
        process.wait()
        assert n <= len(lines(out)) < 10
    kept = lines(out)
    assert start(out).wait() == 0
    assert lines(out)[: len(kept)] == kept
    assert len(lines(out)) == 10
    assert numbers(out) == undisturbed


def test_sigterm_leaves_a_file_to_go_on_with(tmp_path, undisturbed):
    out = tmp_path / "out"
    process = start(out)
    wait_for_lines(out, 1)
    process.terminate()
    assert process.wait() != 0
    data = (out / f"{TINY}-slow.jsonl").read_bytes()
    assert data.endswith(b"\n")
    assert not (out / f"{TINY}-slow.json").exists()
    assert start(out).wait() == 0
    assert numbers(out) == undisturbed


def test_two_runs_share_a_folder_and_its_work(tmp_path, undisturbed):
    out = tmp_path / "out"
    out.mkdir()
    processes = [start(out, n_jobs=1), start(out, n_jobs=1)]
    assert [process.wait() for process in processes] == [0, 0]
    found = [key_of(json.loads(line)["task"]) for line in lines(out)]
    assert len(set(found)) == 10
    if sys.platform != "win32":
        assert len(found) == 10
    assert numbers(out) == undisturbed


def test_records_come_in_the_order_of_tasks_with_their_fields(tmp_path):
    result = run(TINY, "quick", tmp_path, n_jobs=2, progress=False)
    rows = result["summary"]["rows"]
    assert [(r["number"], r["half"]) for r in rows] == [
        (number, half) for number in range(6) for half in (0, 1)
    ]
    assert result["n_tasks"] == 6
    assert result["seed"] == 0
    assert result["versions"]["torch"]
    stem = tmp_path / f"{TINY}-quick"
    assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in stem.with_suffix(".svg").read_text()
    assert "| number" in stem.with_suffix(".md").read_text()


def test_a_torn_line_is_measured_again(tmp_path):
    whole = run(TINY, "quick", tmp_path, progress=False)
    path = tmp_path / f"{TINY}-quick.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    assert run(TINY, "quick", tmp_path, progress=False)["summary"] == whole["summary"]
    assert len(path.read_bytes().splitlines()) == len(data.splitlines()) + 1


def test_a_finished_run_measures_nothing_again(tmp_path):
    run(TINY, "quick", tmp_path, progress=False)
    path = tmp_path / f"{TINY}-quick.jsonl"
    before = path.read_bytes()
    run(TINY, "quick", tmp_path, progress=False)
    assert path.read_bytes() == before


def test_another_seed_is_refused(tmp_path):
    run(TINY, "quick", tmp_path, progress=False)
    with pytest.raises(ResultsFileError, match=r"the seed 1 .*got 0.*--seed 0\."):
        run(TINY, "quick", tmp_path, seed=1, progress=False)


def test_the_seed_decides(tmp_path):
    first = run(TINY, "quick", tmp_path / "0", seed=0, progress=False)
    second = run(TINY, "quick", tmp_path / "1", seed=1, progress=False)
    assert first["summary"] != second["summary"]


def test_a_failing_task_is_named_and_the_others_stay(tmp_path):
    with pytest.raises(WorkerError, match=r"'number': 2(?s:.*)the third one"):
        run(TINY, "failing", tmp_path, progress=False)
    assert len(lines(tmp_path, "failing")) == 2


def test_a_number_that_json_does_not_have_is_refused(tmp_path):
    with pytest.raises(WorkerError, match="not JSON compliant"):
        run(TINY, "nan", tmp_path, progress=False)


def test_an_unknown_preset_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\['quick', .*got 'huge'"):
        run(TINY, "huge", tmp_path, progress=False)


# The file


def test_another_configuration_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    ResultsFile(path, HEADER).close()
    other = HEADER | {"config": {"n": [1, 3]}}
    with pytest.raises(ResultsFileError, match=r"the config .*'n': \[1, 2\].*--out"):
        ResultsFile(path, other)


def test_a_file_of_something_else_is_refused_and_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("my notes\n")
    with pytest.raises(ResultsFileError, match="without their header"):
        ResultsFile(path, HEADER)
    assert path.read_text() == "my notes\n"


def test_a_torn_header_is_written_again(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"experiment": "a", "pre')
    file = ResultsFile(path, HEADER)
    file.append({"i": 0}, [], 0.0)
    assert list(file.read()) == ['{"i": 0}']
    file.close()


def test_the_first_of_two_lines_for_a_task_counts(tmp_path):
    file = ResultsFile(tmp_path / "a.jsonl", HEADER)
    for value in (1, 2):
        file.append({"b": 1, "a": 2}, [{"value": value}], 0.0)
    assert file.read()[key_of({"a": 2, "b": 1})]["records"] == [{"value": 1}]
    file.close()


def test_rounding_keeps_six_digits_and_the_types():
    value = {"x": [1.23456789, (2e-9 / 3,)], "n": 123456789, "s": "a", "b": True}
    expected = {"x": [1.23457, [6.66667e-10]], "n": 123456789, "s": "a", "b": True}
    assert rounded(value) == expected
