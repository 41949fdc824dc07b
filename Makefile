# make try    sets up .venv and detects objects in an image with the built-in model
# make serve  a server with the built-in model and its page: http://127.0.0.1:8000
# make test   lint, types and tests in two processes: what CI checks
# make tests  the tests only
# make test-all  the same with the tests that take minutes
# make check  lint and types only
# make docs   regenerates docs/cli.md and docs/recipes.md
# make constraints  pins every package from pyproject.toml, with uv

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt $(PIP_OPTIONS)

# Each process of the tests needs up to 2 GB of memory and one core.
TEST_WORKERS ?= 2

.PHONY: try serve test tests test-all check docs constraints clean

try: .venv/core.stamp
	@mkdir -p out
	@$(BIN)/paligemma detect examples/scene.png "frog ; mushroom" --draw out/detected.png
	@echo "The image with its boxes: out/detected.png"

serve: .venv/serve.stamp
	@$(BIN)/paligemma serve

test: check tests

tests: .venv/dev.stamp
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile

test-all: check
	@$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "not network"

check: .venv/dev.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: .venv/dev.stamp
	@$(BIN)/python docs/make_cli.py
	@$(BIN)/python docs/make_recipes.py

# `demo` has an environment of its own: Gradio needs an older Pillow than the rest is tested with.
# Packages that only the CUDA build of torch needs are left out, so that any build can be chosen.
# Pins that still fit are kept; UPGRADE=--upgrade takes the newest versions.
constraints: .venv/dev.stamp
	@$(PIP_INSTALL) "uv>=0.9"
	@$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-annotate \
		--no-header --quiet $(UPGRADE) --output-file constraints.txt
	@sed -E 's/ ;.*//; /^(nvidia-|cuda-|triton=)/d' constraints.txt | LC_ALL=C sort -f \
		> constraints.new
	@mv constraints.new constraints.txt

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
	@# A test generates a client with this. Only its command line needs an older typer.
	-$(PIP_INSTALL) --no-deps openapi-python-client==0.29.1 attrs==26.1.0 \
		httpcore==1.0.9 httpx==0.28.1 ruamel.yaml==0.19.1
	@touch $@ .venv/core.stamp
