# `make test` and `make demo` work on a fresh clone: each makes the virtual environment where missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
# Small programs too: most of the tests are the time that these take to compile.
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: help env test quick test-lowest test-newest test-tpu lint format types docs check demo bench clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

env: $(STAMP)  ## make the virtual environment and install the package with its development tools

# Which versions uv installs: the newest, unless a target says otherwise.
RESOLUTION := highest
EXTRAS := dev
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --resolution $(RESOLUTION) --python $(BIN)/python --editable '.[$(EXTRAS)]'
	@$(BIN)/uv pip freeze --quiet --python $(BIN)/python | grep -E '^(jax|jaxlib|flax|optax)=='
	touch $@

# A process on each core; the tests of a file, which share what they compile, in one of them.
# If one crashes the run ends: replaced, it can leave pytest-xdist waiting for ever.
# On a GPU they share its memory.
export XLA_PYTHON_CLIENT_PREALLOCATE ?= false
PYTEST := python -m pytest --numprocesses auto --maxprocesses 8 --max-worker-restart 0 --dist loadfile
# Compiles in half the time, where jaxlib can. The tests of the benchmarks count and compare programs as users
# compile them. (jaxlib takes a variable of blanks for the name of a file.)
FAST = flag="$$($(BIN)/python -m tests.xla)" && XLA_FLAGS="$${XLA_FLAGS:+$$XLA_FLAGS }$$flag"
# JAX fixes the number of devices when it starts: those with 8 simulated ones have processes of their own.
PACKAGE := --ignore tests/devices --ignore tests/benchmarks --ignore tests/test_notebooks.py \
  --ignore tests/site --ignore tests/test_package.py
DEVICES := tests/devices
BENCHMARKS := tests/benchmarks tests/test_notebooks.py tests/test_package.py

test: $(STAMP)  ## run every test, the documents' programs and the docstring examples
	$(FAST) $(BIN)/$(PYTEST) $(PACKAGE)
	$(FAST) $(BIN)/$(PYTEST) $(DEVICES)
	$(BIN)/$(PYTEST) $(BENCHMARKS)

quick: $(STAMP)  ## run the package's tests on one device; under 3 minutes on two cores
	$(FAST) $(BIN)/$(PYTEST) $(PACKAGE) --ignore tests/test_optax_common.py \
	  -k "not page_runs and not first_script" tests

# The environments of both are made anew each time: what was published since, and what PYTHON names.
test-lowest:  ## run every test and build the site with the oldest versions that pyproject.toml admits
	rm -rf $(VENV)-lowest
	$(MAKE) test docs VENV=$(VENV)-lowest RESOLUTION=lowest-direct

# The current releases of JAX and Flax are for Python 3.12 or newer; an older one would get older releases.
NEWEST_NEEDS := import sys; v = sys.version.split()[0]; \
  sys.exit(f"test-newest needs Python 3.12 or newer, got {v}: make test-newest PYTHON=python3.13" \
  if sys.version_info < (3, 12) else 0)
test-newest:  ## the same with the newest versions of everything, on the Python that PYTHON names
	@$(PYTHON) -c '$(NEWEST_NEEDS)'
	rm -rf $(VENV)-newest
	$(MAKE) test docs VENV=$(VENV)-newest

# The compiler alone: there is no TPU to run on.
test-tpu:  ## compile small training steps with the TPU's own compiler, on any Linux machine
	rm -rf $(VENV)-tpu
	$(MAKE) env VENV=$(VENV)-tpu EXTRAS=dev,tpu
	JAX_PLATFORMS=cpu $(VENV)-tpu/bin/python -m pytest tests/benchmarks/test_tpu.py

lint: $(STAMP)  ## ruff: style, docstrings, formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## let ruff rewrite the files
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)  ## mypy, strict, on the package
	$(BIN)/mypy

# What the notebooks show; their test executes them.
NOTEBOOKS := $(patsubst notebooks/%.py,docs/notebooks/%.ipynb,$(wildcard notebooks/*.py))
docs/notebooks/%.ipynb: notebooks/%.py | $(STAMP)
	$(BIN)/python -m pytest "tests/test_notebooks.py::test_notebook_runs_and_every_picture_is_drawn[$*]"

SITE := docs/_build/html
docs: $(STAMP) $(NOTEBOOKS)  ## build the site, docs/_build/html/index.html, and check it; executes new notebooks
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going docs $(SITE)
	$(BIN)/python -m pytest tests/site

check: lint types test docs  ## all of the above: what continuous integration runs

demo: $(STAMP)  ## train on real data with 40 % noisy labels; prints a table, draws a picture
	mkdir -p runs/demo && cp -n benchmarks/results/demo_tuning.jsonl runs/demo/ || true
	$(BIN)/python -m benchmarks demo --results runs/demo

# Where the raw files of Fashion-MNIST come from; `make bench DATA="--download-dir FOLDER"` where they are there.
DATA ?= --download
bench: $(STAMP)  ## rerun a part of the accuracy suite: every method, 40 % noisy labels, two seeds; prints the tables
	mkdir -p runs/bench && cp -n benchmarks/results/suite_tuning.jsonl runs/bench/ || true
	$(BIN)/python -m benchmarks suite --where label_noise=0.4 --seeds 0 1 --results runs/bench $(DATA)

clean:  ## remove environments, caches and the site (data/ and runs/ stay)
	rm -rf docs/_build docs/notebooks/*.ipynb $(VENV) $(VENV)-lowest $(VENV)-newest $(VENV)-tpu .jax_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
