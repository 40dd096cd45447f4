# Two commands do everything from a bare Python 3.11-3.13: `make demo` and `make test`.
# Each sets up .venv from the hash-locked requirements once; the second run starts at once.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Two test processes on two cores: more threads in each only wait for one another (a fifth slower).
ONE_THREAD := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1

.PHONY: demo test coverage test-long test-benchmarks test-spark lint lock clean

demo: $(VENV)/.runtime            ## synthetic plant -> trained model -> report -> alerts
	$(BIN)/anomaly demo

test: $(VENV)/.dev                ## every test
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadgroup

coverage: $(VENV)/.dev            ## the same with line coverage of the four packages, a third slower
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist loadgroup --cov --cov-report=term:skip-covered --cov-fail-under=90

test-long: $(VENV)/.dev           ## long training and memory tests, every encoder again on JAX and behind every front
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m long

test-benchmarks: $(VENV)/.dev     ## benchmarks at a small size, as processes of their own; minutes
	$(BIN)/python -m pytest -m bench

test-spark: $(VENV)/.spark        ## scoring on Spark as a small cluster of processes; needs Java 17 or newer
	$(BIN)/python -m pytest -m spark tests/spark

lint: $(VENV)/.dev                ## style, types and import contracts
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

$(VENV)/.python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: run make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.runtime: $(VENV)/.python requirements.lock pyproject.toml
	$(BIN)/python -m pip install --quiet --compile --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(BIN)/python -m pip install --quiet --compile --require-hashes -r requirements-dev.lock
	touch $@

$(VENV)/.spark: $(VENV)/.dev requirements-spark.lock
	$(BIN)/python -m pip install --quiet --compile --require-hashes -r requirements-spark.lock
	touch $@

lock:                             ## resolve the locks anew (needs uv); hashes, no hosts
	uv pip compile pyproject.toml --universal --generate-hashes --no-header --no-annotate --group build -o requirements.lock
	uv pip compile pyproject.toml --universal --generate-hashes --no-header --no-annotate --group dev -c requirements.lock -o requirements-dev.lock
	uv pip compile pyproject.toml --universal --generate-hashes --no-header --no-annotate --extra spark -c requirements.lock -c requirements-dev.lock -o requirements-spark.lock

clean:
	rm -rf $(VENV) .anomaly .pytest_cache .mypy_cache .ruff_cache
