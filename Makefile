# The commands of this repository. `make run` needs nothing but Python 3.11 or newer, and make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
SECONDS ?= 600
SEED    ?= 1
JOBS    ?= 1

.PHONY: help run test test-unit test-deps check check-long check-real check-clients lint types pages lock screenshot clean bench bench-streams bench-metrics bench-dashboard bench-models bench-affinity soak chaos hostile fuzz

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/run.stamp  ## serve nexus.toml, or two demo backends without one
	@exec $(BIN)/nexus serve

test: $(VENV)/dev.stamp  ## run all tests, end-to-end ones included, JOBS=2 at once; test-deps installs their programs
ifeq ($(JOBS),1)
	$(BIN)/python -m pytest --durations=10 -m "not long and not real"
else
	$(BIN)/python -m pytest --durations=10 -n $(JOBS) --dist loadfile -m "not alone and not long and not real"; status=$$?; \
	$(BIN)/python -m pytest --durations=10 -m "alone and not long and not real" && exit $$status
endif

test-unit: $(VENV)/unit.stamp  ## tests that start no process; they need only requirements-unit.txt
	$(BIN)/python -m pytest --durations=10 -m "not e2e and not long and not real"

test-deps:  ## install the programs that the tests start (Debian packages; needs root)
	@sh tests/install-packages.sh

check: test-deps lint types test  ## everything that must pass

check-long: $(VENV)/dev.stamp test-deps  ## chaos, hostile, soak and fuzz runs, beyond `make check`; an hour: SECONDS=3600
	NEXUS_CHAOS_SECONDS=$(SECONDS) NEXUS_CHAOS_SEED=$(SEED) NEXUS_SOAK_SECONDS=$$(($(SECONDS) / 2)) \
	    $(BIN)/python -m pytest -s tests/test_chaos.py tests/test_soak.py tests/test_money_soak.py
	NEXUS_HOSTILE_SECONDS=$(SECONDS) NEXUS_HOSTILE_SEED=$(SEED) $(BIN)/python -m pytest -s tests/test_hostile.py
	$(BIN)/python -m pytest tests/test_schemathesis.py
	$(BIN)/python -m pytest --hypothesis-profile=long tests/proxy tests/metrics tests/routing

check-real: $(VENV)/dev.stamp  ## real model servers and client libraries, fetched into bench/.peers; needs a compiler, node and a JDK
	$(BIN)/python -m pytest -s -m real tests/real

check-clients: $(VENV)/dev.stamp  ## Claude Code and Codex, headless, fetched from npm into bench/.peers: 650 MB; needs node
	$(BIN)/python -m pytest -s -m real tests/clients

bench: $(VENV)/dev.stamp  ## requests a second beside the peers, which are fetched into bench/.peers; needs wrk, nginx, haproxy
	$(BIN)/python -m bench.throughput

bench-streams: $(VENV)/dev.stamp  ## the cost of an event of a stream, beside nginx and a Rust router; needs nginx
	$(BIN)/python -m bench.streams
	$(BIN)/python -m bench.stream_dialects

soak: $(VENV)/dev.stamp  ## four workers at 80 % of their capacity: make soak SECONDS=600; needs wrk, nginx
	$(BIN)/python -m bench.soak $(SECONDS)

bench-metrics: $(VENV)/dev.stamp  ## the cost of reading and recording metrics, beside prometheus_client's own collector
	$(BIN)/python -m bench.metrics

bench-dashboard: $(VENV)/dev.stamp  ## the cost of fifty open dashboards
	$(BIN)/python -m bench.dashboard

bench-models: $(VENV)/dev.stamp  ## the cost of thousands of models for a worker's loop and the health process
	$(BIN)/python -m bench.models

bench-affinity: $(VENV)/dev.stamp  ## hits in backends' caches, beside two routers, which are fetched; three minutes
	$(BIN)/python -m bench.affinity

chaos: $(VENV)/dev.stamp  ## ten minutes of load and kills: make chaos SECONDS=600 SEED=7
	NEXUS_CHAOS_SECONDS=$(SECONDS) NEXUS_CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -s tests/test_chaos.py

hostile: $(VENV)/dev.stamp  ## a good client beside hostile ones: make hostile SECONDS=600 SEED=7
	NEXUS_HOSTILE_SECONDS=$(SECONDS) NEXUS_HOSTILE_SEED=$(SEED) $(BIN)/python -m pytest -s tests/test_hostile.py

fuzz: $(VENV)/dev.stamp  ## the four parsers under damaged bytes, each for SECONDS: make fuzz SECONDS=600 SEED=7
	NEXUS_FUZZ_SECONDS=$(SECONDS) NEXUS_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest -s tests/proxy/test_fuzz.py

lint: $(VENV)/dev.stamp  ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp  ## mypy, strict
	$(BIN)/mypy

pages: $(VENV)/run.stamp  ## rewrite the generated pages
	$(BIN)/python docs/generate.py

lock:  ## rewrite deploy/requirements.lock after a change of requirements.txt
	@$(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/pip install --quiet --disable-pip-version-check pip-tools
	@head -1 deploy/requirements.lock >$(VENV)/lock/head && echo hatchling >$(VENV)/lock/build.in
	@$(VENV)/lock/bin/pip-compile --quiet --generate-hashes --no-header --no-annotate --no-emit-index-url \
	    --no-emit-trusted-host --no-emit-find-links --allow-unsafe --strip-extras \
	    -o $(VENV)/lock/pins requirements.txt $(VENV)/lock/build.in
	@cat $(VENV)/lock/head $(VENV)/lock/pins >deploy/requirements.lock

screenshot: $(VENV)/dev.stamp  ## docs/dashboard.png; needs chromium
	$(BIN)/python docs/screenshot.py

clean:  ## remove the virtual environment
	rm -rf $(VENV)

$(VENV)/run.stamp: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Nexus needs Python 3.11 or newer; name one: make PYTHON=python3.12 run")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/unit.stamp: $(VENV)/run.stamp requirements-unit.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-unit.txt
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements-dev.txt requirements-unit.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
