# make try    sets up .venv and finds things in a picture with the built-in model
# make serve  a server with the built-in model and its page: http://127.0.0.1:8000
# make test   lint, types and all tests: what CI runs
# make check  lint and types only
# make docs   writes docs/cli.md anew from the commands' own help

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: try serve test check docs clean

try: .venv/core.stamp
	@mkdir -p out
	@$(BIN)/paligemma detect examples/scene.png "frog ; mushroom" --draw out/detected.png
	@echo "The picture with its boxes: out/detected.png"

serve: .venv/serve.stamp
	@$(BIN)/paligemma serve

test: check
	@$(BIN)/python -m pytest

check: .venv/dev.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: .venv/dev.stamp
	@$(BIN)/python docs/make_cli.py
	@$(BIN)/python docs/make_recipes.py

clean:
	rm -rf .venv out

.venv/bin/python:
	$(PYTHON) -m venv .venv

KERNELS := $(wildcard src/paligemma/fast/kernels/csrc/*) src/paligemma/fast/kernels/build.py hatch_build.py

.venv/core.stamp: pyproject.toml constraints.txt $(KERNELS) | .venv/bin/python
	$(PIP_INSTALL) -e .
	@touch $@

.venv/serve.stamp: pyproject.toml constraints.txt $(KERNELS) | .venv/bin/python
	$(PIP_INSTALL) -e ".[serve]"
	@touch $@

.venv/dev.stamp: pyproject.toml constraints.txt $(KERNELS) | .venv/bin/python
	$(PIP_INSTALL) -e ".[dev]"
	@touch $@ .venv/core.stamp
