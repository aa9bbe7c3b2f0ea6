# Needs Python 3.10 or newer, git and make; everything else goes to .venv.
# Another Python: make PYTHON=/path/to/python3.12 test

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
TRAIN_ARGS ?=
UI_HOST ?= 127.0.0.1
UI_PORT ?= 3000

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIP_QUIET ?= --quiet
export DAGSTER_HOME := $(CURDIR)/.dagster

.PHONY: help demo demo-s3 train test lint format ui bench clean

help:  ## show this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-16s%s\n", $$1, $$2 }'

demo: .venv/.base .dagster/dagster.yaml  ## build the demo dataset end to end and print what was built
	@$(BIN)/python -m wds_pipeline.demo
	@$(BIN)/wds-pipeline datasets >/dev/null
	@echo "building (the run's log: .dagster/demo.log)"
	@$(BIN)/python -m dagster job execute -m wds_pipeline.definitions -j demo_build \
	    </dev/null 2>.dagster/demo.log || { \
	  status=$$?; tail -n 40 .dagster/demo.log >&2; \
	  echo "make demo: the build failed; the whole log: .dagster/demo.log" >&2; exit $$status; }

demo-s3: .venv/.demo-s3 .dagster/dagster.yaml  ## the demo from a bucket into a bucket, with an S3 server of its own
	@$(BIN)/python -m wds_pipeline.demo_s3

train: .venv/.train demo/published/versions  ## train on the demo, stop, go on with other workers (needs torch: minutes to install)
	@$(BIN)/python examples/stop_and_resume.py $(TRAIN_ARGS)

test: lint  ## lint, types and the whole suite (PYTEST_ARGS='-k plan -x')
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

lint: .venv/.test  ## ruff and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: .venv/.test  ## let ruff repair what it can
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

ui: .venv/.base .dagster/dagster.yaml  ## web server and daemon on the demo (UI_PORT=3000)
	@$(BIN)/python -m wds_pipeline.demo
	@$(BIN)/wds-pipeline datasets >/dev/null
	@$(BIN)/python -c 'import socket; socket.create_server(("$(UI_HOST)", $(UI_PORT))).close()' \
	    2>/dev/null || { echo "make ui: port $(UI_PORT) of $(UI_HOST) is taken, perhaps by another" \
	    "'make ui'; stop that, or take another: make ui UI_PORT=3001" >&2; exit 1; }
	$(BIN)/python -m dagster dev -w workspace.yaml -h $(UI_HOST) -p $(UI_PORT)

bench: .venv/.bench  ## the side-by-side benchmarks
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:  ## remove .venv, the demo, Dagster's history and caches
	rm -rf .venv .dagster demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find wds_pipeline wds_pipeline_tests -name __pycache__ -prune -exec rm -rf {} +

# Stamps: a set-up that was interrupted starts again, one that is done is not repeated.
.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "make: $(PYTHON) is missing or older than Python 3.10:" \
	       "make PYTHON=/path/to/a/newer/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) comes without the venv module. On Debian and Ubuntu:" \
	       "apt install python3-venv" >&2; exit 1; }
	@echo "setting up .venv (a few minutes the first time)"
	@$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/.base: .venv/.created setup.cfg pyproject.toml constraints.txt
	@$(PIP) install $(PIP_QUIET) -c constraints.txt -e .
	@touch $@

.venv/.test .venv/.bench .venv/.demo-s3 .venv/.train: .venv/.%: .venv/.created setup.cfg pyproject.toml constraints.txt
	@$(PIP) install $(PIP_QUIET) -c constraints.txt -e '.[$*]'
	@touch $@ .venv/.base

demo/published/versions:
	@$(MAKE) --no-print-directory demo

.dagster/dagster.yaml: dagster.yaml
	@mkdir -p .dagster
	@ln -sfn ../dagster.yaml $@
