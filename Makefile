# The two commands a newcomer needs:  make run   ·   make test
SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
STATE ?= $(CURDIR)/.state
SOURCES := schemas collector sinks fleet dashboards tests bench

.PHONY: help run test check docs bench soak install lock clean setup-run setup-test

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

run: setup-run  ## set up, then everything on this machine with a live view
	@BPFLEET_STATE_DIR=$${BPFLEET_STATE_DIR:-$(STATE)} $(BIN)/bpfleet run

test: setup-test check  ## set up, then every test, on the real kernel, Kafka and ClickHouse engine
	@$(BIN)/pytest || { echo "▸ what failed, once more: some of it measures times, and machines are shared"; \
	  $(BIN)/pytest --last-failed --last-failed-no-failures none; }

check: $(BIN)/.dev  ## lint, types, and that generated files are what their sources say
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy schemas collector sinks fleet dashboards
	@$(BIN)/python -m schemas.docs check
	@$(BIN)/python -m dashboards check

docs: $(BIN)/.dev  ## write the generated pages and dashboards
	@$(BIN)/python -m schemas.docs write
	@$(BIN)/python -m dashboards write

bench: setup-test  ## every figure of docs/benchmarks.md, measured against its peer in one run
	@$(BIN)/python -m bench

soak: setup-test  ## the kill tests, hundreds of rounds
	@BPFLEET_SOAK=$${BPFLEET_SOAK:-300} $(BIN)/pytest -m kill --timeout 7200

install:  ## collector, sink and services as systemd units of this host; ONLY=collector: the least a host needs
	@deploy/setup.sh host
	@deploy/install.sh $(ONLY)

lock:  ## pin every dependency anew, with hashes
	@$(BIN)/pip install -q uv
	@for set in "collector:" "run:--extra fleet --extra embedded" "dev:--all-extras"; do \
	  $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --no-emit-index-url $${set#*:} -o requirements/$${set%%:*}.lock pyproject.toml requirements/build.in; \
	done

clean:  ## remove what was built here, data included
	rm -rf $(VENV) $(STATE) build

setup-run: $(BIN)/.run
	@deploy/setup.sh run
	@$(BIN)/python -m sinks.kafka_server install

setup-test: $(BIN)/.dev
	@deploy/setup.sh test
	@cd tests/clickhouse_go && CGO_ENABLED=0 $$(../../deploy/go.sh) build -mod=readonly -o /dev/null .
	@$(BIN)/python -m sinks.kafka_server install

# The environment: pinned, hashed, without bcc (only the compiling child has it, under $(PYTHON)).
$(BIN)/python:
	@deploy/setup.sh host
	@$(PYTHON) -m venv $(VENV)

$(BIN)/.run: requirements/run.lock pyproject.toml | $(BIN)/python
	@echo "▸ Python environment ($<)"
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r $<
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(BIN)/.dev: requirements/dev.lock pyproject.toml | $(BIN)/python
	@echo "▸ Python environment ($<)"
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r $<
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@ $(BIN)/.run
