# The commands of this repository; `make help` lists them.
# Everything that is downloaded or built goes into .cache, keyed by version.
SHELL := /bin/bash
.DELETE_ON_ERROR:
CACHE := $(CURDIR)/.cache
VENV := $(CACHE)/venv
PY := $(VENV)/bin/python
PYTHON ?= python3
export CARGO_TARGET_DIR := $(CACHE)/target

.PHONY: help build demo test bench lint format clean
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.tools: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11.")'
	@command -v cargo >/dev/null || { echo "cargo is missing: install a Rust toolchain (rustup.rs), then run make again." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt maturin
	$(PY) -m pip install --quiet --constraint constraints.txt $$($(PY) -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['dev'])")
	@touch $@

RUST := $(shell find crates -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock
$(VENV)/.built: $(VENV)/.tools $(RUST)
	VIRTUAL_ENV=$(VENV) $(VENV)/bin/maturin develop --release --locked --quiet
	@touch $@

build: $(VENV)/.built ## the package, in .cache/venv
