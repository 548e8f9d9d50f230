# `make` lists the targets. Everything runs in .venv, which is made on first use.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# numpy's oldest release has no wheel for Python 3.12 and later.
OLDEST_PYTHON ?= $(shell for p in python3.10 python3.11; do $$p -c "" 2>/dev/null && echo $$p; done | head -1)
OLDEST := .venv-oldest
# Two test processes with one thread each are faster than one process with two threads.
PYTEST_FLAGS ?= -n 2 --timeout=600
BENCHMARKS ?= penalty_overhead surgery_speed search_speed search_quality evaluation_cost candidate_rate

export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest lint bench bench-fashion bench-search bench-coverage clean

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

# Old releases warn of each other: here that is no failure.
test-oldest: $(OLDEST)/.installed ## run the tests with the oldest packages that pyproject.toml admits
	$(OLDEST)/bin/python -m pytest $(PYTEST_FLAGS) -o filterwarnings=default

$(OLDEST)/.installed: pyproject.toml
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	sed -nE '/^dependencies/,/^\]/s/^    "([a-z]+)>=([0-9.]+)",$$/\1==\2/p' $< > $(OLDEST)/oldest.txt
	sed -n 's/^lightning=/pytorch-&/p' $(OLDEST)/oldest.txt >> $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet -c $(OLDEST)/oldest.txt -e '.[dev]'
	@touch $@

lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(STAMP) ## run the quick benchmarks (benchmarks/README.md)
	@for name in $(BENCHMARKS); do echo "== $$name"; $(PY) -m benchmarks.$$name || exit 1; done

bench-fashion: $(STAMP) ## the Fashion-MNIST experiment and its table in README.md, about 40 minutes
	$(PY) -m benchmarks.fashion_mnist

bench-search: $(STAMP) ## the search beside its controls and without its parts; the tables of docs/search.md
	$(PY) -m benchmarks.search_fashion
	$(PY) -m benchmarks.strength_auto

bench-coverage: $(STAMP) ## every model of torchvision and a choice of timm, beside Torch-Pruning, hours
	$(PY) -m pip install --quiet torch-pruning==1.6.1 timm
	$(PY) -m benchmarks.coverage --peer
	$(PY) -m benchmarks.coverage --families timm

clean: ## remove the environment, caches and run folders
	rm -rf $(VENV) $(OLDEST) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis lightning_logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
