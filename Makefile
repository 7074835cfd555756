# Every action of the project, each in an environment that it sets up itself.
# `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MARKDOWN := README.md CHANGELOG.md CONTRIBUTING.md
BENCHMARKS = $(wildcard benchmarks/[a-z]*.py)
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

# One thread a process: the tests already run in $(WORKERS) processes, and on few
# cores oversubscribed matrix products are several times slower.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the actions
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | \
		awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

# Remade whenever the dependencies change, so every other target may rely on it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed, got $$($(PYTHON) --version)." \
		"Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
		--editable . --group dev
	touch $@

.PHONY: env
env: $(STAMP) ## set up the environment in .venv

.PHONY: demo
demo: $(STAMP) ## relative flatness of real models on real data
	$(BIN)/python -m sklearn_relflat

.PHONY: test
test: $(STAMP) ## the tests and doctests
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

.PHONY: lint
lint: $(STAMP) ## style, spelling, notebooks without outputs, workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $$(git ls-files)
	$(BIN)/mdformat --check $(MARKDOWN)
	$(BIN)/zizmor --offline --quiet .github
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify $(NOTEBOOKS))

.PHONY: format
format: $(STAMP) ## what can be put right automatically
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/mdformat $(MARKDOWN)
	$(if $(NOTEBOOKS),$(BIN)/nbstripout $(NOTEBOOKS))

.PHONY: types
types: $(STAMP) ## mypy
	$(BIN)/mypy

.PHONY: docs
docs: $(STAMP) ## the documentation, warnings as errors, in docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# Chromium is of the system: chromium or google-chrome, or else CHROMIUM=PATH.
.PHONY: browser
browser: docs ## the built documentation in Chromium
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group browser
	$(BIN)/python -m pytest -q -rs tests/docs

.PHONY: pictures
pictures: $(STAMP) ## the picture of the README, by the README's code
	$(BIN)/python docs/draw_comparison.py

.PHONY: notebooks
notebooks: $(STAMP) ## execute the notebooks
	$(if $(NOTEBOOKS),$(BIN)/python -m pytest --nbmake -n $(WORKERS) \
		$(NOTEBOOKS),@echo "no notebooks")

.PHONY: benchmarks
benchmarks: $(STAMP) ## the speed tables, measured on this machine
	@set -e; for script in $(BENCHMARKS); do \
		echo "== $$script"; $(BIN)/python $$script; done

.PHONY: experiments
experiments: $(STAMP) ## the quick presets of all experiments, into build/experiments
	$(BIN)/python -m sklearn_relflat.experiments all --preset quick \
		--jobs $(WORKERS) --out build/experiments

.PHONY: repo-review
repo-review: $(STAMP) ## the Scientific Python development guide's checks
	$(BIN)/repo-review .

.PHONY: clean
clean: ## remove the environment and everything that was built
	rm -rf $(VENV) build dist docs/_build docs/api/generated docs/notebooks
	rm -rf .mypy_cache .pytest_cache .ruff_cache .nox
