# Two commands: `make repro` (a trained model from nothing) and `make test`. `make help` lists the rest.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV     := $(VENV)/.dev
PORT    ?= 5000
INSTALL := $(BIN)/pip install -qq --disable-pip-version-check --constraint requirements.lock

# TORCH is the build of torch: pypi (the default), or a folder of https://download.pytorch.org/whl, such as cpu, cu126,
# cu130, rocm7.2 or xpu; cuda and rocm are its newest stable ones for torch 2.13. The version is the lock's. .venv/.torch
# keeps the choice for commands without TORCH. PyPI stays the index of what torch depends on, because PyTorch's need not
# have the lock's versions of it; the local version (+cpu) makes pip take torch itself from PyTorch's.
CHOSEN  := $(shell cat $(VENV)/.torch 2>/dev/null)
SOURCE  := $(patsubst rocm,rocm7.2,$(patsubst cuda,cu130,$(or $(TORCH),$(CHOSEN),pypi)))
VERSION := $(shell sed -n 's/^torch==//p' requirements.lock)
ifneq ($(SOURCE),pypi)
  TORCH_WHEEL := --extra-index-url https://download.pytorch.org/whl/$(SOURCE) 'torch==$(VERSION)+$(SOURCE)'
else
  TORCH_WHEEL := 'torch$(if $(CHOSEN),!=$(VERSION)+$(CHOSEN))'
endif

# The environment is used without activating it; DVC calls `python`, which must be the one in it.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false

.DEFAULT_GOAL := help
.PHONY: help setup services repro test test-all check format ui plots clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(RUNTIME)  ## make the environment for repro in .venv; another build of torch: make setup TORCH=cpu (cuda, rocm)

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "error: lmcore needs Python 3.11, 3.12 or 3.13, not $$($(PYTHON) --version): make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

ifneq ($(SOURCE),$(CHOSEN))  # another build is asked for: install it, and nothing else again
.PHONY: $(VENV)/.torch
endif
$(VENV)/.torch: requirements.lock | $(BIN)/pip
	$(INSTALL) $(TORCH_WHEEL)
	@echo $(SOURCE) >$@

$(RUNTIME): requirements.lock pyproject.toml | $(VENV)/.torch
	$(INSTALL) --editable '.[hf]'
	@touch $@

$(DEV): $(RUNTIME)
	$(INSTALL) --editable '.[hf,dev]'
	@touch $@

services:  ## as root, on Debian or Ubuntu: the programs without which some tests are skipped
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
		chromium chromium-driver openssh-server postgresql >/dev/null

repro: $(RUNTIME)  ## run the pipeline: what changed, and only that
	dvc repro

test: $(DEV) check  ## lint, types and the fast tests, which cover every law once
	pytest -n 2

test-all: $(DEV)  ## the tests marked slow: with those of `make test`, all of them
	pytest -n 2 -m 'slow and not gpu'

check: $(DEV)  ## lint and types alone
	ruff check
	ruff format --check
	mypy

format: $(DEV)  ## rewrite the code in the project's style
	ruff check --fix
	ruff format

ui: $(RUNTIME)  ## compare runs in MLflow, at http://127.0.0.1:5000; another port: make ui PORT=5001
	@echo "Runs and curves: http://127.0.0.1:$(PORT)/#/experiments/1?workflowType=machine_learning"
	mlflow ui --workers 1 --port $(PORT)

plots: $(RUNTIME)  ## write the curves as a page, dvc_plots/index.html
	dvc plots show

clean:  ## remove the environment and caches; keep data, models, reports and runs
	rm -rf $(VENV) .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache dvc_plots *.egg-info
