# Everything sets itself up: `make run` and `make test` create .venv on first use and again when it is out of date.
#
#   make run                        chat with the shipped model (on a terminal)
#   make run PROMPT="Once upon a"   print one answer
#   make test | lint | types | format
#   make test-neon                  the kernels for aarch64, cross-compiled and emulated
#   make test-page                  the server's page in a browser (tests/page)
#   make test-ascend                Huawei Ascend: the real torch_npu over an emulated CANN (tests/ascend)
#
# PYTHON       the interpreter that .venv is made from (3.11 or newer)
# TORCH        the torch requirement for .venv
# TORCH_INDEX  where pip looks for it besides its own index; the default has CPU builds, so that no CUDA
#              packages come along.  Name another (…/whl/cu130) for another build, or leave empty for none.
# ARM_CXX      compiler and emulator of test-neon
# ARM_RUN

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ARM_CXX ?= aarch64-linux-gnu-g++
ARM_RUN ?= qemu-aarch64-static
PROMPT ?=
export PROMPT

# torch's OpenMP workers otherwise spin between operations and starve the native kernels' threads.
export OMP_WAIT_POLICY ?= passive

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.dev
SOURCES := pyproject.toml CMakeLists.txt $(wildcard fourfold/kernels/cpu/csrc/*)

.PHONY: run test test-page test-neon test-ascend lint types format clean

run: $(READY)
	@if [ -z "$$PROMPT" ] && [ -t 0 ] && [ -t 1 ]; then $(BIN)/fourfold chat; \
	else $(BIN)/fourfold generate -- "$${PROMPT:-Once upon a time}"; fi

test: $(DEV)
	$(BIN)/python -m pytest $(PYTEST)

# Linked statically, so that the emulator needs no aarch64 system around it.
test-neon:
	cmake -S . -B build/neon -DCMAKE_BUILD_TYPE=Release -DFOURFOLD_KERNEL_TEST=ON -DCMAKE_SYSTEM_NAME=Linux \
	-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(ARM_CXX) -DCMAKE_EXE_LINKER_FLAGS=-static
	cmake --build build/neon
	$(ARM_RUN) build/neon/kernel_test

# A Chromium that is on the machine is used; only where there is none Playwright brings its own.
test-page: $(VENV)/.page
	$(BIN)/python -m tests.page.browser
	$(BIN)/python -m pytest -m page tests/page

# torch_npu goes into build/, and none that is in this environment may be loaded on the way.
test-ascend: $(DEV)
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(BIN)/python -m tests.ascend.emulator.build
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(BIN)/python -m pytest -m ascend -rP tests/ascend

lint: $(DEV)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(DEV)
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fourfold: $(PYTHON) is \
	$$($(PYTHON) -V 2>&1); Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The CPU index is asked for once, quickly: behind a firewall pip would retry it for every package.
$(VENV)/.torch: | $(BIN)/pip
	@index="$(TORCH_INDEX)"; \
	if [ -n "$$index" ] && ! $(BIN)/python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1] + "/torch/", timeout=5)' \
	"$$index" 2>/dev/null; then echo "fourfold: $$index is out of reach; pip uses its own index" >&2; index=""; fi; \
	set -x; $(BIN)/pip install --quiet $${index:+--extra-index-url "$$index"} "$(TORCH)"
	@touch $@

$(READY): $(SOURCES) | $(VENV)/.torch
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(VENV)/.page: $(DEV)
	$(BIN)/pip install --quiet "playwright>=1.50"
	@touch $@

$(DEV): $(SOURCES) | $(VENV)/.torch
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $(READY) $@
