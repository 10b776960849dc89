# Two commands on a fresh machine: `make train` and `make test`. Each line is one that a person could type.
HW ?= hw1_covid
LEVEL ?= medium
ifndef RUN
RUN := runs/$(HW)/$(LEVEL)/$(shell date +%Y-%m-%d_%H-%M-%S)
endif
PYTHON ?= python3
BIN = .venv/bin

.PHONY: install train test lint
install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -q -e '.[dev]'
	touch $@

train: install
	$(BIN)/leeml data sample $(HW) --if_empty
	$(BIN)/leeml fit --config configs/$(HW)/$(LEVEL).yaml --run_dir $(RUN)
	$(BIN)/leeml test --run_dir $(RUN)
	$(BIN)/leeml predict --run_dir $(RUN)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest
