# The same commands for a person and for CI. Everything lives in .venv; `make clean` removes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Four at a time on two cores: real ranks wait for each other, for SLURM and for time limits as much as they compute.
SIDE_BY_SIDE := --numprocesses=4 --dist=loadfile --no-loadscope-reorder
# Hundreds of ranks start and read the same modules: compiled once, also where an image says not to.
unexport PYTHONDONTWRITEBYTECODE
PROMPT ?= Explain how expert parallelism works in large language models.

.PHONY: setup demo check test stress oldest clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints-cpu.txt --editable '.[dev]'
	touch $@

# gpt-oss on two CPU ranks: a trained toy of the same architecture answers.
demo: setup
	$(BIN)/gptoss prefetch vocab
	$(BIN)/gptoss generate model=tiny plan=tp plan.tp=2 generation=greedy prompt="$(PROMPT)"

# The quick part: format, lint, types, and the tests of single modules.
check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q --numprocesses=auto --dist=loadfile tests/unit

# Everything that needs no GPU: also real ranks, and a real SLURM where one is installed.
test: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/gptoss prefetch vocab
	$(BIN)/gptoss tiny
	$(BIN)/pytest -q --numprocesses=auto --dist=loadfile tests/unit
	$(BIN)/pytest -v --durations=40 $(SIDE_BY_SIDE) tests/slurm tests/multi tests/gpu

# What takes too long for every change: many requests, every plan, many malformed bodies, many clients, killed ranks.
stress: setup
	PYTHONPATH=tests $(BIN)/python tests/stress/engine_requests.py
	$(BIN)/python tests/stress/engine_plans.py
	PYTHONPATH=tests $(BIN)/python tests/stress/malformed.py --count 5000
	PYTHONPATH=tests:tests/multi $(BIN)/python tests/stress/many_clients.py --clients 200 --seconds 60
	$(BIN)/python tests/stress/http_overhead.py
	GPTOSS_OPENAPI_EXAMPLES=200 $(BIN)/pytest -q tests/unit/server/test_openapi_document.py
	$(BIN)/python tests/stress/batch_kills.py

# Loading, plans and generation with the oldest transformers that is supported, in a virtual environment of its own.
oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --constraint constraints-oldest.txt --editable '.[dev]'
	$(VENV)-oldest/bin/pytest -q --numprocesses=auto --dist=loadfile tests/unit/model tests/unit/plan tests/unit/engine \
		tests/unit/kernels tests/unit/test_api.py
	$(VENV)-oldest/bin/pytest -q tests/multi/test_plans.py tests/multi/test_generate.py tests/multi/test_engine.py

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist .mypy_cache .ruff_cache .pytest_cache
