# make quickstart   install, prepare data, train, evaluate, search: the README's first command
# make test         the test suite;  make lint: ruff and the import rules;  make bench: speeds
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python -m
STAMP := $(VENV)/.installed

# Collections in BEIR format, where someone keeps them beside this folder.
ifneq ($(wildcard ../shared/data),)
export RETRIEVAX_DATA ?= $(abspath ../shared/data)
endif

.PHONY: help install quickstart test test-all lint format bench clean

help:
	@sed -n '1,2p' Makefile

$(STAMP): setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	touch $(STAMP)

install: $(STAMP)

quickstart: $(STAMP)
	$(RUN) experiments.quickstart

test: $(STAMP)
	$(RUN) pytest

test-all: $(STAMP)
	$(RUN) pytest -m 'not bench'

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

format: $(STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.bench: $(STAMP)
	$(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test,bench]'
	touch $@

bench: $(VENV)/.bench
	$(RUN) pytest -m bench -s

clean:
	rm -rf $(VENV) build dist *.egg-info
