# The two commands of the README are `make demo` and `make test`; each sets up all it needs in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
JOBS ?= 2

.PHONY: demo test lint types floors check bench clean

demo: $(VENV)/.demo
	$(BIN)/dinokit demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.lint
	$(BIN)/mypy

floors: $(VENV)/.lint
	$(BIN)/lint-imports

check: lint types floors test

# a short look; the whole set is benchmarks/run_all.sh
bench: $(VENV)/.bench
	$(BIN)/python benchmarks/forward.py --quick
	$(BIN)/python benchmarks/startup.py --rounds 3

# torch by itself and first: asked for together with others, a resolver may take a newer build of several GB.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	touch $@

KERNELS := hatch_build.py $(wildcard src/dinokit/native/*.[ch])

$(VENV)/.demo: $(VENV)/.torch pyproject.toml $(KERNELS)
	$(PIP) -e ".[demo]"
	touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) $$($(BIN)/python tools/dependency_group.py test)
	touch $@

$(VENV)/.bench: $(VENV)/.demo
	$(PIP) $$($(BIN)/python tools/dependency_group.py bench)
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(PIP) $$($(BIN)/python tools/dependency_group.py lint)
	touch $@

clean:
	rm -rf $(VENV) demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
