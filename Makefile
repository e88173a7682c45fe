# Needs only make and Python >= 3.11: every target sets up .venv for itself, once, and again when pyproject.toml changes.

ARGS ?=
VENV := .venv
PYTHON ?=
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-serving bench-many docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  ARGS='...' is handed on, e.g. make demo ARGS=--no-serve, make test ARGS='tests/records -x'"

demo: $(VENV)/.demo ## the whole loop on a year of New York flights, then the console (ARGS=--no-serve ends instead)
	$(BIN)/loopwright demo $(ARGS)

test: $(VENV)/.dev ## the test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: $(VENV)/.dev ## style, types and the import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

bench: $(VENV)/.dev ## measure the request path, features, data and explanations beside their peers; writes benchmarks/RESULTS.md (ARGS=--quick)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.request_path $(ARGS)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.features $(ARGS)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.explanations
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.bounds $(ARGS)

bench-serving: $(VENV)/.dev ## measure serving beside MLflow, BentoML, MLServer, LitServe, Ray Serve, FastAPI: 20 minutes (ARGS=--quick, ARGS='--cache FOLDER')
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.serving $(ARGS)

bench-many: $(VENV)/.dev ## measure 5,000 packages behind one server, the memory of 1,000, a fleet of 500 segments: 5 minutes
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.serving.many $(ARGS)

docs: $(VENV)/.dev ## write the reference pages from the tables in the code, then run every example in the documents
	$(BIN)/python docs/generate.py
	$(BIN)/python -m pytest tests/test_docs.py $(ARGS)

clean: ## remove .venv and caches; data in .loopwright stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# --- set-up ---------------------------------------------------------------------------------------------------------

$(BIN)/python:
	@for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "setting up $(VENV) with $$("$$candidate" --version)"; exec "$$candidate" -m venv $(VENV); \
	  fi; \
	done; \
	echo "loopwright needs Python >= 3.11 (with venv); name yours: make PYTHON=/path/to/python3" >&2; exit 1

# uv is ten times as fast as pip; where it cannot be had, pip does.
define install
	@echo "installing loopwright$(1) into $(VENV)"
	@{ command -v uv >/dev/null && uv pip install --quiet --python $(BIN)/python -e '.$(1)'; } \
	  || { $(BIN)/python -m pip install --quiet uv 2>/dev/null && $(BIN)/python -m uv pip install --quiet --python $(BIN)/python -e '.$(1)'; } \
	  || $(BIN)/python -m pip install --quiet -e '.$(1)'
	@touch $@
endef

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(call install,[demo])

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(call install,[dev])
	@touch $(VENV)/.demo
