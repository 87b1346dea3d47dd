# PWM's menu. Every target does its own set-up; `make` alone prints this list.
# Arguments for pytest: make test args="tests/unit -k scheduler".

VENV := .venv
PY   := $(VENV)/bin/python
args ?=

.DEFAULT_GOAL := help
.PHONY: help setup proto demo up test faults sim-long fuzz lint format bench clean

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup:  ## Everything a developer needs: .venv, generated code, Docker engine, etcd
	@scripts/setup.sh --dev

proto:  ## Generate pwm/api from proto/
	@scripts/setup.sh --dev --no-system
	@$(PY) proto/generate.py

demo:  ## A whole PWM on this machine runs one workload, shows its logs and stops again
	@scripts/setup.sh
	@$(PY) scripts/with_engine.py scripts/demo.sh

up:  ## A whole PWM on this machine that stays until Ctrl-C
	@scripts/setup.sh
	@$(PY) scripts/with_engine.py $(VENV)/bin/pwm up $(args)

test:  ## All checks and every test that can run here (args="..." goes to pytest)
	@scripts/test.sh $(args)

faults:  ## Break a real cluster on make-believe hosts, as root, for an hour (args="--scale 0.1" for less)
	@scripts/setup.sh --dev
	@$(PY) -m tests.faults --save bench/results/faults.json $(args)

sim-long:  ## 100,000 simulated faults, then every planted bug from the first seed on (an hour of two cores)
	@scripts/setup.sh --dev --no-system
	@$(PY) -m tests.sim --total-faults 100000
	@$(PY) -m tests.sim --hunt

fuzz:  ## A thousand requests made up from the OpenAPI document, in the name of every role (PWM_FUZZ_ROUNDS=9999 for more)
	@scripts/setup.sh --dev --no-system
	@PWM_FUZZ_ROUNDS=$${PWM_FUZZ_ROUNDS:-350} $(PY) -m pytest -q --timeout=0 tests/unit/access/test_fuzz.py $(args)

lint:  ## Format, style, types, import rules, proto
	@scripts/setup.sh --dev --no-system
	@scripts/lint.sh

format:  ## Let ruff format and fix what it can
	@scripts/setup.sh --dev --no-system
	@$(VENV)/bin/ruff check --fix --quiet . && $(VENV)/bin/ruff format --quiet .

bench:  ## Every benchmark; results as JSON in bench/results (args="append fold" picks some)
	@scripts/setup.sh --dev
	@$(PY) scripts/with_engine.py $(PY) -m bench $(args)

clean:  ## Remove .venv, generated code and caches
	rm -rf $(VENV) pwm/api build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
