PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup demo test check bench docs

help:  ## this list
	@awk -F ':.*## *' '/^[a-z]+:.*##/ {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## the environment .venv with the tested versions

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "sciml needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
demo: $(READY)  ## train the Burgers FNO and print its test error
	$(BIN)/sciml fit --config burgers_fno --run $(RUN)
	$(BIN)/sciml test $(RUN)

test: ARGS ?= -n auto --dist worksteal
test: $(READY)  ## the tests, a process for each core; ARGS="..." goes to pytest instead
	$(BIN)/python -m pytest $(ARGS)

check: $(READY)  ## format, lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports --no-logo

bench: $(READY)  ## benchmarks/bench_NAME.py into benchmarks/RESULTS.md; NAME=..., ARGS="--seed 1 --threads 2"
	$(BIN)/python benchmarks/run.py $(NAME) $(ARGS)

docs: $(READY)  ## the documentation in docs/_build
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx -W docs docs/_build
