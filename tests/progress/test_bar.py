"""Bars with the time that is left."""

from sklearn_relflat._progress.bar import progress_bar


def test_quiet(capsys):
    assert list(progress_bar("abc", title="t", unit="u", verbose=0, total=3)) == [
        *"abc"
    ]
    with progress_bar(title="t", unit="u", verbose=False, total=3) as bar:
        bar.update()
    assert capsys.readouterr() == ("", "")


def test_loud(capsys):
    assert list(progress_bar("abc", title="t", unit="u", verbose=1)) == [*"abc"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "t: 100%" in err


def test_time_left(capsys):
    with progress_bar(title="t", unit="u", verbose=1, total=4) as bar:
        bar.update(3)
        bar.refresh()
    assert "75%" in (err := capsys.readouterr().err)
    assert "3/4 [" in err
    assert "<" in err
