"""The architecture: imports point one way, and importing the package is cheap."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "sklearn_relflat"
REPOSITORY = Path(__file__).resolve().parents[1]
ROOT = REPOSITORY / PACKAGE

# The floors, from the ground up: a module imports from its own floor and those before
# it. The package itself comes late: what is before it must not import public names.
FLOORS = [
    "_progress",
    "_results",
    "_linear",
    "_losses",
    "_density",
    "_data",
    "_datasets",
    "_models",
    "_layers",
    "_curvature",
    "_flatness",
    "_measures",
    "_invariance",
    "_split",
    "_robustness",
    "_representativeness",
    "_selection",
    "_evidence",
    "_training",
    "_displays",
    "callbacks",
    "datasets",
    "__init__",
    "experiments",
    "_demo",
    "__main__",
]

MAX_LINES = 500


def floor_of(file: Path) -> str:
    """Floor of a file: its folder, or itself where it lies in the package's own."""
    return file.relative_to(ROOT).with_suffix("").parts[0]


FILES = sorted(ROOT.rglob("*.py"))


def imports(file: Path) -> list[tuple[int, str]]:
    """Line and full dotted name of everything that a file imports, at any depth."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def imported_floors(file: Path) -> list[tuple[int, str]]:
    """Line and floor of the package's own modules that a file imports."""
    found = []
    for line, name in imports(file):
        parts = name.split(".")
        if parts[0] == PACKAGE:
            floor = parts[1] if len(parts) > 1 else "__init__"
            found.append((line, floor if floor in FLOORS else "__init__"))
    return found


each_file = pytest.mark.parametrize(
    "file", FILES, ids=lambda file: str(file.relative_to(ROOT))
)


def test_every_file_has_its_floor():
    assert {floor_of(file) for file in FILES} == set(FLOORS)


def test_only_public_faces_lie_outside_the_floors():
    names = {path.name for path in ROOT.iterdir() if path.is_file()}
    faces = {"__init__.py", "__main__.py", "callbacks.py", "datasets.py"}
    assert names == faces | {"__init__.pyi", "py.typed"}


@pytest.mark.parametrize("floor", [f for f in FLOORS if (ROOT / f).is_dir()])
def test_a_floor_opens_with_one_sentence_and_nothing_else(floor):
    tree = ast.parse((ROOT / floor / "__init__.py").read_text(encoding="utf-8"))
    assert len(tree.body) == 1
    assert ast.get_docstring(tree).rstrip(".").count(". ") == 0


@each_file
def test_imports_point_downward(file):
    here = FLOORS.index(floor_of(file))
    above = [
        f"line {line} imports from {floor}"
        for line, floor in imported_floors(file)
        if FLOORS.index(floor) > here
    ]
    assert not above, f"{floor_of(file)} stands below what it imports: {above}"


@each_file
def test_no_relative_imports(file):
    relative = [name for _, name in imports(file) if name.startswith(".")]
    assert not relative


@each_file
def test_matplotlib_is_imported_where_it_draws(file):
    module_level = {
        line
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if not isinstance(node, ast.FunctionDef | ast.ClassDef)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    early = [
        line
        for line, name in imports(file)
        if name.split(".")[0] == "matplotlib" and line in module_level
    ]
    assert not early


@pytest.mark.parametrize("file", sorted((ROOT / "_linear").glob("*.py")))
def test_linear_models_do_without_torch(file):
    roots = {module.split(".")[0] for _, module in imports(file)}
    assert not roots & {"torch", "skorch"}


@each_file
def test_modules_are_short(file):
    n_lines = len(file.read_text(encoding="utf-8").splitlines())
    assert n_lines <= MAX_LINES, f"{n_lines} lines: split it by concept"


def run_python(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_importing_the_package_is_cheap():
    heavy = ["torch", "skorch", "matplotlib", "pandas", "sklearn", "scipy"]
    code = f"import sys, {PACKAGE}; print([m for m in {heavy!r} if m in sys.modules])"
    assert run_python(code) == "[]"


def test_listing_the_names_is_cheap():
    code = f"import sys, {PACKAGE}; dir({PACKAGE}); print('torch' in sys.modules)"
    assert run_python(code) == "False"


def tracked_files() -> list[Path]:
    """Text files that git knows of; none outside a clone."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True
    )
    names = listed.stdout.split("\0") if listed.returncode == 0 else []
    files = [REPOSITORY / name for name in names if name]
    return [file for file in files if file.is_file()]


def test_no_file_names_a_path_of_one_machine():
    files = tracked_files()
    if not files:
        pytest.skip("not in a git clone")
    machine = re.compile(r"(?<![\w/.~)}>-])/(?:work|root|tmp|home)/")
    found = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a picture
            continue
        if file != Path(__file__).resolve():
            found += [f"{file.name}: {match}" for match in machine.findall(text)]
    assert not found, f"tracked files name a path of one machine: {found}"
