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

# A module imports only modules above it: losses, the one view of a model, layers,
# curvature, measures, what stands on measures, shells around them. The package itself
# comes late: what is above it must not import the public names.
ORDER = [
    "_linear_checks",
    "_ridge_solvers",
    "_ridge",
    "_logistic_objective",
    "_logistic",
    "_loss_base",
    "_cross_entropy",
    "_pointwise_losses",
    "_autograd_loss",
    "_losses",
    "_inputs",
    "_batches",
    "_links",
    "_state",
    "_torch_model",
    "_sklearn_data",
    "_skorch_data",
    "_estimator_data",
    "_sklearn_models",
    "_skorch_models",
    "_models",
    "_layer_kinds",
    "_layers",
    "_capture",
    "_autograd_graph",
    "_linearization",
    "_quadratic_forms",
    "_feature_scales",
    "_plan",
    "_curvature",
    "_closed_form",
    "_estimate",
    "_neuron_blocks",
    "_flatness_result",
    "_relative_flatness",
    "_split_model",
    "_feature_split",
    "_radial_kernels",
    "_matrix_distribution",
    "_perturbations",
    "_measurement",
    "_problem",
    "_badness",
    "_weight_space",
    "_max_eigenvalue",
    "_hessian_measures",
    "_norms",
    "_pac_bayes",
    "_sharpness",
    "_measures",
    "_tables",
    "_evaluations",
    "_compare",
    "_call_order",
    "_rescaled_copies",
    "_reparameterize",
    "_invariance",
    "_prefix_memory",
    "_head",
    "_perturbed_labels",
    "_robustness_sums",
    "_feature_robustness",
    "_log_density",
    "_kernel_density",
    "_output_layer",
    "_smoothed_risk",
    "_split_errors",
    "_representativeness",
    "_generalization_bound",
    "_scorers",
    "_flattest_within",
    "_displays",
    "_flatness_regularized",
    "_seeded",
    "callbacks",
    "datasets",
    "__init__",
    "experiments",
    "_demo",
    "_demo_report",
    "__main__",
]

MAX_LINES = 500
# torch alone takes longer to import than all that these need.
WITHOUT_TORCH = ["_linear_checks", "_ridge_solvers", "_ridge", "_logistic"]


def module_of(file: Path) -> str:
    """Name in ORDER of a file: a subpackage counts as one module."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[0]


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


def imported_modules(file: Path) -> list[tuple[int, str]]:
    """Line and name in ORDER of the package's own modules that a file imports."""
    found = []
    for line, name in imports(file):
        parts = name.split(".")
        if parts[0] == PACKAGE:
            inner = parts[1] if len(parts) > 1 else "__init__"
            is_module = inner in ORDER or (ROOT / f"{inner}.py").exists()
            found.append((line, inner if is_module else "__init__"))
    return found


def test_every_module_has_its_place():
    unplaced = {module_of(file) for file in FILES} - set(ORDER)
    assert not unplaced, (
        f"{sorted(unplaced)} have no place in ORDER of tests/test_architecture.py: "
        "add each below every module that it imports and above those that import it"
    )


def test_order_has_no_duplicates():
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_upward(file):
    here = module_of(file)
    above = [*ORDER[: ORDER.index(here)]] if here in ORDER else ORDER
    # The files of a subpackage may import each other.
    allowed = {*above, here} if (ROOT / here).is_dir() else set(above)
    wrong = [
        f"line {line} imports {name}"
        for line, name in imported_modules(file)
        if name not in allowed and name in ORDER
    ]
    assert not wrong, f"{here} imports modules that are not above it: {wrong}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_relative_imports(file):
    relative = [name for _, name in imports(file) if name.startswith(".")]
    assert not relative


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
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


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_linear_models_do_without_torch(name):
    file = ROOT / f"{name}.py"
    if not file.exists():
        pytest.skip(f"there is no module {name}")
    roots = {module.split(".")[0] for _, module in imports(file)}
    assert not roots & {"torch", "skorch"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
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
