# Each command sets up .venv as far as it needs it, once; a change of pyproject.toml does it again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: bench test interop gpu lint clean
.NOTPARALLEL:

bench: $(VENV)/bench.stamp
	$(BIN)/fastconv bench $(ARGS)

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n auto --maxprocesses 8 $(ARGS)

# Every library that fastconv drops into, several GB with CUDA: with them, `make test` tests the drop-ins too.
interop: $(VENV)/interop.stamp

# On a machine with a GPU, with the Python that has CuPy (and PyTorch to compare with) there: nothing is downloaded.
gpu:
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(PYTHON) -m fastconv.benchmarks.gpu $(ARGS)

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info

$(BIN)/pip:
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/%.stamp: pyproject.toml | $(BIN)/pip
	$(PIP) install --editable '.[$*]'
	@touch $@

.PRECIOUS: $(VENV)/%.stamp
