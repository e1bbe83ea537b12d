# Two commands do all the set-up on a fresh machine: `make demo` and `make test`.
# PYTHON may name any Python from 3.11 on; VENV says where the virtual environment goes.
PYTHON ?= python3
VENV   ?= .venv
# Tests run in this many processes of one thread each, but for those that bound a time: they run alone. EXTRAS are the extras of pyproject.toml to install.
JOBS   ?= 2
EXTRAS ?= dev,parity

# The tests start Python hundreds of times: without bytecode, each compiles specc's sources first.
unexport PYTHONDONTWRITEBYTECODE

BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format types ci bench clean

help:
	@echo "make demo    build and run the quickstart: tokenizer, pre-training, fine-tuning, samples, report"
	@echo "make test    all tests"
	@echo "make lint    ruff check and format check        make format   apply both"
	@echo "make types   mypy --strict"
	@echo "make ci      everything that .ci/run runs"
	@echo "make bench   training steps against transformers, diffusers and PyTorch by hand (an hour; wants an idle machine)"
	@echo "make clean   remove builds, runs and caches (the virtual environment stays)"

install: $(STAMP)

# The stamp is newer than the two files that say what is installed, so set-up happens once per change of these.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "specc needs Python 3.11 or newer: make PYTHON=/path/to/python3")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP)
	$(BIN)/specc build examples/quickstart.yaml -o build/quickstart
	$(BIN)/specc run build/quickstart
	$(BIN)/specc report build/quickstart

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m alone --timeout 600
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not alone" -n $(JOBS) --dist worksteal --timeout 600

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

# The tests come last: their closing line is the last thing that a log of this shows.
ci: lint types demo test

bench: $(STAMP)
	$(BIN)/python -m tests.bench.cpu

clean:
	rm -rf build dist runs *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
