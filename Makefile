# `make demo` and `make test` set up all that they need, on a Debian or Ubuntu machine with only git and make.
# `make help` lists the targets. Everything is kept in .venv, build and the node_modules; `make clean` removes it.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test lint types bench deps format gen clean test-protocol test-rest test-programs constraints

export PATH := $(CURDIR)/.venv/bin:$(PATH)
PIP := .venv/bin/python -m pip --quiet --disable-pip-version-check install --constraint tools/constraints.txt
SOURCES = $(shell find src -name '*.py' -o -name py.typed)
PEERS := $(wildcard tests/official/typescript/package-lock.json tests/interop/*/package-lock.json)
NODE_MODULES := $(patsubst %/package-lock.json,%/node_modules/.package-lock.json,tools/package-lock.json $(PEERS))

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.runtime ## watch commands run in sandboxes, in async and in sync Python
	@.venv/bin/python examples/demo.py

test: test-programs lint types test-protocol test-rest ## run every check: lint, types, and all tests on the built wheel

test-programs: # the real programs that the tests run; quick when they are there
	@tools/install_system.sh tests

test-protocol: .venv/.tools | build
	.venv/bin/python -m coverage run -m pytest tests/protocol
	.venv/bin/python -m coverage report
	.venv/bin/python tools/own_coverage.py

test-rest: build/wheel/.installed $(NODE_MODULES)
	build/wheel/venv/bin/python -m tests.real.root_trees
	build/wheel/venv/bin/python -m tests.real.postgres_image
	PATH="$(CURDIR)/build/wheel/venv/bin:$$PATH" build/wheel/venv/bin/python -m pytest --ignore=tests/protocol --durations=15

lint: .venv/.tools ## check style and format
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/.tools build/wheel/.installed $(NODE_MODULES) ## check types: mypy strict, and pyright on the wheel's public API
	.venv/bin/mypy
	.venv/bin/python tools/verify_types.py build/wheel/venv/bin/python

bench: .venv/.tools ## compare speed with the official client
	.venv/bin/python -m benchmarks

deps: ## install what needs root (with apt), if anything is missing
	tools/install_system.sh tests

format: .venv/.tools ## format the sources
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

gen: .venv/.tools ## write the generated files anew: the sync facade, state diagrams, list of the API
	.venv/bin/python tools/gen_sync.py
	.venv/bin/python tools/draw_states.py
	.venv/bin/python tools/list_api.py

constraints: .venv/.tools ## write tools/constraints.txt anew, with the newest version of everything
	.venv/bin/python tools/pin_versions.py

clean: ## remove everything that make has made
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis tools/node_modules tests/official/typescript/node_modules tests/interop/*/node_modules
	find . -name __pycache__ -prune -exec rm -rf {} +

# What the demo and a user need, and then what the checks need. A stamp is as old as what it was made from.

.venv/bin/python:
	tools/install_system.sh python
	$$(tools/find_python.sh) -m venv --clear .venv

.venv/.runtime: pyproject.toml tools/constraints.txt | .venv/bin/python
	$(PIP) pip
	$(PIP) --editable '.[server,trio,speedups]'
	@touch $@

.venv/.tools: .venv/.runtime
	$(PIP) --group test --group lint
	@touch $@

build:
	@mkdir -p $@

build/wheel/.installed: $(SOURCES) pyproject.toml README.md LICENSE .venv/.tools tools/install_wheel.py
	.venv/bin/python tools/install_wheel.py build/wheel
	@touch $@

%/node_modules/.package-lock.json: %/package-lock.json .venv/.tools
	cd $* && npm ci --silent --no-audit --no-fund
	@touch $@
