# Everything runs in .venv, which any of these makes first. PYTHON names the interpreter (3.11 or later).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-slow faults soak lint
.DELETE_ON_ERROR:

demo: $(VENV)
	$(RUN) -m trainer demo

test: $(VENV)/dev
	$(RUN) -m pytest -m "not slow and not soak"

test-slow: $(VENV)/dev
	$(RUN) -m pytest -m "slow and not fault"

# What became of each fault is kept in a file, of which docs/reliability.md has the table.
faults: export FAULTS := benchmarks/results/faults.json
soak: export FAULTS := benchmarks/results/soak.json

faults: $(VENV)/dev
	rm -f $(FAULTS)
	$(RUN) -m pytest -m "fault and not soak" --durations 20

soak: $(VENV)/dev
	rm -f $(FAULTS)
	$(RUN) -m pytest -m soak

lint: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV): $(VENV)/installed

$(VENV)/installed: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

$(VENV)/dev: requirements-dev.lock $(VENV)/installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@
