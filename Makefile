# Everything a developer runs. `make demo` and `make test` need nothing but Python 3.11 or newer.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export PATH := $(CURDIR)/.tools/bin:$(CURDIR)/.venv/bin:$(PATH)
# A clone keeps its state beside the code, so that removing the folder removes everything.
export DIM_HOME ?= $(CURDIR)/.dim

.PHONY: help setup demo up test coverage lint format types protos tools bench chaos soak fuzz docs constraints clean

help:  ## this list
	@sed -nE 's/^([a-z]+):.*##\s*(.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup:  ## .venv with DIM and all its development needs; only what has changed
	@deployment/scripts/setup

demo: setup  ## train, publish and run a model over 1,797 images through Dagster and two nodes
	@dim demo digits

up: setup  ## two local nodes, Dagster's web server and daemon, until Ctrl-C
	@dim up --nodes 2

test: setup coverage  ## the tests; what needs a missing program is skipped and names the command that brings it
	@python -m pytest -n 2 --dist loadfile

coverage: setup  ## proves that the tests of the pure floors cover 95 % of their lines and of their branches
	@deployment/scripts/coverage

lint: setup  ## ruff, formatting, and the floors of the house
	@ruff check .
	@ruff format --check .
	@lint-imports --no-cache

format: setup  ## ruff's formatting and its safe repairs
	@ruff check --fix .
	@ruff format .

types: setup  ## mypy, strict
	@mypy

protos: setup  ## the code generated from the .proto files
	@deployment/scripts/protos

tools:  ## the real components that tests and `--ipfs kubo` use: ipfs (Kubo), Chromium, nftables
	@python=$$(deployment/scripts/find_python) && "$$python" deployment/kubo/fetch.py
	@deployment/scripts/debian

bench: setup  ## how much of a raw loop's speed a batch keeps, what dispatch costs, how soon a new node is used
	@dim bench dispatch
	@dim bench pipeline
	@dim bench discovery

chaos: setup  ## machines that are killed, stopped, cut off, behind NAT, far apart; long and large (12 GiB of memory)
	@DIM_CHAOS=1 python -m pytest -q -s tests/multinode

soak: setup  ## two gigabytes and a million shards through each store; then contracts and dispatch, ten times over
	@DIM_SOAK=1 python -m pytest -q -s --timeout=1500 tests/integration/content/test_memory_use.py tests/integration/content/test_million_shards.py
	@for round in {1..10}; do echo "round $$round"; python -m pytest -q tests/contracts tests/integration/dispatch; done

fuzz: setup  ## five minutes of fuzzing, guided by coverage: the decoders of records, rosters, invites and messages
	@python -m pip install --quiet --disable-pip-version-check -c constraints.txt atheris==3.0.0
	@python tests/fuzz/run.py --seconds 300

docs: setup  ## writes the command reference, and checks that the documentation is true
	@python deployment/scripts/cli_reference.py
	@python -m pytest -q tests/unit/docs

constraints:  ## writes constraints.txt from what .venv holds
	@deployment/scripts/setup --freeze

clean:  ## removes what is made here, except .venv and .tools
	@rm -rf build dist *.egg-info htmlcov .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
