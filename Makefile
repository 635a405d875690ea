# Every target sets itself up: a virtual environment, pinned dependencies, MNIST.
#   make run        the quick setting of every experiment: figures, records, one table
#   make test       the tests that fit into a few minutes; `make test-all` adds the slow ones
#   make reproduce  the full setting: every committed figure, record and README table
#   make gallery    results/index.html: every figure and record on one page, for a browser
#   make bench      speed ratios, both sides measured in one run, and what work costs as it grows
#   make lint       style
#   make demo       a page to play with the models: http://127.0.0.1:7860

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: run test test-all reproduce gallery bench lint demo setup
.DELETE_ON_ERROR:

run: setup
	$(PY) reproduce.py --quick

test: setup
	$(PY) -m pytest -m "not slow" tests

test-all: setup
	$(PY) -m pytest --cov --cov-report=term tests

reproduce: setup
	$(PY) reproduce.py

gallery: setup
	$(PY) gallery.py

bench: setup
	$(PY) bench.py --results results/quick/bench
	$(PY) -m cgn.bench --results results/quick/bench
	$(PY) -m cgn.bench_objects --results results/quick/bench
	$(PY) -m robust_training.bench --results results/quick/bench
	$(PY) growth.py --results results/quick/growth

lint: .venv/installed
	$(PY) -m ruff check .

demo: setup .venv/demo/installed
	.venv/demo/bin/python demo.py

setup: .venv/installed data/mnist.npz

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# What the page needs lies apart, and sees the rest through a .pth file: Gradio wants an older Pillow than the experiments.
SITE := import sysconfig; print(sysconfig.get_path("purelib"))
.venv/demo/installed: requirements-demo.txt .venv/installed
	$(PY) -m venv .venv/demo
	$(PY) -c '$(SITE)' > "$$(.venv/demo/bin/python -c '$(SITE)')/rest.pth"
	.venv/demo/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-demo.txt
	touch $@

data/mnist.npz: | .venv/installed
	$(PY) datasets.py
