# `make train` and `make test` on a fresh machine, `make check` in the daily loop. Each line is one that a person could type.
HW ?= hw1_covid
LEVEL ?= medium
ifndef RUN
RUN := runs/$(HW)/$(LEVEL)/$(shell date +%Y-%m-%d_%H-%M-%S)
endif
PYTHON ?= python3
BIN = .venv/bin

CONSTRAINTS ?= constraints.txt

# Images of containers set it. Each command would compile PyTorch's sources again: half a minute on a slow core.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install constraints train notebooks notes lint check test docs
install: .venv/installed

# uv where it is on PATH, else pip; the last line compiles the bytecode of what commands import, and nothing else
.venv/installed: pyproject.toml $(CONSTRAINTS)
ifneq ($(shell command -v uv 2>/dev/null),)
	uv venv -q --allow-existing --python $(PYTHON) .venv
	uv pip install -q --python .venv $(CONSTRAINTS:%=-c %) -e '.[dev]'
else
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --no-compile -q $(CONSTRAINTS:%=-c %) -e '.[dev]'
endif
	$(BIN)/python -c 'import scripts.train'
	touch $@

# names and versions of what is installed, without ourselves and without CUDA's packages, which torch pins
constraints: install
	{ sed -n '/^#/p' constraints.txt; $(BIN)/python -c 'import importlib.metadata as m; \
	print(*(f"{d.name}=={d.version}" for d in m.distributions()), sep="\n")' | \
	tr '[:upper:]_' '[:lower:]-' | sed 's/+.*//' | LC_ALL=C sort -u | \
	grep -vE '^(leeml|pip|setuptools|uv|triton|cuda|nvidia)[-=]'; } > constraints.new
	mv constraints.new constraints.txt

train: install
	$(BIN)/leeml data sample $(HW) --if_empty
	$(BIN)/leeml fit --config configs/$(HW)/$(LEVEL).yaml --run_dir $(RUN)
	$(BIN)/leeml test --run_dir $(RUN)
	$(BIN)/leeml predict --run_dir $(RUN)

notebooks: install
	$(BIN)/python notebooks/write.py

# docs/notes.md from the headings of the notes and the results in docs/studies/
notes: install
	$(BIN)/python -m scripts.studies.lab.notes

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# for the daily loop: lint, types, and the tests of what changed since the branch left main
check: lint
	$(BIN)/pytest -m "not slow" $$($(BIN)/python tests/changed.py)

test: lint
	$(BIN)/pytest

# the site, into site/index.html; `.venv/bin/mkdocs serve` shows changes while one writes
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
