# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# A waiting thread that spins slows everybody on a busy machine; results do not depend on it.
test test-slow: export OMP_WAIT_POLICY ?= passive

.PHONY: install test test-slow lint demo gpu-check clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev,heads,lite0,onnx,colmap]'
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .

test: lint
	$(BIN)/pytest

test-slow: install
	$(BIN)/pytest -m slow

demo: install
	$(BIN)/python demo.py

# What only a machine with a GPU can tell; writes gpu_check.json.
gpu-check: install
	$(BIN)/python -m benchmarks.gpu_check

clean:
	rm -rf $(VENV) demo out
