# `make` lists the targets. Everything happens in .venv: nothing outside the repository is changed, except by `browser`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(shell cat requirements/cpu.txt requirements/dev.txt setup.py | sha256sum | cut -c1-16)
OPENRLHF := $(shell sed -n 's/^openrlhf==//p' requirements/cpu.txt)
SERIES := patches/openrlhf-$(OPENRLHF)
CPU := . examples/cpu/env.sh &&
BENCHMARKS := $(filter-out $(addprefix benchmarks/,timing.py smollm2.py forest_gpu.py gpu.py transformers4.py),$(wildcard benchmarks/*.py))
# Without these a CPU's ratios measure page faults: glibc would give large tensors back to the system and take them again.
MALLOC := MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=536870912

# Without .pyc files `import deepspeed` takes 30 s instead of 8, and Ray imports it once per process.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install browser quickstart test lint type patch-check patch-manifest unit integration recipes bench results-check gpu old-transformers clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## .venv with the pinned CPU stack (2.5 GB), this package and the patched OpenRLHF
	@$(MAKE) --no-print-directory patched

$(STAMP):
	@$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11)' 2>/dev/null || { echo >&2 \
	  "error: the pinned CPU stack needs Python 3.11, $(PYTHON) is $$($(PYTHON) -V); make install PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install --no-deps -r requirements/cpu.txt -r requirements/dev.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.installed-*
	@touch $@

# After an edit of the patches the installed files belong to the old series: take a new copy, then patch that.
.PHONY: patched
patched:
	@$(BIN)/openrlhf-gpm patch apply || { \
	  rm -rf $(VENV)/lib/python3*/site-packages/openrlhf && \
	  $(BIN)/python -m pip install --force-reinstall --no-deps openrlhf==$(OPENRLHF) && \
	  $(BIN)/openrlhf-gpm patch apply; }

# The tests in a browser take the program that CHROMIUM names, or one of these on PATH.
browser: ## Debian's Chromium, for the tests in a browser; needs root
	@test -n "$$CHROMIUM" || command -v chromium || command -v chromium-browser || command -v google-chrome || \
	  { apt-get update && apt-get install -y --no-install-recommends chromium; }

quickstart: install ## learn a cyclic preference and align a policy against it, on CPU: report in outputs/quickstart
	$(BIN)/python examples/quickstart/run.py

test: install lint type patch-check unit integration ## everything that a CPU allows

lint: install ## ruff: format and rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

type: install ## mypy, strict in core/
	$(BIN)/mypy

patch-check: install ## the series on a pristine wheel: apply, compile, revert, compare hashes
	$(BIN)/python -m pytest -q tests/patching

unit: install ## fast tests, with the line coverage of the parts below the trainer
	$(CPU) $(BIN)/python -m pytest -m "not integration and not gpu and not recipes" --durations=10 \
	  --cov=openrlhf_gpm.core --cov=openrlhf_gpm.objectives --cov=openrlhf_gpm.samples --cov=openrlhf_gpm.models --cov=openrlhf_gpm.checkpoints --cov-report=term-missing --cov-fail-under=95

integration: install ## tests that start real Ray, vLLM and DeepSpeed processes
	$(CPU) $(BIN)/python -m pytest -m "integration and not recipes" --durations=20

recipes: install ## the other recipes, launchers and deaths at every moment, run to their end on a CPU (30 minutes)
	$(CPU) $(BIN)/python -m pytest -m recipes --durations=20

bench: install ## one script per claim in benchmarks/; prints ratios measured side by side (35 minutes)
	$(CPU) for script in $(BENCHMARKS); do echo "== $$script" && env $(MALLOC) $(BIN)/python "$$script" || exit 1; done

DATA ?= DATA
results-check: install ## recompute one table of docs/results.md from DATA=FOLDER and compare (10 minutes)
	$(CPU) $(BIN)/python examples/smollm2/reproduce.py check --data $(DATA)

# Not of the pinned CPU stack: a GPU machine brings its own torch, GPU_PYTHON.
GPU_PYTHON ?= python3
gpu: ## what needs a GPU, in 8 minutes: tests, train_rm in bf16, speed of shared prompts, self-play; GPU_PYTHON=... names the interpreter
	$(GPU_PYTHON) benchmarks/gpu.py

old-transformers: install ## scores of one exported GPM, by transformers 4 and by 5: at most 1e-5 apart
	rm -rf build/transformers4
	$(BIN)/python -m pip install -q --no-deps --target build/transformers4 -r requirements/transformers4.txt
	PYTHONPATH=. $(BIN)/python benchmarks/transformers4.py build/transformers4

patch-manifest: $(STAMP) ## after editing a patch: rewrite manifest.json
	rm -rf build/pristine
	$(BIN)/python -m pip install -q --no-deps --no-compile --target build/pristine openrlhf==$(OPENRLHF)
	$(BIN)/openrlhf-gpm patch manifest build/pristine $(SERIES)

clean: ## remove .venv, caches and outputs
	rm -rf $(VENV) build outputs .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage *.egg-info
