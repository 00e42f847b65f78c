# Every target sets itself up: a virtual environment in .venv, installed under constraints.txt.
# The stamps below record that; they are renewed when pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := runs/demo

.PHONY: help demo test lint docs clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed-train  ## train on the digits for 3 minutes, then evaluate, certify, report
	rm -rf $(RUN)
	$(BIN)/contraflow train digits --name demo --out runs --trainer.max_time 00:00:03:00
	$(BIN)/contraflow evaluate $(RUN)
	$(BIN)/contraflow certify $(RUN)
	$(BIN)/contraflow report $(RUN)

test: lint  ## lint, then run the tests and the doctests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.installed-dev  ## check style, format and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --project pyproject.toml

docs: $(VENV)/.installed-docs  ## build the documentation into build/docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

clean:  ## remove the environment, caches and builds, but no runs
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks docs examples -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up ---------------------------------------------------------------------------------

$(VENV)/.installed-train: EXTRAS := train
$(VENV)/.installed-dev:   EXTRAS := train,dev
$(VENV)/.installed-docs:  EXTRAS := train,docs

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing contraflow[$(EXTRAS)] into $(VENV); the first time takes some minutes."
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# pip is the last thing that venv writes: where it exists, the environment is whole.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "contraflow needs Python 3.11 or newer, and '$(PYTHON)' is not one."; \
	  echo "Name another interpreter, for example: make PYTHON=python3.12 test"; exit 1; } >&2
	$(PYTHON) -m venv $(VENV)
