# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# A waiting thread that spins slows everybody on a busy machine; results do not depend on it.
test test-slow: export OMP_WAIT_POLICY ?= passive

# Training asks for the same large buffers again and again; glibc else returns them to the system each time (10 % of the time).
demo: export MALLOC_MMAP_THRESHOLD_ ?= 1073741824
demo: export MALLOC_TRIM_THRESHOLD_ ?= 8589934592

.PHONY: install test test-slow lint demo clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev,heads]'
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

clean:
	rm -rf $(VENV) demo out
