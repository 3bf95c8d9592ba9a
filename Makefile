# Each target does all of its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.ready
# The constraints list every package. Without --no-deps, an older pip still looks for newer releases and stops at the first
# one that it finds.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup run demo-failure test deep check lint types layers rules protos-unchanged protos bench constraints clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(READY) ## create .venv with everything that is needed

$(RUNS): constraints-run.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) lacks venv: install it (on Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  echo "Creating $(VENV) ..."; rm -rf $(VENV); $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@echo "Installing the programs' dependencies ($$(grep -c '==' $<) packages, about 250 MB; once, about a minute) ..."
	@$(PIP) install --quiet --no-deps --require-hashes -r $<
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(READY): $(RUNS) constraints.txt
	@echo "Installing the development tools ($$(grep -c '==' constraints.txt) packages in all; once, about a minute) ..."
	@$(PIP) install --quiet --no-deps --require-hashes -r constraints.txt
	@$(PIP) check
	@touch $@

run: $(RUNS) ## run a control plane, a node and 20 simulated agents in this terminal
	@$(BIN)/opamp-relay standalone --demo

demo-failure: $(RUNS) ## run the same with a change that agents refuse: a canary fails and is rolled back
	@rm -rf .data/demo-failure
	@$(BIN)/opamp-relay standalone --demo-failure --data .data/demo-failure

test: setup ## run all tests; those whose tools are missing are skipped
	$(BIN)/python -m pytest

deep: setup ## run the protocol and decision tests with fifty times as many generated examples
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest tests/opamp tests/policy tests/fleet tests/link tests/test_documents.py --timeout=1800

check: lint types layers protos-unchanged rules ## run what CI runs
	$(BIN)/python -m pytest --cov=relay --cov-report=term:skip-covered --cov-fail-under=90

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

rules: setup ## check that every decision module is covered by its own test alone
	$(BIN)/python -m tests.individual_coverage

protos-unchanged: setup
	$(BIN)/python protos/generate.py --check

protos: setup ## regenerate relay/pb/ from protos/
	$(BIN)/python protos/generate.py

bench: setup ## run the benchmarks and print a table (needs Go)
	$(BIN)/python -m tests.bench

constraints: ## update the pinned dependencies (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --prerelease if-necessary-or-explicit --generate-hashes \
	  --no-emit-index-url --no-header --all-extras pyproject.toml -o constraints.txt
	uv pip compile --quiet --universal --python-version 3.11 --prerelease if-necessary-or-explicit --generate-hashes \
	  --no-emit-index-url --no-header --extra build -c constraints.txt pyproject.toml -o constraints-run.txt

clean: ## remove what make created, but not your data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage*
