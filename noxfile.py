#!/usr/bin/env python3
# /// script
# dependencies = ["nox>=2025.5.1"]
# ///
"""The tests in other environments than the one that the Makefile sets up."""

from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.default_venv_backend = "uv|virtualenv"

PYPROJECT = nox.project.load_toml()
TEST = nox.project.dependency_groups(PYPROJECT, "test")


def run_tests(session: nox.Session) -> None:
    session.run("pytest", "-n", "2", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def tests(session: nox.Session) -> None:
    """The versions of constraints.txt, as `make test`."""
    session.install("--constraint", "constraints.txt", "--editable", ".", *TEST)
    run_tests(session)


@nox.session(default=False)
def minimum(session: nox.Session) -> None:
    """The oldest versions that pyproject.toml allows."""
    session.install("--constraint", "constraints-minimum.txt", "--editable", ".", *TEST)
    run_tests(session)


@nox.session(default=False)
def latest(session: nox.Session) -> None:
    """The newest release of everything."""
    session.install("--upgrade", "--editable", ".", *TEST)
    run_tests(session)


@nox.session(default=False)
def wheel(session: nox.Session) -> None:
    """Build the distributions; install the wheel and import every public name."""
    session.install("--constraint", "constraints.txt", "build")
    dist = session.create_tmp()
    session.run("python", "-m", "build", "--outdir", dist)
    (file,) = Path(dist).glob("*.whl")
    session.install("--constraint", "constraints.txt", str(file))
    session.chdir(dist)  # away from the source
    code = "import sklearn_relflat as s; [getattr(s, name) for name in s.__all__]"
    session.run("python", "-c", code)


if __name__ == "__main__":
    nox.main()
