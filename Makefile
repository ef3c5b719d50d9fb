# Two commands: `make repro` (a trained model from nothing) and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PORT   ?= 5000

# The environment is used without activating it; DVC calls `python`, which must be the one in it.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false

.DEFAULT_GOAL := help
.PHONY: help setup services repro test test-all check format ui plots clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make the virtual environment in .venv (done by the others)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) is too old: lmcore needs Python 3.11 or newer; make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --disable-pip-version-check --constraint requirements.lock --editable '.[hf,dev]'
	@touch $(READY)

services:  ## as root, on Debian or Ubuntu: the programs without which some tests are skipped
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
		chromium chromium-driver openssh-server postgresql >/dev/null

repro: $(READY)  ## run the pipeline: what changed, and only that
	dvc repro

test: $(READY) check  ## lint, types and the fast tests, which cover every law once
	pytest -n 2

test-all: $(READY)  ## the tests marked slow: with those of `make test`, all of them
	pytest -n 2 -m 'slow and not gpu'

check: $(READY)  ## lint and types alone
	ruff check
	ruff format --check
	mypy

format: $(READY)  ## rewrite the code in the project's style
	ruff check --fix
	ruff format

ui: $(READY)  ## compare runs in MLflow, at http://127.0.0.1:5000; another port: make ui PORT=5001
	@echo "Runs and curves: http://127.0.0.1:$(PORT)/#/experiments/1?workflowType=machine_learning"
	mlflow ui --workers 1 --port $(PORT)

plots: $(READY)  ## write the curves as a page, dvc_plots/index.html
	dvc plots show

clean:  ## remove the environment and caches; keep data, models, reports and runs
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache dvc_plots *.egg-info
