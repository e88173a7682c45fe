# Needs only make and Python >= 3.11: every target sets up .venv for itself, once, and again when pyproject.toml or constraints.txt
# changes. It installs the exact versions of constraints.txt, which the suite was passed with; `make pins` renews them.

ARGS ?=
VENV := .venv
PYTHON ?=
BIN := $(VENV)/bin

RESOLUTION ?= lowest-direct
VERSION_PYTHON ?= $(BIN)/python
# What a library's new or old version breaks first: conversion, trees, SQL, tables, the ledger, the wire, a whole loop.
VERSION_TESTS := tests/develop/onnx/test_parity.py tests/develop/onnx/test_convert.py tests/develop/onnx/estimators/test_trees.py tests/develop/test_features.py \
  tests/sql/test_expression.py tests/stores/lake/test_tables.py tests/stores/ledger tests/data/ingest/test_ingestion.py tests/data/examples/test_build.py \
  tests/server/api/test_app.py tests/server/http/test_connection.py tests/server/api/test_metrics.py tests/cli/test_main.py tests/console/test_app.py \
  tests/journeys/test_whole_loop.py

.DEFAULT_GOAL := help
.PHONY: help demo test check house bench bench-serving bench-many honesty docs pins test-versions test-peers clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  ARGS='...' is handed on, e.g. make demo ARGS=--no-serve, make test ARGS='tests/records -x'"

demo: $(VENV)/.demo ## the whole loop on a year of New York flights, then the console (ARGS=--no-serve ends instead)
	$(BIN)/loopwright demo $(ARGS)

test: $(VENV)/.dev ## the test suite
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: $(VENV)/.dev ## style, types and the import rule
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

house: $(VENV)/.dev ## count the code: rooms, lengths, parameters, nesting, names, imports inside functions
	$(BIN)/python -m tests.house

bench: $(VENV)/.dev ## measure the request path, features, data, explanations and commands beside their peers; writes benchmarks/RESULTS.md (ARGS=--quick)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.request_path $(ARGS)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.features $(ARGS)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.explanations
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.alternatives
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.bounds $(ARGS)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.releases $(ARGS)
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.commands

bench-serving: $(VENV)/.dev ## measure serving beside MLflow, BentoML, MLServer, LitServe, Ray Serve, FastAPI: 20 minutes (ARGS=--quick, ARGS='--cache FOLDER')
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.serving $(ARGS)

bench-many: $(VENV)/.dev ## measure 5,000 packages behind one server, the memory of 1,000, a fleet of 500 segments: 5 minutes
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m benchmarks.serving.many $(ARGS)

honesty: $(VENV)/.dev ## measure by simulation what intervals and other numbers claim; writes benchmarks/RESULTS.md (ARGS='--trials 100', ARGS=gap for a part)
	env OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.honesty $(ARGS)

docs: $(VENV)/.dev ## write the reference pages from the tables in the code, then run every example in the documents
	$(BIN)/python docs/generate.py
	$(BIN)/python -m pytest tests/test_docs.py $(ARGS)

pins: $(VENV)/.uv ## renew constraints.txt: the newest versions that pyproject.toml allows; run `make test` before committing it
	printf '%s\n' uv hatchling editables | $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate \
	  --extra dev --output-file constraints.txt pyproject.toml -

test-versions: $(VENV)/.uv ## a part of the suite on other versions: RESOLUTION=lowest-direct (default) or highest; VERSION_PYTHON=another Python
	@echo "installing loopwright[dev], --resolution $(RESOLUTION), into $(VENV)-$(RESOLUTION) with $$($(VERSION_PYTHON) --version)"
	@$(BIN)/uv venv --quiet --clear --python $(VERSION_PYTHON) $(VENV)-$(RESOLUTION)
	@$(BIN)/uv pip install --quiet --python $(VENV)-$(RESOLUTION)/bin/python --resolution $(RESOLUTION) -e '.[dev]'
	env -u PYTHONDONTWRITEBYTECODE $(VENV)-$(RESOLUTION)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(VERSION_TESTS) $(ARGS)

test-peers: $(VENV)/.uv ## loopwright resolves on each supported Python and beside the current releases of the tools that teams run with it
	@for python in 3.11 3.12 3.13 3.14; do \
	  $(BIN)/uv pip compile --quiet --python-version $$python --only-binary :all: pyproject.toml >/dev/null && echo "Python $$python: wheels for all" || exit 1; \
	done
	@for peer in mlflow feast mlserver evidently bentoml kserve; do \
	  alone=$$(echo $$peer | $(BIN)/uv pip compile --quiet --no-header --no-annotate --python-version 3.11 - | grep "^$$peer==") && \
	  beside=$$(echo $$peer | $(BIN)/uv pip compile --quiet --no-header --no-annotate --python-version 3.11 pyproject.toml - | grep "^$$peer==") && \
	  echo "$$alone beside loopwright: $$beside" && [ "$$alone" = "$$beside" ] || exit 1; \
	done

clean: ## remove .venv and caches; data in .loopwright stays
	rm -rf $(VENV) $(VENV)-* .mypy_cache .ruff_cache .pytest_cache .hypothesis

# --- set-up ---------------------------------------------------------------------------------------------------------

$(BIN)/python:
	@for candidate in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "setting up $(VENV) with $$("$$candidate" --version)"; exec "$$candidate" -m venv $(VENV); \
	  fi; \
	done; \
	echo "loopwright needs Python >= 3.11 (with venv); name yours: make PYTHON=/path/to/python3" >&2; exit 1

# Constraints of the build too: hatchling would otherwise be the newest of the day. pip before 25.3 reads PIP_CONSTRAINT for it.
$(VENV)/.uv: constraints.txt | $(BIN)/python
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv || echo "uv cannot be installed: using pip" >&2
	@touch $@

# uv is ten times as fast as pip; where it cannot be had, pip does.
define install
	@echo "installing loopwright$(1) into $(VENV)"
	@if [ -x $(BIN)/uv ]; then \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --build-constraint constraints.txt -e '.$(1)'; \
	else \
	  PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet -e '.$(1)'; \
	fi
	@touch $@
endef

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.uv
	$(call install,[demo])

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.uv
	$(call install,[dev])
	@touch $(VENV)/.demo
