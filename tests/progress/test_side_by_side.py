"""Tasks that run side by side and come back in order."""

import operator

import pytest

from sklearn_relflat._progress.side_by_side import side_by_side


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_order(n_jobs):
    tasks = [(10, k) for k in range(1, 6)]
    assert list(side_by_side(operator.floordiv, tasks, n_jobs)) == [10, 5, 3, 2, 2]


def test_one_job_works_when_asked():
    seen = []
    results = side_by_side(seen.append, [(1,), (2,)], None)
    assert seen == []
    next(results)
    assert seen == [1]


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_errors_arrive(n_jobs):
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(operator.floordiv, [(1, 1), (1, 0)], n_jobs))


def test_nothing_to_do():
    assert list(side_by_side(pow, [], 2)) == []


def test_bar(capsys):
    list(side_by_side(pow, [(2, 3)] * 4, 1, title="powers", unit="power", verbose=1))
    err = capsys.readouterr().err
    assert "powers: 100%" in err
    assert "4/4" in err
