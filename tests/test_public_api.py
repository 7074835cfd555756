"""Every public name resolves, is documented, and is on the API page."""

import importlib
import importlib.util
import inspect
import pickle
import re
from pathlib import Path

import pytest

import sklearn_relflat

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "sklearn_relflat"


def load_api_reference():
    """The module that writes the API page, from the documentation's folder."""
    file = REPOSITORY / "docs" / "api_reference.py"
    if not file.exists():
        pytest.skip("the documentation is not part of this distribution")
    spec = importlib.util.spec_from_file_location("api_reference", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULES = [
    f"sklearn_relflat.{file.stem}"
    for file in sorted(PACKAGE.glob("*.py"))
    if not file.stem.startswith("_")
]
NAMES = [
    ("sklearn_relflat", name)
    for name in sklearn_relflat.__all__
    if f"sklearn_relflat.{name}" not in MODULES and not (PACKAGE / name).is_dir()
]
for module in MODULES:
    own = getattr(importlib.import_module(module), "__all__", [])
    NAMES += [(module, name) for name in own]

documented = pytest.mark.parametrize(
    ("module", "name"), NAMES, ids=[f"{module}.{name}" for module, name in NAMES]
)


def public(module, name):
    """The object with a public name."""
    return getattr(importlib.import_module(module), name)


def section(doc: str, title: str) -> str | None:
    """Text of a numpydoc section, or None."""
    match = re.search(
        rf"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n-{{3,}}$|\Z)", doc, re.M | re.S
    )
    return match and match[1]


def parameter_names(doc: str) -> list[str]:
    """Names in the Parameters section."""
    body = section(doc, "Parameters") or ""
    headings = re.findall(r"^(\S[^:\n]*?)(?: :.*)?$", body, re.M)
    return [name.strip().lstrip("*") for line in headings for name in line.split(",")]


def test_names_are_unique():
    assert len(sklearn_relflat.__all__) == len(set(sklearn_relflat.__all__))


@pytest.mark.parametrize("module", MODULES)
def test_public_modules_say_what_is_public(module):
    assert importlib.import_module(module).__all__


@documented
def test_resolves_and_pickles(module, name):
    value = public(module, name)
    assert name in dir(importlib.import_module(module))
    assert pickle.loads(pickle.dumps(value)) is value


@documented
def test_is_documented(module, name):
    value = public(module, name)
    doc = inspect.getdoc(value)
    assert doc, f"{name} has no docstring"
    assert doc.splitlines()[0].endswith("."), f"{name} begins with no sentence"
    if inspect.isclass(value):
        titles = ["Parameters", "Attributes"]
    else:
        titles = ["Returns", "Yields"]
    # A splitter without options has nothing to list.
    bare = inspect.isclass(value) and value.__init__ is object.__init__
    assert bare or any(section(doc, t) for t in titles), f"{name} lacks {titles}"
    # Nobody makes a result by hand: what returns it has the example.
    is_result = inspect.isclass(value) and section(doc, "Parameters") is None
    assert is_result or ">>>" in doc, f"{name} has no example"


@documented
def test_documents_its_parameters(module, name):
    value = public(module, name)
    doc = inspect.getdoc(value) or ""
    if inspect.isclass(value) and section(doc, "Parameters") is None:
        pytest.skip("a result: its attributes are documented")
    signature = [p for p in inspect.signature(value).parameters if p != "self"]
    assert parameter_names(doc) == signature


@documented
def test_is_on_the_api_page(module, name):
    sections = load_api_reference().sections()
    listed = [(place, entry) for _, place, names in sections for entry in names]
    assert listed.count((module, name)) == 1


def test_api_page_sections():
    stub = '__all__ = [\n  # first part.\n  "a",\n  "b",\n  # Second\n  "c",\n]\n'
    api_reference = load_api_reference()
    sections = api_reference.stub_sections(stub)
    assert sections == {"First part": ["a", "b"], "Second": ["c"]}
    page = api_reference.page([("First part", "sklearn_relflat", ["a", "b"])])
    assert "First part\n----------" in page
    assert "\n   a\n   b\n" in page
