# `make` lists what there is. Needs Python 3.11 or newer with pip; `make run` fetches the rest.
#
#   PYTHON=/usr/bin/python3   the Python that makes the environment in .venv
#   TESTS="tests/unit -k bus" what `make test` runs
#   BENCH="--help"            what is passed to the benchmarks
#   COMPLIANCE=30000          expressions of each kind that `make compliance` asks
#   SCRIPTS=…/testdata        a folder of Prometheus' scripts for PromQL, for the same
#
# pip's and npm's own settings (PIP_INDEX_URL, pip config, .npmrc …) apply as they are.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
COMPLIANCE ?= 30000
VENV := .venv
BIN := $(VENV)/bin
export npm_config_update_notifier := false
# Node.js 24 trusts the certificates that the system trusts, as pip does.
export NODE_USE_SYSTEM_CA := 1

# Root's caches stay in the clone too; an ordinary user's are where they always are.
ifeq ($(shell id -u),0)
CACHES := XDG_CACHE_HOME="$${XDG_CACHE_HOME:-$(CURDIR)/.cache}"
export npm_config_cache ?= $(CURDIR)/.cache/npm
endif

# Installed from outside, so that Debian's python3 without python3-venv (no ensurepip) is enough.
PIP_INSTALL := $(CACHES) $(PYTHON) -m pip --disable-pip-version-check --no-input -q \
  --python $(BIN)/python install --no-user --no-warn-script-location
PINNED := $(PIP_INSTALL) --require-hashes --no-deps -r

.PHONY: help
help: ## list the targets
	@echo "Usage: make <target>"
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  \1\t\2/' | expand -t 10

# ---- to use it

.PHONY: run
run: $(VENV)/run.stamp web ## start everything in one process, on http://127.0.0.1:8420
	@exec $(BIN)/vervet up

.PHONY: up
up: ## start everything as containers, with RabbitMQ and TimescaleDB
	docker compose up --build --wait

.PHONY: down
down: ## stop the containers; their data stays
	docker compose down

# ---- to change it

.PHONY: test
test: $(VENV)/dev.stamp web ## run every test, on real servers where they can be started
	@$(BIN)/python -m pytest $(TESTS)

.PHONY: compliance
compliance: $(VENV)/dev.stamp ## ask many more PromQL expressions than `make test`, beside a Prometheus
	@VERVET_TEST_EXPRESSIONS=$(COMPLIANCE) VERVET_TEST_PROMTOOL_CASES=$(COMPLIANCE) \
	  VERVET_TEST_PROMQL_SCRIPTS=$(SCRIPTS) \
	  $(BIN)/python -m pytest tests/integration/test_differential.py tests/unit/test_promql*

.PHONY: check
check: $(VENV)/dev.stamp web/node_modules/.stamp ## lint, format, types and import contract, without servers
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo
	$(NPM) run --silent check

.PHONY: bench
bench: $(VENV)/dev.stamp ## measure what samples and queries cost, beside others (half an hour)
	@$(BIN)/python -m bench $(BENCH)

.PHONY: lock
lock: ## pin the requirements again, with hashes (needs uv)
	$(LOCK) pyproject.toml -o requirements/run.txt --extra all --group build
	$(LOCK) pyproject.toml -o requirements/agent.txt -c requirements/run.txt
	$(LOCK) pyproject.toml -o requirements/server.txt -c requirements/run.txt --extra server --group build
	$(LOCK) pyproject.toml -o requirements/dev.txt -c requirements/run.txt --extra all --group build --group test --group check
	$(LOCK) --group node -o requirements/node.txt

LOCK := uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

.PHONY: clean
clean: ## remove what the other targets made here; Vervet's data stays
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis \
	  dist web/node_modules web/build services/api/static
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- the Python environment

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Vervet needs Python 3.11 or newer, as PYTHON=/path/to/python3 make …"; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null || \
	  { echo "$(PYTHON) has no pip. On Debian: apt install python3-pip"; exit 1; }
	@$(PYTHON) -m venv --without-pip $(VENV)

$(VENV)/run.stamp: requirements/run.txt pyproject.toml | $(BIN)/python
	@echo "Installing the Python packages (about a minute) …"
	@$(PINNED) requirements/run.txt
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/run.stamp
	@echo "Installing the tools for tests and checks …"
	@$(PINNED) requirements/dev.txt
	@touch $@

# ---- the page

# Node.js from the machine where it is new enough for Vite, else from PyPI, in .venv.
NODE_FITS := const [a, b] = process.versions.node.split(".").map(Number); \
  process.exit((a == 20 && b >= 19) || (a == 22 && b >= 12) || a > 22 ? 0 : 1)
HAS_NODE := $(shell command -v npm >/dev/null && node -e '$(NODE_FITS)' 2>/dev/null && echo yes)
ifeq ($(HAS_NODE),yes)
NPM := npm --prefix web
NODE :=
else
NPM := PATH='$(CURDIR)/$(BIN)':"$$PATH" npm --prefix web
NODE := $(VENV)/node.stamp
endif

$(VENV)/node.stamp: requirements/node.txt | $(BIN)/python
	@echo "Installing Node.js for the page's build …"
	@$(PINNED) requirements/node.txt
	@touch $@

web/node_modules/.stamp: web/package-lock.json | $(NODE)
	@echo "Installing the page's packages …"
	@$(NPM) ci --no-progress --loglevel=error
	@touch $@

WEB_SOURCES := $(shell find web -type f -not -path 'web/node_modules/*' -not -path 'web/build/*' \
  -not -path 'web/tests/*' 2>/dev/null)

services/api/static/index.html: $(WEB_SOURCES) web/node_modules/.stamp
	@echo "Building the page …"
	@$(NPM) run --silent build -- --logLevel warn
	@touch $@

.PHONY: web
web: services/api/static/index.html ## build the page, where its source has changed
