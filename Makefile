# Every target sets up what it needs: `make demo` and `make test` work on a fresh Debian machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 3
STAMP := $(VENV)/.setup-done

.PHONY: setup demo test test-all check bench matrix matrix-mapped matrix-everything docs clean
.DEFAULT_GOAL := setup

setup: $(STAMP)

$(STAMP): pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh $(PYTHON) $(VENV)
	@touch $@

demo: setup
	@$(BIN)/python examples/demo.py

# Most tests wait more than they compute: three workers keep two cores busy. Those of one file share their fixtures.
test: setup check
	@$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-all: setup check
	@$(BIN)/python -m pytest

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup
	@$(BIN)/python -m benchmarks

# What was interrupted goes on; only a whole run gets into docs/, also one that is below expectation.
matrix: setup
	@mkdir -p build
	@$(BIN)/ntcp lab matrix --resume --json build/matrix.json --svg build/matrix.svg || test -f build/matrix.svg
	@mv build/matrix.json build/matrix.svg docs/

# The same with one router that maps ports, which is all that may be used.
matrix-mapped: setup
	@mkdir -p build
	@$(BIN)/ntcp lab matrix --port-mapping --technique public,port-mapped --tries 2 --jobs 4 --resume \
		--json build/matrix-mapped.json --svg build/matrix-mapped.svg || test -f build/matrix-mapped.svg
	@mv build/matrix-mapped.json build/matrix-mapped.svg docs/

# All techniques and the relay, networks without UDP too: every pair connects.
matrix-everything: setup
	@mkdir -p build
	@$(BIN)/ntcp lab matrix --everything --jobs 2 --resume \
		--json build/matrix-everything.json --svg build/matrix-everything.svg || test -f build/matrix-everything.svg
	@mv build/matrix-everything.json build/matrix-everything.svg docs/

docs: setup
	@$(BIN)/python -W error docs/build.py

clean:
	rm -rf $(VENV) dist build docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis
