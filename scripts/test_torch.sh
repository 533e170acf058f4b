#!/usr/bin/env bash
# Builds both wheels in an environment of its own that has another torch, and runs the training tests there:
# scripts/test_torch.sh 2.15.0 FOLDER [keep]. The folder is removed at the end unless `keep` is given.
set -euo pipefail
release=$1
folder=$2
keep=${3:-}
cd "$(dirname "$0")/.."
if [ -z "$keep" ]; then trap 'rm -rf "$folder"' EXIT; fi

[ -d "$folder/venv" ] || "${PYTHON:-python3}" -m venv "$folder/venv"
export PATH=$folder/venv/bin:$PATH CARGO_TARGET_DIR=$folder/target CARGO_NET_RETRY=10
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV CONDA_PREFIX CXXFLAGS
# What the tests need, without the torch that the wheels are usually built with.
grep -v '^torch==' requirements/build.txt >"$folder/build.txt"
grep -vE '^(torch|torchvision|torchmetrics)==' requirements/dev.txt >"$folder/dev.txt"
scripts/retry.sh python -m pip install --quiet "torch==$release"
scripts/retry.sh python -m pip install --quiet -r "$folder/build.txt" -r "$folder/dev.txt" "torch==$release"
# The torchvision of that release; without one, its tests are skipped.
scripts/retry.sh python -m pip install --quiet torchvision "torch==$release" || true
export MATURIN_PEP517_ARGS="--config $PWD/.cargo/tests.toml"
python -m pip install --quiet --no-build-isolation .
python -m pip install --quiet --no-build-isolation ./training
python -c "import heimdall_training, torch; print('heimdall_training with torch', torch.__version__)"
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -p no:cacheprovider tests/training
