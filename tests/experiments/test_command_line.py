"""The command line of the experiments."""

import subprocess
import sys

import pytest

from sklearn_relflat.experiments.__main__ import listing, main, parse
from sklearn_relflat.experiments._registry import experiment_names, load_experiment


def test_list_names_every_experiment_with_claim_and_cost(capsys):
    assert main(["list"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for name in experiment_names():
        module = load_experiment(name)
        assert " ".join(module.CLAIM.split()) in printed
        for cost in module.COST.values():
            assert cost in printed
        assert module.NEEDS_DATA is False or "full needs --data" in printed


def test_lines_of_the_list_fit_a_terminal():
    assert max(map(len, listing().splitlines())) <= 88


def test_options_have_defaults():
    options = parse(["theorem5"])
    assert (options.preset, str(options.out), options.jobs) == ("quick", "results", 1)
    assert (options.seed, options.data) == (0, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure0"], "expected list, all, or one of"),
        (["theorem5", "--seed", "-1"], "expected a whole number from 0"),
        (["theorem5", "--jobs", "0"], "expected a number of processes"),
        (["theorem5", "--jobs", "-2"], "expected a number of processes"),
        (["theorem5", "--data", "nowhere"], "a folder that exists, got 'nowhere'"),
        (["theorem5", "--out", __file__], "expected a folder, got the file"),
    ],
)
def test_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_a_foreign_file_is_refused_in_a_sentence(tmp_path, capsys):
    (tmp_path / "theorem5-quick.jsonl").write_text("notes\n")
    assert main(["theorem5", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "theorem5-quick.jsonl" in error
    assert "Traceback" not in error


def test_help_does_not_load_torch():
    module = "sklearn_relflat.experiments.__main__"
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
