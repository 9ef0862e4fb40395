# The README's commands. Everything happens in .venv; nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# onnxruntime otherwise reports on its use, and keeps an identifier in the home folder
export ORT_DISABLE_TELEMETRY := 1
KERNELS := CMakeLists.txt $(wildcard kernels/cpu/* kernels/ort/*)
RECORDING := examples/audio/speech.wav
SECONDS ?= 60
SEED ?= 1

.PHONY: run serve test lint format bench cuda embed embed-test embed-fuzz fuzz arm64 clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The runtime with its native kernels, and what reads audio files: enough to run models.
$(VENV)/.runtime: $(BIN)/python pyproject.toml constraints.txt $(KERNELS)
	$(PIP) install -c constraints.txt -e '.[audio]'
	touch $@

# The same with PyTorch, the exporter and the tools.
$(VENV)/.development: $(BIN)/python pyproject.toml constraints.txt $(KERNELS)
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $(VENV)/.runtime $@

run: $(VENV)/.runtime  ## voice activity on a recorded voice, paced as if live
	$(BIN)/streamssm run vad sim:$(RECORDING)

serve: $(VENV)/.runtime  ## the built-in models and a page, at http://127.0.0.1:8765/
	$(PIP) install -c constraints.txt -e '.[audio,serve]'
	$(BIN)/streamssm serve

test: $(VENV)/.development  ## every test
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/.development  ## formatting, lints, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.development
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.development  ## the figures in the docs; builds the peers' environments first, in .cache
	$(PIP) install -c constraints.txt -e '.[bench]'
	@failed=; for part in core products streams kill 'peers --setup' peers; do \
	  echo "benchmarks/$${part%% *}.py$${part#$${part%% *}}" >&2; \
	  $(BIN)/python benchmarks/$${part%% *}.py $${part#$${part%% *}} || failed="$$failed $${part%% *}"; \
	done; \
	if [ -n "$$failed" ]; then echo "missed a bar, or failed:$$failed" >&2; exit 4; fi

cuda:  ## the CUDA kernels with nvcc, for backend="cuda"; ARCHS="90" for one kind of GPU only
	sh kernels/cuda/build.sh build/cuda
	cp build/cuda/libstreamssm_cuda.so streamssm/native/

fuzz:  ## the operators under sanitizers, on random shapes and attributes, for SECONDS from SEED on
	cmake -S . -B build/fuzz -DSTREAMSSM_TESTING=ON -DSTREAMSSM_SANITIZE=address,undefined
	cmake --build build/fuzz --target streamssm_fuzz -j $(shell nproc)
	build/fuzz/streamssm_fuzz $(SECONDS) $(SEED)

embed:  ## libstreamssm, the C library, in build/embed; then cmake --install build/embed
	cmake -S . -B build/embed -DSTREAMSSM_EMBED=ON -DSTREAMSSM_CUDA=OFF
	cmake --build build/embed -j $(shell nproc)

embed-test: $(VENV)/.development  ## libstreamssm against the Python runtime, sanitizers, valgrind, a minute of fuzzing
	$(BIN)/python -m pytest -n 0 -m 'slow or not slow' tests/embed

embed-fuzz:  ## what libstreamssm reads, damaged at random, for SECONDS from SEED on
	cmake -S . -B build/embed-address -DSTREAMSSM_EMBED=ON -DSTREAMSSM_EMBED_TESTS=ON -DSTREAMSSM_CUDA=OFF \
	  -DSTREAMSSM_SANITIZE=address,undefined
	cmake --build build/embed-address --target embed_fuzz -j $(shell nproc)
	build/embed-address/kernels/embed/embed_fuzz streamssm/models/vad.onnx \
	  "$$(ls $(VENV)/lib/python*/site-packages/onnxruntime/capi/libonnxruntime.so.1*)" $(SECONDS) $(SEED)

arm64:  ## the native kernels and operators on emulated arm64; Debian, as root, about half an hour
	sh kernels/arm64.sh

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
