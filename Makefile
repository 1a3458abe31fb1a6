# The two commands of the README, and the habits. Everything happens in .venv; all of it is safe to repeat.

# The first Python that is new enough; say PYTHON=... for another.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: train test faults lint clean

train: .venv/.installed
	$(BIN)/gpt2lab train

test: .venv/.installed-dev
	$(BIN)/python -m pytest

# What a run survives, measured in full: docs/results/faults.md.
faults: .venv/.installed-dev
	$(BIN)/python -m tests.faults

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Stamps: installed once, and again when what is to be installed changes.
.venv/.installed: requirements.txt constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "gpt2lab needs Python 3.11 or newer: install one, or say make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into .venv (the first time takes a minute or more)"
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@
