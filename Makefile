# Each target makes .venv when there is none, and installs again only when pyproject.toml has changed.
# PYTHON chooses the interpreter (3.11 or newer) that .venv is made with.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a worker: on small machines two workers with all threads each are slower than one.
PYTEST_WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile
# For a part of the tests: make test ARGS="tests/cli -x"
ARGS ?=

.PHONY: demo test quick lint types format clean

demo: $(VENV)/.installed
	$(BIN)/maskformer segment examples/street.jpg --output result.png --overwrite

# All tests, in under ten minutes on two cores.
test: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

# All but those marked `slow`, in under three minutes on two cores.
quick: $(VENV)/.installed-test
	$(PYTEST) -m "not slow" $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) result.png predictions

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

# Installs what `.installed` does, and the tools.
$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@ $(VENV)/.installed
