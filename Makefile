# Airloop: the two commands of the README are `make demo` and `make test`.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	command -v $$p >/dev/null && $$p -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
# Processes that share the tests out; each has servers of its own and takes up to 3 GB. 0: all in one, as --pdb needs it.
WORKERS ?= 2
BIN := $(VENV)/bin
UV := $(BIN)/uv
export AIRLOOP_HOME ?= $(CURDIR)/.airloop

.PHONY: help
help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

$(UV):
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; install one, or say make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --require-hashes --only-binary :all: -r requirements/uv.txt

# A stamp stands for what a requirement file says; the virtual environment holds the last set that was asked for.
$(VENV)/.demo: requirements/demo.txt pyproject.toml | $(UV)
	@echo "Installing the pinned requirements (about 1 GB the first time)"
	@$(UV) pip install --python $(BIN)/python --require-hashes -r requirements/demo.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.demo
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements/dev.txt
	@touch $@

.PHONY: install
install: $(VENV)/.demo ## Install what running needs

.PHONY: demo
demo: $(VENV)/.demo ## Run the offline loop over three months of flights, in Airflow
	@$(BIN)/python scripts/demo.py $(ARGS)

.PHONY: test
test: $(VENV)/.dev ## Install what tests need and run them all but the cluster's
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

.PHONY: test-cluster
test-cluster: $(VENV)/.dev ## The tests of pods on the cluster of KUBECONFIG; what they need: tests/cluster/README.md
	@AIRLOOP_TEST_CLUSTER=1 $(BIN)/python -m pytest tests/cluster $(ARGS)

.PHONY: up
up: $(VENV)/.demo ## Start Airflow (with UI) and MLflow on free loopback ports
	@$(BIN)/python scripts/stack.py up

.PHONY: down
down: ## Stop all that `make up` or `make demo` started, orphans included
	@if [ -x $(BIN)/python ]; then $(BIN)/python scripts/stack.py down; else echo "Nothing is installed, so nothing runs."; fi

.PHONY: airflow
airflow: $(VENV)/.demo ## Any airflow command on this state: make airflow ARGS="dags test rain 2013-02-01"
	@$(BIN)/python scripts/stack.py airflow $(ARGS)

.PHONY: cluster
cluster: ## The offline loop as pods, on kind (needs Docker): images, chart, one month; ARGS=down removes it
	@$(if $(PYTHON),$(PYTHON),python3) scripts/cluster.py $(ARGS)

.PHONY: lint
lint: $(VENV)/.dev ## Style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: docs
docs: $(VENV)/.dev ## Build the documentation into site/
	@$(BIN)/mkdocs build --strict

.PHONY: bench
bench: $(VENV)/.dev ## Measure speed and memory beside peers and limits
	@$(BIN)/python -m benchmarks.run $(ARGS)

.PHONY: requirements
requirements: | $(UV) ## Compile the pinned, hashed requirement files anew
	@bash scripts/requirements.sh $(UV)

.PHONY: clean
clean: down ## Remove the state of demo and stack, keep the installation
	@rm -rf "$(AIRLOOP_HOME)"
