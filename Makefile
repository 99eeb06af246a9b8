# Everything here works from a fresh clone; system packages that are missing are installed, and named first.
# PYTHON is the interpreter that the virtual environment is made with.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
STAMP := $(VENV)/.installed

# Downloads, the OpenStack services' environment and the guest image, shared by the demo and the tests.
export SEV_AGENT_LAB_CACHE ?= /var/cache/sev-agent-lab

.PHONY: help demo down test quick test-unit test-integration test-e2e test-faults lint bench clean

help: ## Show what there is.
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(STAMP) ## Bring a lab up, boot a guest in it, show the evidence.
	$(RUN)/sev-agent demo

down: $(STAMP) ## End the lab that the demo left up.
	$(RUN)/sev-agent lab down

test: quick ## Run everything that CI runs; the suites that need services two at a time.
	@$(MAKE) --no-print-directory --keep-going --jobs=2 BESIDE_ANOTHER=yes test-faults test-integration test-e2e

# Where two suites run side by side, each line says whose it is.
suite = $(RUN)/pytest tests/$(1)$(if $(BESIDE_ANOTHER), 2>&1 | sed --unbuffered 's/^/$(1) | /')

quick: ## Check style and types, and beside that run the unit tests.
	@$(MAKE) --no-print-directory --keep-going --jobs=2 --output-sync=target lint test-unit

test-unit: $(STAMP) test-packages ## Run what needs no services: seconds.
	$(call suite,unit)

test-integration: $(STAMP) test-packages ## Run each adapter against its real service.
	$(call suite,integration)

test-e2e: $(STAMP) test-packages ## Boot real guests on a lab of the tests' own.
	$(call suite,e2e)

test-faults: $(STAMP) test-packages ## Break every service and the daemon itself, and see that all counts still hold.
	$(call suite,faults)

lint: $(STAMP) ## Check style and types.
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

bench: $(STAMP) test-packages ## Measure against bare libvirt, into build/bench.json.
	$(RUN)/python -m tests.bench

clean: ## Remove what was built here; the lab stays.
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

.PHONY: test-packages
test-packages:
	@$(PYTHON) -m sev_agent.lab.packages --for tests

# The package brings its C extension for libvirt, which is compiled here: so its headers come first.
$(STAMP): pyproject.toml
	@$(PYTHON) -m sev_agent.lab.packages --for build
	$(PYTHON) -m venv $(VENV)
	@echo "installing sev-agent and its tools into $(VENV), which takes a minute"
	@$(RUN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
