# `make train` and `make test` set everything up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train test test-all test-gpu mutants check format clean

train: $(VENV)/.installed
	$(BIN)/moebius train tiny $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-all: $(VENV)/.installed-all
	$(BIN)/python -m pytest -n 2 --dist worksteal -m '' $(ARGS)

# Without a GPU this fails, rather than skip everything and look as if all were well.
test-gpu: $(VENV)/.installed-dev
	@$(BIN)/python -c 'import sys, time, torch; torch.cuda.is_available() or sys.exit("no GPU: nothing was tested"); print(torch.cuda.get_device_name(), time.strftime("%Y-%m-%d"), "torch", torch.__version__)'
	$(BIN)/python -m pytest -n 0 -m gpu $(ARGS)

mutants: $(VENV)/.installed-dev
	$(BIN)/python bench/mutants.py $(ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Moebius needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo 'installing Moebius and PyTorch into $(VENV) (one to two minutes, once)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	@echo 'installing Moebius, PyTorch and the tools of its tests into $(VENV) (once)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/.installed

# lm-evaluation-harness brings 340 MB, which only tests of `make test-all` need.
$(VENV)/.installed-all: pyproject.toml | $(VENV)/bin/python
	@echo 'installing Moebius, PyTorch and the tools of all its tests into $(VENV) (once)'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,eval]'
	touch $@ $(VENV)/.installed-dev $(VENV)/.installed

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
