.DEFAULT_GOAL := help
PYTHON  ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
             $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV    ?= .venv
BIN     := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
DEV     := $(VENV)/.dev-installed
PIP     := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
MODEL   ?=
ARGS    ?=
JOBS    ?= $(shell nproc 2>/dev/null || echo 2)
LANES   ?= $(shell expr $(JOBS) + 2)
PYTEST  := $(BIN)/python -m pytest --dist loadgroup
CLIENTS := $(patsubst tests/clients/requirements/%.txt,.clients/%/.installed,$(wildcard tests/clients/requirements/*.txt))
OTHERS  := $(patsubst tests/clients/requirements/%.txt,.clients/%/.installed,$(wildcard tests/clients/requirements/others/*.txt)) \
           $(patsubst tests/clients/npm/%/package.json,.clients/npm/%/.installed,$(wildcard tests/clients/npm/*/package.json))
# Whatever the shell says: tests start processes by the hundred, and each would compile the house anew.
export PYTHONDONTWRITEBYTECODE :=
QUICK   := tests/unit tests/property tests/house tests/model

.PHONY: help serve install test deep unit check proof lint types imports fmt sim e2e clients slow gpu bench ci clean

help:     ## list targets
	@grep -hE '^[a-z0-9]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

serve: $(RUNTIME)  ## install if needed, fetch the embedded model, serve it: make serve ARGS="--pd 2p2d"
	@exec $(BIN)/baton serve $(MODEL) $(ARGS)

install: $(RUNTIME)  ## virtual environment with .venv/bin/baton

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Baton needs Python 3.11 or newer: install it, or name it with make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): constraints.txt pyproject.toml | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	$(PIP) -r requirements-dev.txt
	@touch $@

test: $(DEV)  ## every kind of test that needs no accelerator, in minutes
	$(PYTEST) -n $(LANES) -m "not (gpu or deep)" $(ARGS)

deep: $(DEV) $(CLIENTS)  ## test, the official clients, and what repeats it with other values
	$(PYTEST) -n $(LANES) -m "not gpu" $(ARGS)

unit: $(DEV)  ## unit, property and house tests: no model, no sockets
	$(PYTEST) -n $(JOBS) $(QUICK) -m "not (sim or e2e or gpu or nixl or slow or deep)" $(ARGS)

check: lint types imports unit  ## what every commit passes

lint: $(DEV)  ## check formatting and rules, change nothing
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(DEV)  ## mypy --strict
	$(BIN)/mypy

imports: $(DEV)  ## package layering
	$(BIN)/lint-imports

fmt: $(DEV)  ## rewrite formatting and safe fixes
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

sim: $(DEV)  ## whole cluster on a virtual clock
	$(PYTEST) -n $(JOBS) tests/sim tests/model -m sim $(ARGS)

proof: $(DEV)  ## every state of small handoffs, and 4,500 seeds of the simulated cluster
	{ $(BIN)/python -m tests.model.explore --states 1000000 && $(BIN)/python -m tests.sim.campaign --seeds 1950; } & first=$$!; \
	  $(BIN)/python -m tests.sim.campaign --first 1950 --seeds 2550 && wait $$first

e2e: $(DEV)  ## real processes on loopback
	$(PYTEST) -n $(LANES) -m "(e2e or slow or nixl) and not (gpu or deep)" $(ARGS)

.clients/%/.installed: tests/clients/requirements/%.txt | $(BIN)/python
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip --disable-pip-version-check install -r $<
	@touch $@

.clients/npm/%/.installed: tests/clients/npm/%/package.json
	mkdir -p $(@D) && cp $< $(@D)/package.json
	npm install --prefix $(@D) --no-audit --no-fund --loglevel error
	@touch $@

clients: $(DEV) $(CLIENTS) $(OTHERS)  ## clients, each in an environment of its own, against a server; the npm ones need node
	$(BIN)/python -m pytest tests/clients $(ARGS)

gpu: $(DEV)  ## what only hardware shows
	$(BIN)/python -m pytest -m gpu $(ARGS)

bench: $(RUNTIME)  ## how fast KV blocks move between two processes, each transport
	$(BIN)/baton bench kv $(ARGS)

ci: lint types imports proof deep  ## what CI runs: everything

clean:    ## remove the environment and every cache
	rm -rf $(VENV) .clients .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
