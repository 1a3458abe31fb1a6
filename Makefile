# Everything is installed into .venv. Every target can be run again at any time.

# The first Python that is new enough. To use another: make PYTHON=/path/to/python
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# $(call QUIETLY,NAME,COMMAND) runs a command. Its output goes to a file, and is shown in full if the command fails: pip
# warns of many things. On a terminal, the seconds are counted meanwhile.
QUIETLY = [ ! -t 1 ] || (n=0; while sleep 1 && kill -0 $$$$ 2>/dev/null; do n=$$((n + 1)); printf '\r%s s ' $$n; done) & \
	{ $(2); } >.venv/$(1).log 2>&1; status=$$?; kill $$! 2>/dev/null; [ ! -t 1 ] || printf '\r      \r'; \
	[ $$status = 0 ] || { cat .venv/$(1).log; exit 1; }
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: train test test-all faults lint docs dist clean

train: .venv/.installed
	@$(BIN)/gpt2lab train

# The tests that are not marked slow (pyproject.toml), on all cores.
test: .venv/.installed-dev
	$(PYTEST) -m "not slow"

# All tests. CI runs these (.ci/run).
test-all: .venv/.installed-dev
	$(PYTEST) --durations=30

# The fault experiments in full; writes docs/results/faults.md.
faults: .venv/.installed-dev
	$(BIN)/python -m tests.faults

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in build/site. Warnings are errors, broken links among them.
docs: .venv/.installed-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs build/site

# Builds the wheel, installs it in an empty environment outside the checkout, and uses it.
dist: .venv/.installed
	rm -rf dist
	@$(call QUIETLY,wheel,$(PIP) wheel --no-deps --wheel-dir dist .)
	@.ci/check_wheel dist/*.whl "$(PYTHON)"

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Each stamp file is renewed when what is to be installed changes.
.venv/.installed: requirements.txt constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "gpt2lab needs Python 3.11 or newer; to name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "installing into .venv (the first time takes a minute or more)"
	@mkdir -p .venv
	@$(call QUIETLY,venv,$(PYTHON) -m venv .venv)
	@$(call QUIETLY,torch,launch/install_torch.sh)
	@$(call QUIETLY,install,$(PIP) install -r requirements.txt)
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "installing the test tools into .venv"
	@$(call QUIETLY,install-dev,$(PIP) install -c constraints.txt -e '.[dev]')
	@touch $@
