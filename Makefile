# make          builds build/lib/libgradaccum.so.1
# make demo     trains a small GPT on a real text and shows the first law (TEXT=file for another text)
# make test     runs every test but those of PyTorch and JAX, and ends with the table of the laws
# make laws     runs the tests of the laws alone; make laws-long runs ten times the cases
# make foreign  runs the tests and examples of PyTorch, Hugging Face and JAX, which make test skips without them
# make bench    compares with PyTorch and JAX, row by row (BENCH_ARGS="--only gpt-char-f32 --quick")
# make wheel    builds the Python package with the library in it, to dist/
# make convergence trains a small GPT in every precision, three seeds of each (about 15 minutes), and draws the losses
# make examples builds the C and C++ programs into build/examples/
# make format   formats the Swift sources

SWIFT ?= swift
CC ?= cc
CXX ?= c++
PYTHON ?= python3
LIBRARY := build/lib/libgradaccum.so.1
EXAMPLES := $(patsubst examples/c/%.c,build/examples/%,$(wildcard examples/c/*.c)) \
    $(patsubst examples/cpp/%.cpp,build/examples/%,$(wildcard examples/cpp/*.cpp))
# Of the Debian package libpython3-dev, for the program that embeds Python; without it, that is left out.
PYTHON_CONFIG := $(firstword $(wildcard /usr/bin/*-linux-gnu-python3-config))
ifneq ($(PYTHON_CONFIG),)
EXAMPLES += build/examples/embed_python
endif
VENV := build/venv
BENCH_VENV := build/bench-venv
PLOT_VENV := build/plot-venv
WHEEL_VENV := build/wheel-venv
FOREIGN_VENV := build/foreign-venv
FOREIGN_TESTS := torch torch_amp torch_state torch_window torch_misuse jax readme gpt2 digits dlpack exchange \
    arrays zero_copies

TALLY := $(CURDIR)/build/laws.tally
# Testable imports, which no test uses, are another way to compile: tests and library would rebuild each other.
SWIFT_TEST := $(SWIFT) test -c release --disable-testable-imports

.PHONY: all library examples demo test test-swift test-header test-python test-wheel wheel laws laws-long foreign bench \
    convergence format clean

all: library

library:
	$(SWIFT) build -c release --product gradaccum
	@mkdir -p build/lib
	@cp -f "$$($(SWIFT) build -c release --show-bin-path)/libgradaccum.so" $(LIBRARY).new
	@strip --strip-unneeded $(LIBRARY).new
	@mv -f $(LIBRARY).new $(LIBRARY)
	@ln -sf libgradaccum.so.1 build/lib/libgradaccum.so

examples: library $(EXAMPLES)
	@[ -n "$(PYTHON_CONFIG)" ] || echo "libpython3-dev is missing: build/examples/embed_python is left out"

build/examples/%: examples/c/%.c $(wildcard examples/c/*.h) include/gradaccum.h | library
	@mkdir -p build/examples
	$(CC) -std=c99 -O2 -Wall -Wextra -pedantic -Iinclude $< -o $@ -Lbuild/lib -lgradaccum -lm -Wl,-rpath,'$$ORIGIN/../lib'

build/examples/%: examples/cpp/%.cpp bindings/cpp/gradaccum.hpp $(wildcard bindings/cpp/gradaccum/*.hpp) \
    include/gradaccum.h | library
	@mkdir -p build/examples
	$(CXX) -std=c++17 -O2 -Wall -Wextra -Wpedantic -Wconversion -Iinclude -Ibindings/cpp $< -o $@ \
	    -Lbuild/lib -lgradaccum -Wl,-rpath,'$$ORIGIN/../lib'

build/examples/embed_python: examples/embed/embed_python.c include/gradaccum.h | library
	@mkdir -p build/examples
	$(CC) -std=c99 -O2 -Wall -Wextra -pedantic -Iinclude $(patsubst -I%,-isystem %,$(shell $(PYTHON_CONFIG) --includes)) \
	    $< -o $@ -Lbuild/lib -lgradaccum $(shell $(PYTHON_CONFIG) --embed --ldflags) -Wl,-rpath,'$$ORIGIN/../lib'

demo: examples
	@if [ -z "$(TEXT)" ]; then command -v bible >/dev/null || scripts/install-packages.sh bible-kjv; fi
	@TEXT="$(TEXT)" examples/demo.sh

test: export GRADACCUM_LAW_TALLY = $(TALLY)
test: empty-tally test-header test-swift test-python test-wheel
	@$(PYTHON) Tests/laws.py table $(TALLY)

.PHONY: empty-tally
empty-tally:
	@mkdir -p $(dir $(TALLY))
	@: > $(TALLY)

laws laws-long: examples $(VENV)/ready
	@SWIFT_TEST="$(SWIFT_TEST)" $(PYTHON) Tests/laws.py run $(CURDIR)/$(LIBRARY) $(VENV)/bin/python $(if $(filter laws-long,$@),10,1)

test-header: library
	Tests/header/check_header.sh
	Tests/header/check_library.sh $(LIBRARY)
	Tests/header/check_kernels.sh "$$($(SWIFT) build -c release --show-bin-path)"

test-swift: library $(VENV)/ready libpython
	$(SWIFT_TEST)
	GRADACCUM_ISA=baseline $(SWIFT_TEST) --skip-build --filter GradAccumTests
	for isa in avx2:avx512f avx512:avx512_bf16; do \
	    if grep -qw $${isa#*:} /proc/cpuinfo; then \
	        GRADACCUM_ISA=$${isa%:*} $(SWIFT_TEST) --skip-build --filter GradAccumTests || exit 1; \
	    fi; done

test-python: $(VENV)/ready libpython
	@command -v bible >/dev/null || scripts/install-packages.sh bible-kjv
	@$(MAKE) --no-print-directory examples
	GRADACCUM_LIBRARY=$(CURDIR)/$(LIBRARY) $(VENV)/bin/python -m pytest Tests/python -q

wheel: library $(WHEEL_VENV)/ready
	scripts/build-wheel.sh $(LIBRARY) $(WHEEL_VENV)

test-wheel: wheel $(VENV)/ready
	$(VENV)/bin/python Tests/wheel.py $(WHEEL_VENV)/bin/pip \
	    $(wildcard $(VENV)/lib/python3*/site-packages $(BENCH_VENV)/lib/python3*/site-packages \
        $(FOREIGN_VENV)/lib/python3*/site-packages)

.PHONY: libpython
libpython:
	@[ -n "$(PYTHON_CONFIG)" ] || scripts/install-packages.sh libpython3-dev || \
	    echo "libpython3-dev is missing: the tests that embed Python are skipped"

# What needs these packages, or runs an example with them.
foreign: library $(FOREIGN_VENV)/ready
	@command -v bible >/dev/null || scripts/install-packages.sh bible-kjv
	@# A process for each: JAX starts threads, which those that fork must not have.
	for name in $(FOREIGN_TESTS); do \
	    GRADACCUM_LIBRARY=$(CURDIR)/$(LIBRARY) $(FOREIGN_VENV)/bin/python -m pytest -q Tests/python/test_$$name.py || exit 1; \
	done

bench: library $(BENCH_VENV)/ready
	$(BENCH_VENV)/bin/python benchmarks/run.py $(BENCH_ARGS)

convergence: examples $(PLOT_VENV)/ready
	@command -v bible >/dev/null || scripts/install-packages.sh bible-kjv
	GRADACCUM_LIBRARY=$(CURDIR)/$(LIBRARY) $(PLOT_VENV)/bin/python benchmarks/convergence.py $(CONVERGENCE_ARGS)

$(VENV)/ready: Tests/python/requirements.txt
$(BENCH_VENV)/ready: benchmarks/requirements.txt
$(WHEEL_VENV)/ready: scripts/wheel-requirements.txt
$(FOREIGN_VENV)/ready: Tests/python/requirements-foreign.txt Tests/python/requirements.txt benchmarks/requirements.txt
$(PLOT_VENV)/ready: benchmarks/plot-requirements.txt
$(VENV)/ready $(BENCH_VENV)/ready $(WHEEL_VENV)/ready $(FOREIGN_VENV)/ready $(PLOT_VENV)/ready:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q -r $<
	@touch $@

format:
	$(SWIFT) format -i -r Package.swift Sources/Kernels Sources/GradAccum Sources/GradAccumC Tests

clean:
	rm -rf build dist .build
