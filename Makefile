# make demo: set up and run the main job. make test: set up and test. Both work on a fresh clone.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready

CSRC = src/abridged/runtime/csrc

.PHONY: help setup demo test slow engines paths sanitize fuzz gpu bench lint wheel clean

help:
	@echo "make demo   compress the bundled model and compare (about 6 minutes on 2 cores)"
	@echo "make test   the fast tests        make slow   the slow ones"
	@echo "make paths  the kernel tests on every instruction set that this processor has"
	@echo "make sanitize  the kernel tests under address, undefined-behaviour and thread sanitizers (needs cmake)"
	@echo "make fuzz   mutated checkpoints, data, recipes, workspaces and videos: some of each, or ABRIDGED_FUZZ_SECONDS of each"
	@echo "make gpu    the tests that need a GPU; without one a rehearsal of them on the CPU"
	@echo "make bench  quick runs of every benchmark of speed, beside the committed numbers of the nearest processor"
	@echo "make engines   the tests in llama.cpp, lm-evaluation-harness, servers and Chromium; but for that one, and npm, it installs them first (some minutes)"
	@echo "make lint   ruff, mypy, floors   make wheel  dist/*.whl        make clean  remove what these made"

setup: $(READY)

# torch comes first and alone: it is the large one, and which build is right depends on the machine.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "abridged needs Python 3.10 or newer, and none was found: set PYTHON=/path/to/python3" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "could not make $(VENV): on Debian and Ubuntu, install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/python examples/demo.py

# One process a core, and one thread in each: small models do not fill two. An idle one takes over another's tests.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: $(READY)
	$(PYTEST)

slow: $(READY)
	$(PYTEST) -m slow

# What the tests have in the way of whole models, forced onto each path; one that a processor lacks is passed over.
paths: $(READY)
	for path in $$($(BIN)/python -c 'from abridged.runtime.kernels import kernels; print(*kernels().available, "reference")'); do \
	  echo "== $$path"; ABRIDGED_KERNELS=$$path $(PYTEST) tests/runtime tests/families || exit 1; \
	done

sanitize: $(READY)
	cmake -S . -B build/sanitize -DABRIDGED_SANITIZE=ON
	cmake --build build/sanitize --parallel
	LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libstdc++.so.6)" ASAN_OPTIONS=detect_leaks=0 \
	  ABRIDGED_KERNELS_LIBRARY=build/sanitize/abridged_kernels.so $(BIN)/python -m pytest tests/runtime/test_kernels.py tests/runtime/test_compiled.py
	$(CXX) -std=c++17 -O1 -g -fsanitize=thread -fno-math-errno -fno-trapping-math -I $(CSRC) -o build/races tests/runtime/races.cpp \
	  $(addprefix $(CSRC)/, abridged_kernels.cpp isa_portable.cpp floats.cpp floats_portable.cpp product.cpp program.cpp) -pthread
	TSAN_OPTIONS=halt_on_error=1 build/races

fuzz: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m fuzz -s tests/fuzz

# Packed layers go through Triton's interpreter in a rehearsal.
gpu: $(READY)
	ABRIDGED_GPU_REHEARSAL=$$($(BIN)/python -c 'import torch; print(int(not torch.cuda.is_available()))') \
	  $(BIN)/python -m pytest -m gpu

bench: $(READY)
	$(BIN)/python benchmarks/bench.py $(RECORD)

engines: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser,llama-cpp,onnx,serving,tasks]'
	$(BIN)/python -m pytest -m engine

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

wheel: $(READY)
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
