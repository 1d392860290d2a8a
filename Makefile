# `make demo` and `make test` set up everything they need; the rest is for daily work.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test check matrix bench gpu docs

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("muonlab needs Python 3.11 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

demo: setup
	$(BIN)/muonlab demo

test: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

matrix: setup # an hour: the suite and a short demo as on other machines
	$(BIN)/python tests/matrix.py

bench: setup
	$(BIN)/python -m pip install --quiet --constraint requirements.lock 'pytorch-optimizer>=4.0' 'heavyball>=3.0'
	$(BIN)/python -m benchmarks.run

# About 20 minutes on one CUDA GPU; the peer is left out where it does not install.
gpu: setup
	-$(BIN)/python -m pip install --quiet --constraint requirements.lock 'pytorch-optimizer>=4.0'
	$(BIN)/python -m benchmarks.gpu

docs: setup
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[docs]'
	$(BIN)/mkdocs build --strict
