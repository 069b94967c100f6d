SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
BOOT := $(VENV)/.uv-$(UV_VERSION)
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
CLUSTER_STAMP := $(VENV)/.installed-cluster
export PYTHONPATH := $(CURDIR)
STACK := $(BIN)/python -m include.evergreen.local
REPLAY := $(BIN)/python -m include.evergreen.replay

# Installs the Debian packages that the shell's $missing names.
define INSTALL_MISSING
[ -n "$$missing" ] || exit 0; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then root=; \
	elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then root="sudo -n"; \
	else echo "Expected $$missing, found none: install it (another Chromium: EVERGREEN_CHROMIUM=/path/to/chromium)" >&2; exit 1; fi; \
	echo "Installing $$missing" >&2; \
	export DEBIAN_FRONTEND=noninteractive; \
	$$root apt-get install -yqq $$missing >&2 || { $$root apt-get update -qq >&2; $$root apt-get install -yqq $$missing >&2; }
endef

.PHONY: help install install-dev check format test test-tools test-cluster test-chaos test-chaos-steps test-chaos-stacks test-chaos-embedded test-chaos-cluster cluster-tools test-compose compose-tools env demo up down status sql migrate dictionary ledger calibrate gate-selftest time-machine bench clean lock

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv from requirements.txt

install-dev: $(DEV_STAMP)

check: $(DEV_STAMP) ## Lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_STAMP) ## Rewrite files to the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(DEV_STAMP) test-tools ## Every tier of tests
	$(BIN)/pytest tests/unit tests/properties tests/contracts tests/dags --numprocesses=2 --dist=loadfile $(ARGS)
	$(BIN)/pytest tests/browser tests/integration --durations=15 $(ARGS)
	$(MAKE) --no-print-directory test-cluster test-chaos

test-tools: ## Install Debian's Chromium and PostgreSQL for the tests, unless they are there
	@missing=; \
	[ -n "$(EVERGREEN_CHROMIUM)" ] || command -v chromium >/dev/null || command -v chromium-browser >/dev/null || missing=chromium; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	$(INSTALL_MISSING)

test-cluster: $(CLUSTER_STAMP) cluster-tools ## The services of docker-compose.yaml as processes, and the loop on real flights
	$(BIN)/pytest tests/cluster --durations=15 $(ARGS)

test-chaos: test-chaos-steps test-chaos-stacks ## Every fault; counts what was tried, survived, lost, doubled

test-chaos-steps: $(CLUSTER_STAMP) test-tools cluster-tools ## Faults at the steps of the loop: stores, dependencies, writers, files
	$(BIN)/pytest tests/chaos --ignore=tests/chaos/airflow --ignore=tests/chaos/cluster --numprocesses=2 --dist=loadfile --durations=10 $(ARGS)

# Both mostly wait for heartbeats and retries: side by side, each told whole when it ends.
test-chaos-stacks: ## Faults in whole stacks: killed processes, power cut, a full disk; root or sudo
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-chaos-embedded test-chaos-cluster

test-chaos-embedded: $(CLUSTER_STAMP) test-tools cluster-tools ## The embedded stack: a kill at every step, orphans, power cut, a full disk
	$(BIN)/pytest tests/chaos/airflow --durations=10 $(ARGS)

test-chaos-cluster: $(CLUSTER_STAMP) test-tools cluster-tools ## The cluster: each of its parts killed, all at once too
	$(BIN)/pytest tests/chaos/cluster --durations=10 $(ARGS)

cluster-tools: ## Install Debian's PostgreSQL and Redis for the cluster, unless they are there
	@missing=; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	$(INSTALL_MISSING)

test-compose: $(CLUSTER_STAMP) compose-tools ## docker-compose.yaml on a container engine, with stand-ins for public images, and the loop
	$(BIN)/pytest tests/compose --durations=15 $(ARGS)

compose-tools: ## Install Debian's container engine, compose and debootstrap, unless they are there
	@missing=; \
	command -v dockerd >/dev/null || docker info >/dev/null 2>&1 || missing="docker.io iptables"; \
	docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || missing="$$missing docker-compose"; \
	command -v debootstrap >/dev/null || missing="$$missing debootstrap"; \
	$(INSTALL_MISSING)

env: ## Write .env for docker-compose.yaml with random secrets; never overwrites one
	@python="$(BIN)/python"; [ -x "$$python" ] || python=python3; exec "$$python" -m include.evergreen.local.dotenv

demo: $(STAMP) ## The whole loop on real flights, until Ctrl-C; EXIT=1 stops after the summary
	@exec $(STACK) demo $(if $(filter-out 0,$(EXIT)),--exit)

up: $(STAMP) ## Start the stack in the background; returns when it is ready
	@$(STACK) up

down: $(STAMP) ## End the stack
	@$(STACK) down

status: ## State of the stack and of the loop, as JSON
	@python="$(BIN)/python"; [ -x "$$python" ] || python=python3; exec "$$python" -m include.evergreen.local status

sql: $(STAMP) ## One query on the analysts' views, read only: make sql Q="select * from flight_delay_current limit 5"
	@$(STACK) sql "$(Q)"

migrate: $(STAMP) ## The mart's schema to its newest revision, or to another one: make migrate TO=0001
	@$(BIN)/python -m include.evergreen.local.prepare migrate "$(or $(TO),head)"

dictionary: $(STAMP) ## Write docs/data-dictionary.md and freeze the contracts of the analysts' views
	@$(BIN)/python -m include.evergreen.mart.dictionary

ledger: $(STAMP) ## Decisions and their reasons, newest last: make ledger MODEL=flight_delay KIND=gate LIMIT=50
	@$(STACK) ledger $(if $(MODEL),--model "$(MODEL)") $(if $(KIND),--kind "$(KIND)") $(if $(LIMIT),--limit "$(LIMIT)")

calibrate: $(STAMP) ## Drift thresholds for a budget of false alarms: make calibrate MODEL=flight_delay [BUDGET=1] [AS_OF=2013-06-01]
	@$(REPLAY) calibrate --model "$(or $(MODEL),flight_delay)" $(if $(BUDGET),--budget "$(BUDGET)") $(if $(AS_OF),--as-of "$(AS_OF)")

gate-selftest: $(STAMP) ## The gate against a twin, worse and better models: make gate-selftest MODEL=flight_delay [AS_OF=2013-06-01]
	@$(REPLAY) gate-selftest --model "$(or $(MODEL),flight_delay)" $(if $(AS_OF),--as-of "$(AS_OF)")

time-machine: $(STAMP) ## Replay history under four retrain policies and with faults; writes docs/time-machine.md
	@$(REPLAY) time-machine --model "$(or $(MODEL),flight_delay)"

bench: $(DEV_STAMP) ## Benchmarks with bounds; writes docs/benchmarks.md: make bench [ROW=training] [FRESH=1] [LARGE=1]
	@$(BIN)/python -m benchmarks $(ROW) $(if $(FRESH),--fresh) $(if $(LARGE),--large)

clean: $(STAMP) ## End the stack and delete all its data (var/); keeps .venv
	@$(STACK) clean

lock: $(BOOT) ## Compile both lock files from the .in files
	$(BIN)/uv pip compile --quiet --upgrade --no-header --python-version 3.11 -o requirements.txt requirements.in
	$(BIN)/uv pip compile --quiet --upgrade --no-header --python-version 3.11 -o requirements-dev.txt requirements-dev.in
	$(BIN)/uv pip compile --quiet --upgrade --no-header --python-version 3.11 -c requirements.txt -o requirements-cluster.txt requirements-cluster.in

# The stamps hold the checksum of the lock that was installed: a touched file costs nothing, a changed one an install.

$(BOOT):
	@if ! $(BIN)/python -c '' 2>/dev/null; then \
	  python=; \
	  for candidate in $(PYTHON) python3.11 python3; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; \
	    then python=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "Expected Python 3.11 as python3.11 or python3, found $$(python3 --version 2>&1 || true)." \
	      "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; \
	  fi; \
	  if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    package=$$("$$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	    if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then root=; \
	    elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then root="sudo -n"; \
	    else echo "Expected the venv module of $$python, found none. Install it: apt-get install $$package" >&2; exit 1; fi; \
	    echo "Installing $$package" >&2; \
	    $$root apt-get install -yqq $$package >&2 || { $$root apt-get update -qq >&2; $$root apt-get install -yqq $$package >&2; }; \
	  fi; \
	  "$$python" -m venv --clear $(VENV) >&2; \
	fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION) >&2
	@rm -f $(VENV)/.uv-* && touch $@

$(STAMP): requirements.txt $(BOOT)
	@sum=$$(sha256sum requirements.txt | cut -d' ' -f1); \
	if [ "$$(cat $@ 2>/dev/null)" != "$$sum" ]; then \
	  echo "Installing requirements.txt into $(VENV)" >&2; \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.txt >&2; \
	fi; \
	echo "$$sum" > $@

$(DEV_STAMP): requirements-dev.txt $(STAMP)
	@sum=$$(cat requirements.txt requirements-dev.txt | sha256sum | cut -d' ' -f1); \
	if [ "$$(cat $@ 2>/dev/null)" != "$$sum" ]; then \
	  echo "Installing requirements-dev.txt into $(VENV)" >&2; \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements-dev.txt >&2; \
	fi; \
	echo "$$sum" > $@

$(CLUSTER_STAMP): requirements-cluster.txt $(DEV_STAMP)
	@sum=$$(cat requirements.txt requirements-dev.txt requirements-cluster.txt | sha256sum | cut -d' ' -f1); \
	if [ "$$(cat $@ 2>/dev/null)" != "$$sum" ]; then \
	  echo "Installing requirements-cluster.txt into $(VENV)" >&2; \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements-cluster.txt >&2; \
	fi; \
	echo "$$sum" > $@
