# `make demo` shows the whole of Rayfuse on this machine; `make check test` is what CI runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.rayfuse-setup
PYTEST := $(BIN)/python -m pytest
# uv, where it is installed, is much faster than pip.
INSTALL := $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/pip install) --constraint constraints.txt
COVERED_TESTS := tests/unit tests/specs tests/integration tests/training tests/mlflow
# Compiled tests are kept, also where the environment turns that off: pytest's rewriting of assertions takes seconds.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast check coverage docs docs-serve figures audit bench bench-generation bench-quality slow clean

help:
	@echo "make setup   install Rayfuse with all extras into $(VENV), with the versions of constraints.txt"
	@echo "make demo    real data, train, gate, promote, serve, and ask over HTTP"
	@echo "make check   linters, spelling and banned words, types, import contracts, and the commands in the README"
	@echo "make test    unit tests, every shipped spec, every variant trained and loaded, a local Ray and a small Kubernetes"
	@echo "make test-fast   the part of it that starts neither Ray nor Kubernetes"
	@echo "make coverage   lines and branches that the tests without Ray and Kubernetes run, also as HTML in build/coverage"
	@echo "make docs    build the documentation into site/ and check it; make docs-serve shows it while you write"
	@echo "make figures     size, documentation and language of the code, and start-up times, with their limits"
	@echo "make audit   known vulnerabilities of the versions in constraints.txt, as PyPI lists them"
	@echo "make slow    tests that take minutes"
	@echo "make bench   measurements"
	@echo "make bench-generation MODELS=…   rates of the decoder and of LoRA training with MODELS/smollm2-135m-instruct"
	@echo "make bench-quality DATA=… MODELS=… STORAGE=…   accuracy on public data, three seeds each; hours on a CPU"
	@echo "make clean   remove caches and build leftovers; data, models and runs stay"

setup: $(STAMP)

# torch first: an installed build is not replaced; otherwise the default one is installed.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -c "import torch" 2>/dev/null || $(INSTALL) torch
	$(INSTALL) --editable '.[tune,serve,demo,docs,dev]'
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) is not here; name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Rayfuse needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V 2>&1);" \
	       "name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv or pip; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

demo: setup
	$(BIN)/rayfuse demo

# By file: tests of one share a cluster, and each process of pytest has its own. Those with long tests are first.
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test: test-fast
	$(PYTEST) $(BY_FILE) tests/ray tests/browser tests/docs tests/mlflow tests/distributed tests/k8s tests/cases

test-fast: setup
	$(PYTEST) -n 2 --dist worksteal -m "not slow" tests/unit tests/specs tests/integration tests/training

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell -D - -D docs/banned_words.txt
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(PYTEST) -q tests/specs/test_readme.py tests/specs/test_language.py

# Absolute, as the processes that tests start have other working folders.
coverage: export COVERAGE_FILE = $(CURDIR)/build/coverage/data
coverage: setup
	rm -rf build/coverage
	$(BIN)/coverage run -m pytest -n 2 --dist worksteal -m "not slow" $(COVERED_TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage xml --quiet
	$(BIN)/coverage html --quiet
	$(BIN)/coverage json --quiet
	$(BIN)/coverage report
	$(BIN)/python bench/coverage_badge.py

docs: setup
	$(BIN)/python docs/tooling/build_site.py

docs-serve: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --no-strict

figures: setup
	$(BIN)/python bench/figures.py

bench: setup
	$(BIN)/python bench/run.py

bench-generation: setup
	$(BIN)/python bench/run.py generation lora

bench-quality: setup
	PYTHONPATH=bench $(BIN)/python bench/quality.py

audit:
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit==2.10.1
	build/audit/bin/pip-audit --no-deps --disable-pip --requirement constraints.txt

slow: setup
	$(PYTEST) -m slow

clean:
	rm -rf build dist site platform/*.egg-info .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find platform tests -name __pycache__ -type d -prune -exec rm -rf {} +
