# `make demo` and `make test` do all the set-up they need: python3 (with venv) and make are enough.
# `make test` leaves out the tests that are marked slow, `make test-all` runs them too.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO_ARGS ?=
TEST_ARGS ?=
# The networks here are too small to gain from threads, which wait for each other on a busy machine.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-all lint docs clean

demo: $(VENV)/.demo
	$(BIN)/python examples/compare_objectives.py $(DEMO_ARGS)

test: $(VENV)/.test
	@# The tests of a file in one process: what one has compiled serves the next.
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "not slow" $(TEST_ARGS)

test-all: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses auto $(TEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -b html docs build/docs

# torch first and by itself: a plain "torch" elsewhere may resolve to a build with CUDA.
$(VENV)/.torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[demo,numpyro]'
	touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[arviz,demo,enum,lightning,numpyro,test]'
	touch $@

$(VENV)/.docs: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[arviz,docs,numpyro]'
	touch $@

clean:
	rm -rf $(VENV) outputs dist build
