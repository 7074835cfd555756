"""What all results can do: text, frame, HTML, float, copies."""

import copy
import pickle
from dataclasses import replace
from html.parser import HTMLParser
from importlib.metadata import PackageNotFoundError
from inspect import isabstract
from pathlib import Path

import numpy as np
import pytest

from sklearn_relflat._results import html as html_module
from sklearn_relflat._results import tables
from sklearn_relflat._results.html import documentation_url, html_table
from sklearn_relflat._results.result import NumberResult, Result, TableReport
from sklearn_relflat._results.tables import RowList
from tests.results.all_results import HOSTILE, RESULTS, layerwise, result_of

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "user_guide"

each = pytest.mark.parametrize("name", RESULTS)


class Page(HTMLParser):
    """Texts and links of a page whose elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.links, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags.append(tag)
        self.links += [value for key, value in attrs if key == "href"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def all_kinds(kind):
    """Types derived from one that can be made."""
    found = set() if isabstract(kind) else {kind}
    return found.union(*(all_kinds(sub) for sub in kind.__subclasses__()))


def same(found, expected):
    """Whether two columns are the same, NaN and None counting as one."""
    found = [None if value != value else value for value in found]
    expected = [None if value != value else value for value in expected]
    return found == expected


def test_every_kind_of_result_is_in_the_table():
    ours = {k for k in all_kinds(Result) if k.__module__.startswith("sklearn_relflat")}
    assert ours == {type(result_of(name)) for name in RESULTS}
    assert {kind.__name__ for kind in ours} == {name.split()[0] for name in RESULTS}


@each
def test_text(name):
    result = result_of(name)
    line, text = repr(result), str(result)
    for part in RESULTS[name].shown:
        assert part in text
    assert "array(" not in text
    if isinstance(result, NumberResult):
        assert text == line
    else:
        for row in result.cells():
            assert any(all(v in at for v in row.values()) for at in text.splitlines())
        assert text.startswith(result.title)
        for said in (result._sentence(), *result.remarks):
            assert said in text
    if not isinstance(result, dict) or isinstance(result, TableReport):
        assert line.startswith(f"<{type(result).__name__}")
        assert line.endswith(">")
        assert "\n" not in line


def test_layers_print_as_a_table():
    result = layerwise()
    assert repr(result) == str(result)
    assert len(repr(result).splitlines()) == 2 + 2 + len(result) + 2


@each
def test_sentence_is_one(name):
    sentence = result_of(name)._sentence()
    assert sentence.endswith(".")
    assert sentence[0].isupper()
    assert "\n" not in sentence


@each
def test_cells_are_texts_of_the_same_columns(name):
    cells = result_of(name).cells()
    assert cells
    assert all(list(row) == list(cells[0]) for row in cells)
    assert all(isinstance(v, str) and v for row in cells for v in row.values())


@each
def test_frame_agrees_with_the_attributes(name):
    result = result_of(name)
    frame = result.frame()
    expected = RESULTS[name].columns(result)
    assert expected.keys() <= set(frame.columns)
    for column, values in expected.items():
        values = np.broadcast_to(np.array(values, dtype=object), len(frame)).tolist()
        assert same(frame[column].tolist(), values), column


@each
def test_frame_without_pandas(name, monkeypatch):
    result = result_of(name)
    columns = list(result.frame().columns)
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    rows = result.frame()
    assert isinstance(rows, RowList)
    assert all(list(row) == columns for row in rows)


@each
def test_html(name):
    result = result_of(name)
    page = Page(result._repr_html_())
    allowed = {"a", "p", "strong", "table", "tbody", "td", "th", "thead", "tr"}
    assert set(page.tags) <= allowed
    assert page.tags.count("tr") == 1 + len(result.cells())
    for text in (result._sentence(), *result.remarks, *result.cells()[0].values()):
        assert text in page.texts
    (link,) = page.links
    assert link == f"{documentation_url()}user_guide/{RESULTS[name].guide}.html"
    assert (GUIDE / f"{RESULTS[name].guide}.md").is_file()


@pytest.mark.parametrize("name", [n for n, case in RESULTS.items() if case.hostile])
def test_html_escapes_names(name):
    text = RESULTS[name].hostile()._repr_html_()
    assert "<i>" not in text
    assert any(HOSTILE in said for said in Page(text).texts)


@each
def test_float(name):
    result, number = result_of(name), RESULTS[name].number
    if number is None:
        with pytest.raises(TypeError):
            float(result)
    else:
        assert float(result) == getattr(result, number)
        assert type(float(result)) is float


def test_float_of_a_grid_says_what_to_do():
    with pytest.raises(TypeError, match=r"at one delta .* got 2\. Choose one"):
        float(result_of("GeneralizationBound on a grid"))


@each
def test_copies(name):
    result = result_of(name)
    for other in (
        pickle.loads(pickle.dumps(result)),
        copy.copy(result),
        copy.deepcopy(result),
    ):
        assert type(other) is type(result)
        assert repr(other) == repr(result)
        assert other._repr_html_() == result._repr_html_()
        assert other.frame().equals(result.frame())


@pytest.mark.parametrize("name", ["HessianEigenvalues", "FeatureRobustness"])
def test_a_long_table_is_shown_in_part(name):
    result = result_of(name)
    many = np.linspace(1.0, 0.1, 50)
    if name == "HessianEigenvalues":
        result = replace(result, values=many, residuals=many)
    else:
        result = replace(result, deltas=many, values=np.tile(many, (4, 1)).T)
    cells = result.cells()
    assert len(cells) == 21
    assert set(cells[10].values()) == {"..."}
    assert len(result.frame()) == 50


def test_unknown_flatness_term_is_a_dash():
    result = replace(result_of("FeatureRobustness"), second_moment=None)
    assert {row["flatness term"] for row in result.cells()} == {"-"}
    assert result.frame()["flatness_term"].isna().all()


def test_no_layer_at_all():
    nothing = type(layerwise())({}, {"0": "it is shared"})
    assert "No layer was measured." in str(nothing)
    assert "Layer '0' was not measured: it is shared." in str(nothing)
    Page(nothing._repr_html_())
    assert len(nothing.frame()) == 0


def test_one_layer_says_what_its_result_says():
    first = next(iter(layerwise().items()))
    one = type(layerwise())(dict([first]), {})
    assert one._sentence() == first[1]._sentence()


def test_rows_without_pandas_show_as_html():
    rows = RowList([{"<a>": 1.5, "b": "<i>"}])
    page = Page(rows._repr_html_())
    assert page.texts == ["<a>", "b", "1.5", "<i>"]
    assert html_table([]) == RowList()._repr_html_()


class Published:
    """Metadata of a project."""

    def __init__(self, *urls):
        self.urls = list(urls) or None

    def get_all(self, name):
        return self.urls if name == "Project-URL" else None


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (
            ["Paper, https://a.org/p", "Documentation, https://b.org/d"],
            "https://b.org/d/",
        ),
        (["Documentation, https://b.org/d/"], "https://b.org/d/"),
        (["Paper, https://a.org/p"], ""),
        ([], ""),
    ],
)
def test_links_begin_where_the_documentation_is(urls, expected, monkeypatch):
    monkeypatch.setattr(html_module, "metadata", lambda name: Published(*urls))
    documentation_url.cache_clear()
    try:
        assert documentation_url() == expected
        link = Page(result_of("RelativeFlatness")._repr_html_()).links[0]
        assert link == f"{expected}user_guide/relative_flatness.html"
    finally:
        documentation_url.cache_clear()


def test_package_that_is_not_installed(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(html_module, "metadata", missing)
    documentation_url.cache_clear()
    try:
        assert documentation_url() == ""
    finally:
        documentation_url.cache_clear()
