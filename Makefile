# Everything runs from the environment in .venv, which the targets make when it is missing.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
SERVE   := $(VENV)/.serve
DEV     := $(VENV)/.dev
BENCH   := $(VENV)/.bench
# What `make run` passes on, such as: make run ARGS="--http-port 9000 --model demo"
ARGS    ?=
# How many seeds `make simulate` runs.
SEEDS   ?= 1000

.DEFAULT_GOAL := help
.PHONY: help install dev run test check unit integration acceptance format lint types layers proto \
        packaging simulate chaos bench-engine bench-queue bench-fairness bench-bulk \
        bench-scaling ci clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(SERVE)  ## make the environment that serves models (.venv)

dev: $(DEV)  ## and what tests and checks need

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Plait needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(SERVE): setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what serving needs into $(VENV) (once, about two minutes)"
	@$(PIP) -e '.[serve]'
	@touch $@

$(DEV): $(SERVE)
	@echo "installing what tests and checks need into $(VENV)"
	@$(PIP) -e '.[serve,minilm,dev]'
	@touch $@

$(BENCH): $(SERVE)
	@$(PIP) -e '.[serve,bench]'
	@touch $@

run: $(SERVE)  ## start everything with the demo model, on a CPU; Ctrl-C stops it
	@$(BIN)/plait up $(ARGS)

test: $(DEV)  ## every test: unit, contracts, properties, integration, acceptance, docs, packaging
	@# Those that start no processes share the cores; the others use them all by themselves.
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit tests/properties tests/docs tests/packaging $(ARGS)
	$(BIN)/python -m pytest tests/contracts tests/integration tests/accelerator $(ARGS)
	@# By itself: it keeps a whole Plait running, which would slow all others.
	$(BIN)/python -m pytest tests/acceptance $(ARGS)

unit: $(DEV)  ## the quick tests: no sockets, no disk, no torch
	$(BIN)/python -m pytest tests/unit $(ARGS)

integration: $(DEV)  ## contracts, properties and integration
	$(BIN)/python -m pytest tests/contracts tests/properties tests/integration $(ARGS)

acceptance: $(DEV)  ## a real TorchServe behind the whole of Plait, and processes killed
	$(BIN)/python -m pytest tests/acceptance $(ARGS)

simulate: $(DEV)  ## promises 1 to 5 under faults, from seeds: SEEDS=1000; ARGS="--seed 7" tells of one
	$(BIN)/python -m scheduler.testing.simulation --seeds $(SEEDS) $(ARGS)

chaos: $(BENCH)  ## real processes killed, stopped, cut off and starved; ARGS="--seed 7 --minutes 15"
	$(BIN)/python -m scheduler.testing.chaos $(ARGS)

packaging: $(DEV)  ## what the wheel holds
	$(BIN)/python -m pytest tests/packaging $(ARGS)

format: $(DEV)  ## ruff format and the fixes ruff is sure of
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(DEV)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)  ## mypy, strict
	$(BIN)/mypy

layers: $(DEV)  ## who may import whom
	$(BIN)/lint-imports

check: lint types layers unit  ## before every push: under ninety seconds

ci: lint types layers test  ## what CI runs

proto: $(DEV)  ## generate scheduler/rpc from its .proto files
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. --grpc_python_out=. \
	  scheduler/rpc/plait.proto scheduler/rpc/inference.proto

bench-engine: $(BENCH)  ## the engine against its limits and other ways; ARGS=--quick, --gpu
	$(BIN)/python -m benchmarks.engine $(ARGS)

bench-queue: $(BENCH)  ## the task queue beside others, on the same task; ARGS=--quick
	$(BIN)/python -m benchmarks.queue $(ARGS)

bench-fairness: $(BENCH)  ## a light tenant beside one that floods, and a picture of it
	$(BIN)/python -m benchmarks.fairness $(ARGS)

bench-bulk: $(SERVE)  ## a bulk of 100,000 inputs through the gateway, and those who come beside it
	$(BIN)/python -m benchmarks.bulk $(ARGS)

bench-scaling: $(BENCH)  ## replicas that follow the work beside the Kubernetes HPA, in virtual time
	$(BIN)/python -m benchmarks.scaling $(ARGS)

clean:  ## remove the environment, built archives and state
	rm -rf $(VENV) .plait .bench build dist *.egg-info archives/*__r*
