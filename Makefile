# The two commands: `make demo` trains on real digits and writes a report; `make test` checks everything.
# Both set up a .venv of their own first (Python 3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: setup demo test fault bench check clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	rm -rf runs/demo
	$(BIN)/pixelkiln train ddpm --data digits --out runs/demo --budget 100s
	$(BIN)/pixelkiln sample runs/demo --label all -n 100 --out runs/demo/digits.png
	$(BIN)/pixelkiln evaluate runs/demo -n 1000

# Processes that share the tests, with a thread each
JOBS ?= 2
test: $(READY)
	$(BIN)/python -m ruff check src tests benchmarks
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Seconds of faults, after the references
FAULT_SECONDS ?= 1800
fault: $(READY)
	$(BIN)/python tests/faults.py --seconds $(FAULT_SECONDS) --out benchmarks/results/$$(date +%F)-faults.json
	$(BIN)/python tests/mutants.py --examples 1000 --out benchmarks/results/$$(date +%F)-mutants.json > /dev/null
	$(BIN)/python benchmarks/tables.py

check: test

# All that is measured of speed, and what metrics see: over an hour on a machine that does nothing else (speed.py 41 minutes, metrics.py 27, processes.py five,
# stream.py some); diffusers from an environment of its own, if there is one.
DATA ?= ../shared/data
PEER_PYTHON ?= $(wildcard .venv-diffusers/bin/python)
bench: $(READY)
	$(BIN)/python benchmarks/speed.py --mnist $(DATA)/mnist --cifar10 $(DATA)/cifar10 $(if $(PEER_PYTHON),--peer-python $(PEER_PYTHON))
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/stream.py
	metrics=benchmarks/results/$$(date +%F)-metrics.json && $(BIN)/python benchmarks/metrics.py --data $(DATA)/mnist $(DATA)/cifar10 --out $$metrics && $(BIN)/python benchmarks/metrics.py --docs $$metrics
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
