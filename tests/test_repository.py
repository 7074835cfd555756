"""The repository's files agree with each other."""

import os
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PYPROJECT = REPOSITORY / "pyproject.toml"
if not (REPOSITORY / ".ci" / "run").exists():
    pytest.skip("not in a clone of the repository", allow_module_level=True)
yaml = pytest.importorskip("yaml")

SETTINGS = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]


def read(name: str) -> str:
    """Text of a file of the repository."""
    return (REPOSITORY / name).read_text(encoding="utf-8")


def canonical(name: str) -> str:
    """Name of a distribution as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def constraints(file: str) -> dict[str, str]:
    """Versions in a file of constraints, by distribution."""
    lines = [line for line in read(file).splitlines() if not line.startswith("#")]
    pairs = [line.split("==") for line in lines if line]
    return {canonical(name): version for name, version in pairs}


PINNED = constraints("constraints.txt")
HOOKS = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]


def requirement(text: str) -> str:
    """Name of the distribution that a requirement asks for."""
    return canonical(re.match(r"[\w.-]+", text)[0])


@pytest.mark.parametrize(
    ("repository", "tool"),
    [
        ("astral-sh/ruff-pre-commit", "ruff"),
        ("codespell-project/codespell", "codespell"),
        ("hukkin/mdformat", "mdformat"),
        ("zizmorcore/zizmor-pre-commit", "zizmor"),
    ],
)
def test_hooks_have_the_pinned_versions(repository, tool):
    (hook,) = [hook for hook in HOOKS if hook["repo"].endswith(repository)]
    assert hook["rev"].removeprefix("v") == PINNED[tool]
    for dependency in hook["hooks"][0].get("additional_dependencies", []):
        name, pinned = dependency.split("==")
        assert pinned == PINNED[canonical(name)]


def test_every_direct_dependency_is_pinned():
    groups = SETTINGS["dependency-groups"].values()
    asked = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["plot"]]
    asked += [entry for group in groups for entry in group if isinstance(entry, str)]
    assert not {requirement(text) for text in asked} - set(PINNED)


def test_torch_is_pinned_without_a_local_version():
    assert PINNED["torch"] == "2.13.0"


def test_minimum_versions_are_the_lower_bounds():
    minimum = constraints("constraints-minimum.txt")
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *extras["plot"], *extras["frame"]]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)$", text).groups() for text in asked)
    # Two tools deprecate what such old versions do with them.
    assert set(bounds) | {"pyparsing", "pytest"} == set(minimum)
    for name, bound in bounds.items():
        lowest = [int(part) for part in minimum[name].split(".")]
        assert lowest[: bound.count(".") + 1] == [int(p) for p in bound.split(".")]


def test_one_version():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == PROJECT["version"] == version("sklearn-relflat")
    assert citation["license"] == PROJECT["license"]


def test_changelog_has_an_unreleased_part_or_the_version():
    headings = re.findall(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.M)
    assert headings
    assert headings[0] in {"Unreleased", PROJECT["version"]}


def test_ignored_checks_are_few_and_have_reasons():
    ignored = SETTINGS["tool"]["repo-review"]["ignore"]
    assert len(ignored) <= 3
    assert all(len(reason.split()) >= 5 for reason in ignored.values())


def test_ci_script_is_executable_and_calls_targets_that_exist():
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.M))
    called = re.search(r"for target in (.+); do", read(".ci/run"))[1].split()
    assert {"test", *called} <= targets
    workflows = (REPOSITORY / ".github" / "workflows").glob("*.yml")
    steps = [
        step.get("run", "")
        for workflow in workflows
        for job in yaml.safe_load(workflow.read_text("utf-8"))["jobs"].values()
        for step in job["steps"]
    ]
    for step in steps:
        if step.startswith("make "):
            assert set(step.split()[1:]) <= targets, step


def test_every_make_target_is_explained():
    phony = set(re.findall(r"^\.PHONY: ([a-z-]+)", read("Makefile"), re.M))
    explained = set(re.findall(r"^([a-z-]+):.*## ", read("Makefile"), re.M))
    assert phony == explained
