# nearpath: every target that needs it does all the set-up first (`make help` lists them).
# Nothing but git and make is expected on a fresh Debian 12; as root, missing Debian packages are installed, and
# otherwise `scripts/set-up` names what is missing and what is left out because of it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test lab churn infer-hour lint types check schema format bench constraints systemd-test clean

help: ## this list
	@sed -n 's/^\([a-zA-Z%-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r t d; do \
	  printf '  make %-14s %s\n' "$$t" "$$d"; done

setup: $(READY) ## system packages (as root), virtual environment, our packages
	@PYTHON='$(PYTHON)' VENV='$(VENV)' scripts/set-up system

$(READY): pyproject.toml constraints.txt scripts/set-up
	@PYTHON='$(PYTHON)' VENV='$(VENV)' scripts/set-up all

run: setup ## start the demo on loopback: three mirrors, real probes, real copies, real answers
	@$(BIN)/nearpath demo $(ARGS)

test: setup ## all tests; what is skipped is listed with its reason (ARGS="-k dns" picks some)
	@scripts/run-tests '$(BIN)/python' $(ARGS)

lab: setup ## only the WAN in network namespaces (root): make lab ARGS="-k mirror_dies"
	@$(BIN)/python -m pytest -v tests/lab $(ARGS)

lint: setup ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## mypy --strict on our packages
	@$(BIN)/mypy

check: lint types test ## lint, types and tests

schema: setup ## write configs/schema and docs/configuration.md anew from the models
	@mkdir -p configs/schema
	@$(BIN)/nearpath config-schema > configs/schema/nearpath.schema.json
	@$(BIN)/nearpath config-schema --agent > configs/schema/agent.schema.json
	@$(BIN)/nearpath config-schema --syncd > configs/schema/syncd.schema.json
	@$(BIN)/nearpath config-schema --infer > configs/schema/local-infer.schema.json
	@$(BIN)/python -m nearpath.configdoc docs/configuration.md

format: setup ## let ruff rewrite the sources
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: ## list the benchmarks
	@for f in bench/bench_*.py; do n=$${f##*bench_}; echo "  make bench-$${n%.py}" | tr _ -; done

bench-%: setup ## one benchmark: a table, and one JSON object as the last line
	@test -f bench/bench_$(subst -,_,$*).py || { echo "there is no bench/bench_$(subst -,_,$*).py; \`make bench\` lists the benchmarks" >&2; exit 2; }
	@$(BIN)/python -m bench.bench_$(subst -,_,$*) $(ARGS)

churn: setup ## syncd: an hour of changes through nodes that are killed, cut off and full: ARGS="--minutes 10 --seed 7"
	@$(BIN)/python -m tests.syncd.churn_nodes $(ARGS)

infer-hour: setup ## local_infer: an hour of mixed load with faults, every answer checked: ARGS="--seconds 300 --seed 7"
	@$(BIN)/local-infer bench --self --faults --profile mixed --seconds 3600 $(ARGS)

systemd-test: setup ## units under a real systemd in a container (root, Debian archive, some minutes)
	@scripts/set-up container
	@$(BIN)/python -m pytest -v tests/systemd/check_units.py $(ARGS)

constraints: ## pin the newest versions that fit pyproject.toml
	@PYTHON='$(PYTHON)' scripts/pin-constraints

clean: ## remove everything that was made here
	rm -rf $(VENV) build run *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
