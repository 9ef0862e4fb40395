# The README's commands. Everything happens in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# onnxruntime otherwise reports on its use, and keeps an identifier in the home folder
export ORT_DISABLE_TELEMETRY := 1
RECORDING := examples/audio/speech.wav

.PHONY: run test lint format bench clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The runtime and what reads audio files: enough to run models.
$(VENV)/.runtime: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[audio]'
	touch $@

# Adds PyTorch, the exporter and the tools.
$(VENV)/.development: $(VENV)/.runtime
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

run: $(VENV)/.runtime  ## voice activity on a recorded voice, paced as if live
	$(BIN)/streamssm run vad sim:$(RECORDING)

test: $(VENV)/.development  ## every test
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.development  ## formatting, lints, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.development
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.development  ## the figures in the docs
	$(BIN)/python benchmarks/core.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
