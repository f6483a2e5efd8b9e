# The commands of this repository; `make help` lists them.
# Everything that is downloaded or built goes into .cache, keyed by version.
SHELL := /bin/bash
.DELETE_ON_ERROR:
CACHE := $(CURDIR)/.cache
VENV := $(CACHE)/venv
BIN := $(VENV)/bin
PY := $(BIN)/python
PYTHON ?= python3
ARGS ?=
export CARGO_TARGET_DIR := $(CACHE)/target
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(PY) -m pip install --quiet --constraint constraints.txt
CLIPPY := cargo clippy --quiet --locked --all-targets

.PHONY: help build servers demo test soak fuzz bench lint format clean
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.tools: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Set PYTHON=/path/to/python3.11.")'
	@command -v cargo >/dev/null || { echo "cargo is missing: install a Rust toolchain (rustup.rs), then run make again." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: python3-venv), then run make again." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$($(PY) -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*p['dependencies'], *p['optional-dependencies']['dev'])")
	@touch $@

FUZZ := crates/statehash/fuzz
RUST := $(shell find crates -path $(FUZZ) -prune -o -name '*.rs' -print -o -name Cargo.toml -print) Cargo.toml Cargo.lock
$(VENV)/.built: $(VENV)/.tools $(RUST)
	@echo "building the0 into $(VENV)"
	@VIRTUAL_ENV=$(VENV) $(BIN)/maturin develop --release --locked --quiet >$(CACHE)/build.log 2>&1 || { cat $(CACHE)/build.log >&2; exit 1; }
	@touch $@

build: $(VENV)/.built ## the package, in .cache/venv

servers: $(VENV)/.tools ## MinIO, built from source unless MINIO_ENDPOINT names one; tests do it by themselves
	@[ -n "$$MINIO_ENDPOINT" ] || PYTHONPATH=python:tests $(PY) -c "from rig import minio_server; print(minio_server.binary())"

demo: build ## a bot runs, remembers, is killed and comes back; no server needed
	@$(PY) examples/demo/run.py

test: build ## all tests; a part of them: make test ARGS="tests/sdk -k sleep"
	cargo test --quiet --locked --workspace
	$(BIN)/pytest $(ARGS)

soak: build ## the tests that know THE0_SOAK for much longer: faults, cuts, databases, two hosts, hostile sizes
	THE0_SOAK=1 $(BIN)/pytest tests/faults $$(grep -rl THE0_SOAK tests --include='test_*.py' | sort) $(ARGS)

fuzz: ## the Rust core against damaged and forged input; each target FUZZ_S=15 seconds
	$(FUZZ)/run

bench: build ## measurements, kept in .cache/bench
	$(PY) benches/run.py $(ARGS)

lint: $(VENV)/.built ## style, types, Rust's own advice and documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	cargo fmt --all --check
	$(CLIPPY) -- -D warnings
	PYO3_PYTHON=$(PY) $(CLIPPY) --features python -- -D warnings
	PYO3_PYTHON=$(PY) RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --no-deps --document-private-items --features python
	$(FUZZ)/run --lint

format: $(VENV)/.tools ## rewrites the sources as `lint` wants them
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	cargo fmt --all
	cargo fmt --manifest-path $(FUZZ)/Cargo.toml

clean: ## removes what was built; downloads and servers stay
	rm -rf $(VENV) $(CACHE)/target $(CACHE)/fuzz $(CACHE)/ruff $(CACHE)/mypy $(CACHE)/pytest dist
