# make quickstart | make test | make slow | make gpu | make lint | make fuzz | make clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test slow gpu fuzz lint clean

# One version for everybody. Where pip knows of builds for CPUs (see README), it takes one; else it brings gigabytes for GPUs.
$(VENV)/.runs: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --editable ".[all]"
	touch $@

$(VENV)/.tests: $(VENV)/.runs
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

quickstart: $(VENV)/.runs
	$(BIN)/hwnas compile examples/quickstart.yaml --output runs/quickstart

lint: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

# What takes over 20 seconds each.
slow: $(VENV)/.tests
	$(BIN)/python -m pytest -n 2 --dist worksteal --timeout=900 -m "slow and not gpu"

# What needs an NVIDIA GPU, one test at a time; what is skipped says what is missing for it.
gpu: $(VENV)/.tests
	$(BIN)/python -m pytest --timeout=900 -rs -m gpu

# New examples for every property, until one fails or a round is over.
fuzz: $(VENV)/.tests
	HWNAS_HYPOTHESIS=fuzz $(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

clean:
	rm -rf $(VENV) .venv-base build *.egg-info
