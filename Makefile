# `make` lists the targets. Everything runs in .venv, which is made on first use.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Two test processes with one thread each are faster than one process with two threads.
PYTEST_FLAGS ?= -n 2 --timeout=600
BENCHMARKS ?= penalty_overhead surgery_speed search_speed search_quality

export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench bench-fashion bench-search bench-coverage clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet -e '.[dev]'
	@touch $@

demo: $(STAMP) ## prune a small network on scikit-learn's digits, under 3 minutes
	$(PY) examples/digits.py

test: $(STAMP) ## run the tests
	$(PY) -m pytest $(PYTEST_FLAGS)

lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(STAMP) ## run the quick benchmarks (benchmarks/README.md)
	@for name in $(BENCHMARKS); do echo "== $$name"; $(PY) -m benchmarks.$$name || exit 1; done

bench-fashion: $(STAMP) ## the Fashion-MNIST experiment and its table in README.md, about 35 minutes
	$(PY) -m benchmarks.fashion_mnist

bench-search: $(STAMP) ## the search beside its controls and without its parts; the tables of docs/search.md
	$(PY) -m benchmarks.search_fashion
	$(PY) -m benchmarks.strength_auto

bench-coverage: $(STAMP) ## every model of torchvision and a choice of timm, beside Torch-Pruning, hours
	$(PY) -m pip install --quiet torch-pruning==1.6.1 timm
	$(PY) -m benchmarks.coverage --peer
	$(PY) -m benchmarks.coverage --families timm

clean: ## remove the environment, caches and run folders
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis lightning_logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
