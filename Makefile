# `make` alone tells what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

BIN := .venv/bin
NATIVE := setup.py $(wildcard ipvsw/*.pyx ipvsw/datapath/*/*.pxd kmod-shim/bpf/*.c kmod-shim/bpf/lib/*.h)
PROBE := $(wildcard tests/native/*.pyx tests/native/*.pxd)
SAN := build/san
# Where the machine gives no namespaces to workers (the reason is shown), the tests run one after the other.
WORKERS = $$(tests/support/parallel/worker true && printf '%s ' -n auto --max-worker-restart=0)

# A stamp says when something was built; without the thing itself the stamp is worth nothing.
built = $(if $(wildcard $(1)),,always)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: system .venv/.native  ## install what is missing, make .venv, build

run: setup  ## the embedded lab [SECONDS=10], or the daemon on CONFIG=/etc/ipvsw.toml
	@$(if $(CONFIG),exec $(BIN)/ipvswd --config '$(CONFIG)',exec $(BIN)/ipvsw-lab $(if $(SECONDS),--seconds '$(SECONDS)'))

test: setup test-packages .venv/.probe  ## every test; on a slow or busy machine with IPVSW_TEST_PATIENCE=3
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -q --durations=15 $(WORKERS)

lint: setup  ## ruff, mypy, cython-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint ipvsw tests

format: setup  ## lay the Python sources out as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## the tables of configuration keys and the example, from their records
	$(BIN)/python scripts/reference

judges: setup test-packages  ## real container runtimes in a Debian root, with the plugins [JUDGE=podman]
	scripts/judge '$(JUDGE)'

judge-containerd:  ## containerd, asked as a kubelet asks it, with the CNI plugin
	$(MAKE) judges JUDGE=containerd

judge-docker:  ## Docker, with the network plugin
	$(MAKE) judges JUDGE=docker

judge-lxc:  ## LXC and systemd-nspawn, by the recipes in docs/containers.md
	$(MAKE) judges JUDGE=lxc

judge-podman:  ## Podman 5 with netavark, root and rootless
	$(MAKE) judges JUDGE=podman

conformance: setup  ## the corpus against the daemon, frame by frame as the kernel's driver did it
	$(BIN)/python -m tests.conformance.run

bench: setup bench-packages .venv/.probe  ## beside what else there is, as table and picture [ROWS="T1 P1"] [ROUNDS=7] [KEEP=1]
	@set -f; $(BIN)/python -m tests.bench.run --out build/bench $(if $(ROUNDS),--rounds '$(ROUNDS)') \
	$(if $(KEEP),--keep docs/benchmarks.md) $(ROWS)

where: setup bench-packages  ## where the time goes: profile, system calls, copies [CASES="TCP epoll"] [KEEP=1]
	@set -f; $(BIN)/python -m tests.bench.where $(if $(KEEP),--keep docs/benchmarks.md) $(CASES)

fuzz: setup test-packages .venv/.probe  ## a million random frames through parse and decide
	$(BIN)/python -m tests.fuzz.run

honest: setup test-packages  ## clients as people run them behind all guards, which drop nothing, ten minutes [SECONDS=60]
	IPVSW_HONEST_SECONDS='$(or $(SECONDS),600)' PATH="$(CURDIR)/$(BIN):$$PATH" \
	$(BIN)/python -m pytest -q -s tests/e2e/guards/test_honest.py

soak: setup test-packages  ## everything changed at random under traffic, memory recorded: build/soak [MINUTES=30]
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.soak.run --minutes '$(or $(MINUTES),30)'

cluster: setup test-packages  ## 20 hosts with BGP: addresses move, hosts and racks are lost [KEEP=1]
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.cluster.run $(if $(KEEP),--keep)

upgrade: setup test-packages  ## to this commit from another, and back, by take-over and kill under traffic [FROM=HEAD~1]
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.e2e.restart.upgrade --from '$(or $(FROM),HEAD~1)'

san: setup  ## the C-level tests, and a hostile minute of the daemon, under ASan and UBSan
	scripts/sanitize $(SAN)

wheel: setup  ## build/wheels: ipvsw with its compiled parts and the BPF object, for this Python
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheels .
	@ls build/wheels

deb:  ## the Debian package, for this Debian: build/deb/*.deb
	@scripts/deb build

debcheck:  ## build the Debian package in a new Debian; install, run, upgrade, purge it there [SUITE=trixie]
	@scripts/fresh '$(or $(SUITE),bookworm)' 'scripts/deb build && scripts/deb try'

fresh:  ## the first two commands in a Debian where nothing is installed [SUITE=trixie] [COMMAND="make lint"]
	@scripts/fresh '$(or $(SUITE),bookworm)' "$${COMMAND-}"

clean:  ## remove everything that was built, .venv too
	rm -rf .venv build kmod-shim/module/build ipvsw/_fast.c *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find ipvsw tests \( -name '*.so' -o -name '*.o' \) -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

system:
	@scripts/prepare system

test-packages:
	@scripts/prepare tests

bench-packages:
	@scripts/prepare bench

.venv/.python: pyproject.toml setup.py scripts/prepare $(call built,.venv/bin/ipvswd)
	@scripts/prepare python
	@touch $@

.venv/.native: .venv/.python $(NATIVE) $(call built,ipvsw/_fast.*.so) $(call built,ipvsw/ipvsw.bpf.o)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

.venv/.probe: .venv/.native $(PROBE) $(call built,tests/native/_probe.*.so)
	IPVSW_PROBE=1 $(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

always:

.PHONY: help setup run test lint format docs judges judge-containerd judge-docker judge-lxc judge-podman conformance bench where fuzz honest soak upgrade cluster san wheel deb debcheck fresh clean system test-packages bench-packages always
