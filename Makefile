# One target per habit. `make demo` and `make test` do their own set-up in .venv.

PYTHON ?= python3
VENV   := $(CURDIR)/.venv
STAMPS := $(VENV)/.stamps
export PATH := $(VENV)/bin:$(PATH)
# An activated environment or a PYTHONPATH must not decide which torch is built against.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX

TRACKER_SOURCES  := Cargo.toml Cargo.lock pyproject.toml $(shell find src python -type f -not -name '*.pyc' -not -name '*.so')
TRAINING_SOURCES := Cargo.toml Cargo.lock $(shell find training -type f -not -name '*.pyc' -not -name '*.so')

.PHONY: help install setup demo ui test test-rust test-python test-compat test-kills fuzz lint check format bench clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install: $(STAMPS)/dev  ## Install what checks and tests need into .venv

setup: $(STAMPS)/tracker $(STAMPS)/training  ## Build both wheels and install them into .venv

demo: setup  ## Train on the real recordings and record the run into mlflow.db
	python examples/powder_rss/train.py

ui: $(STAMPS)/dev  ## Look at the recorded runs in a stock MLflow: http://127.0.0.1:5000
	mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(or $(PORT),5000)

# What waits for servers, releases of MLflow, faults and training is left to `make test`.
check: setup $(STAMPS)/dev  ## Format, clippy and the quick tests: what to run before each commit
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
	cargo test --lib --locked
	python -m pytest -n 2 --dist loadfile -m "not (server or postgres or s3 or compat or faults or training or browser)"

test: test-rust test-python  ## Run every test, Rust and Python

test-rust: $(STAMPS)/torch
	cargo test --workspace --locked

# Most tests wait for servers and processes of their own: four files at a time keep two cores busy.
PYTEST := python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-python: setup $(STAMPS)/dev
	$(PYTEST)

test-compat: setup $(STAMPS)/dev  ## Try every MLflow release that is supported, not just two of them
	HEIMDALL_COMPAT=all $(PYTEST) tests/compat

test-kills: setup $(STAMPS)/dev  ## Kill a logging process 2,000 times and count what is lost; HEIMDALL_KILLS says how often
	python tests/faults/kills.py

# Sanitizers are unstable options, which a stable compiler takes only so.
fuzz: export RUSTC_BOOTSTRAP := 1
fuzz:  ## Feed the parsers with random bytes, each for a minute; FUZZ_SECONDS says how long
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	set -e; targets=$$(cargo fuzz list); for target in $$targets; do \
		cargo fuzz run $$target -- -max_total_time=$(or $(FUZZ_SECONDS),60); \
	done

lint: setup $(STAMPS)/dev  ## Check format, clippy, ruff, types, licences and advisories
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
	ruff check .
	ruff format --check .
	mypy
	python scripts/layers.py
	python scripts/prose.py
	mypy --config-file tests/mypy.ini
	scripts/deny.sh

format: $(STAMPS)/dev  ## Format everything
	cargo fmt --all
	ruff check --fix .
	ruff format .

bench: setup $(STAMPS)/dev  ## Measure, beside the peer, for BENCHMARKS.md; QUICK=1 only sees that every bench runs
	python benches/import_time.py $(if $(QUICK),--quick)
	python benches/calls.py $(if $(QUICK),--quick)
	python benches/stores.py $(if $(QUICK),--quick)
	python benches/artifacts.py $(if $(QUICK),--quick)
	python benches/train_loop.py $(if $(QUICK),--quick)

clean:  ## Remove what was built and installed
	rm -rf target .venv

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --upgrade pip
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/venv requirements/build.txt
	@echo "Installing torch and the build tools into .venv (about a minute)"
	python -m pip install --quiet -r requirements/build.txt
	touch $@

# The tests of Azure are skipped where there is no npm to install its server by.
$(STAMPS)/dev: $(STAMPS)/torch requirements/dev.txt requirements/s3.txt requirements/npm.txt
	python -m pip install --quiet -r requirements/dev.txt
	python -m pip install --quiet --require-hashes --only-binary :all: -r requirements/s3.txt
	if command -v npm >/dev/null; then \
		npm install --silent --global --prefix $(VENV) --ignore-scripts --no-audit --no-fund \
			$$(grep -v '^#' requirements/npm.txt) || echo "azurite cannot be installed: its tests are skipped"; \
	fi
	touch $@

$(STAMPS)/tracker: $(STAMPS)/torch $(TRACKER_SOURCES)
	@echo "Building the tracker from source (two minutes the first time)"
	python -m pip install --quiet --no-build-isolation .
	touch $@

$(STAMPS)/training: $(STAMPS)/tracker $(TRAINING_SOURCES)
	@echo "Building the training loop against libtorch (four minutes the first time)"
	python -m pip install --quiet --no-build-isolation ./training
	touch $@
