# Every target sets itself up: a virtual environment, pinned dependencies, MNIST.
#   make run        the quick setting of every experiment: figures, records, one table
#   make test       the tests that fit into a few minutes; `make test-all` adds the slow ones
#   make reproduce  the full setting: every committed figure, record and README table
#   make bench      speed ratios, both sides measured in one run
#   make lint       style

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: run test test-all reproduce bench lint setup
.DELETE_ON_ERROR:

run: setup
	$(PY) reproduce.py --quick

test: setup
	$(PY) -m pytest -m "not slow" tests

test-all: setup
	$(PY) -m pytest --cov --cov-report=term tests

reproduce: setup
	$(PY) reproduce.py

bench: setup
	$(PY) bench.py --results results/quick/bench
	$(PY) -m cgn.bench --results results/quick/bench
	$(PY) -m cgn.bench_objects --results results/quick/bench
	$(PY) -m robust_training.bench --results results/quick/bench

lint: .venv/installed
	$(PY) -m ruff check .

setup: .venv/installed data/mnist.npz

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

data/mnist.npz: | .venv/installed
	$(PY) datasets.py
