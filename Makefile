# make demo and make test work as the first command on a fresh machine with Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check
# torch first and by exact version: a loose range can pull gigabytes of CUDA packages
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-slow lint format docs benchmark clean

demo: .venv/core
	$(BIN)/visiongraft demo --output gallery

test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/dev
	$(BIN)/python -m pytest -m slow

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/docs
	$(BIN)/mkdocs build --strict

benchmark: .venv/dev
	$(BIN)/python benchmarks/feature_smoothing.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/panorama.py
	$(BIN)/python benchmarks/panorama_circular.py
	$(BIN)/python benchmarks/worlds.py
	$(BIN)/python benchmarks/robots_rendering.py
	$(BIN)/python benchmarks/robots_generation.py
	$(BIN)/python benchmarks/robots_serving.py
	$(BIN)/python benchmarks/point_bridge.py
	$(BIN)/python benchmarks/action_mesh.py
	$(BIN)/python benchmarks/action_mesh_surfaces.py
	$(BIN)/python benchmarks/action_mesh_metrics.py

.venv/torch: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --quiet -c constraints.txt $(TORCH)
	touch $@

.venv/core: .venv/torch pyproject.toml
	$(PIP) install --quiet -c constraints.txt -e '.[robots]'
	touch $@

.venv/dev: .venv/core
	$(PIP) install --quiet -c constraints.txt -e '.[dev,robots,serve]'
	touch $@

.venv/docs: .venv/core
	$(PIP) install --quiet -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf .venv site gallery dist .pytest_cache .ruff_cache .hypothesis
