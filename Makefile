# One word for each thing that one does here. Each target does all of its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.ready
# The constraints name everything that is needed: without --no-deps an older pip looks for newer releases all the same,
# and stops at the first it finds.
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup run demo-failure test deep check lint types layers rules protos-unchanged protos bench constraints clean

help: ## these words
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(READY) ## make .venv with everything that is needed

$(RUNS): constraints-run.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) lacks venv: install it (on Debian and Ubuntu: apt-get install python3-venv)"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  echo "Making $(VENV) ..."; rm -rf $(VENV); $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; }
	@echo "Installing what the programs run with ($$(grep -c '==' $<) packages, about 250 MB; once, a minute or so) ..."
	@$(PIP) install --quiet --no-deps --require-hashes -r $<
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(READY): $(RUNS) constraints.txt
	@echo "Installing what tests and checks need besides ($$(grep -c '==' constraints.txt) packages; once, a minute or so) ..."
	@$(PIP) install --quiet --no-deps --require-hashes -r constraints.txt
	@$(PIP) check
	@touch $@

run: $(RUNS) ## control plane, a node and 20 simulated agents, live in this terminal
	@$(BIN)/opamp-relay standalone --demo

demo-failure: $(RUNS) ## the same with a change that the agents refuse: a canary that fails and is rolled back
	@rm -rf .data/demo-failure
	@$(BIN)/opamp-relay standalone --demo-failure --data .data/demo-failure

test: setup ## all tests; those whose tools are missing say so
	$(BIN)/python -m pytest

deep: setup ## the tests of protocol and decisions with fifty times as many generated examples
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest tests/opamp tests/policy tests/fleet tests/link tests/test_documents.py --timeout=1800

check: lint types layers protos-unchanged rules ## what CI runs
	$(BIN)/python -m pytest --cov=relay --cov-report=term:skip-covered --cov-fail-under=90

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

rules: setup ## every file that decides is covered by its own test alone
	$(BIN)/python -m tests.individual_coverage

protos-unchanged: setup
	$(BIN)/python protos/generate.py --check

protos: setup ## write relay/pb/ anew from protos/
	$(BIN)/python protos/generate.py

bench: setup ## measure, and print the figures as a table (needs Go)
	$(BIN)/python -m tests.bench

constraints: ## pin all dependencies anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --prerelease if-necessary-or-explicit --generate-hashes \
	  --no-emit-index-url --no-header --all-extras pyproject.toml -o constraints.txt
	uv pip compile --quiet --universal --python-version 3.11 --prerelease if-necessary-or-explicit --generate-hashes \
	  --no-emit-index-url --no-header --extra build -c constraints.txt pyproject.toml -o constraints-run.txt

clean: ## remove what make made, not your data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage*
