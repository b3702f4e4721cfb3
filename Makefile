# make quickstart   install, prepare data, train, evaluate, search: the README's first command
# make test         the test suite;  make lint: ruff and the import rules;  make bench: speeds
# make test-all     with the slow tests and two plans of pods;  make test-pods: all plans of pods
# EXTRAS=cuda       with any of these: for a GPU
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
# Tests run in so many processes, those of a file in one. What they run is small: compiling it takes the time, and
# takes a quarter less without LLVM's optimizations.
JOBS ?= 2
QUICK := XLA_FLAGS="--xla_backend_optimization_level=0 $${XLA_FLAGS-}"
PYTEST := $(QUICK) $(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.installed

# Collections in BEIR format, where someone keeps them beside this folder.
ifneq ($(wildcard ../shared/data),)
export RETRIEVAX_DATA ?= $(abspath ../shared/data)
endif

.PHONY: help install quickstart test test-all test-pods lint format bench clean

help:
	@sed -n '1,4p' Makefile

$(STAMP): setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

# An extra of setup.py on top of what is installed.
$(VENV)/.extra-%: $(STAMP)
	$(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,$*]'
	touch $@

READY := $(STAMP) $(if $(EXTRAS),$(VENV)/.extra-$(EXTRAS))

install: $(READY)

quickstart: $(READY)
	$(RUN) experiments.quickstart

test: $(READY)
	$(PYTEST)

test-all: $(READY) $(VENV)/.extra-tpu
	JAX_PLATFORMS=cpu $(PYTEST) -m 'not bench and not tpu_plan'
	JAX_PLATFORMS=cpu $(RUN) pytest -m 'tpu_plan and not slow'

test-pods: $(READY) $(VENV)/.extra-tpu
	JAX_PLATFORMS=cpu $(RUN) pytest -m tpu_plan

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(READY) $(VENV)/.extra-bench
	$(RUN) pytest -m bench -s

clean:
	rm -rf $(VENV) build dist *.egg-info
