"""The example makes one run, with this logger and with the stock one, and a kill loses nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch

from support.helpers import PATIENCE_S, clean_environment, rows, sync, wait_until

pytestmark = pytest.mark.training

EXAMPLE = Path(__file__).parents[2] / "examples" / "lightning_localization.py"
OURS = "from heimdall_tracking.lightning import HeimdallLogger as MLFlowLogger\n"
STOCK = "from lightning.pytorch.loggers import MLFlowLogger\n"
# Steps of an epoch.
STEPS = 57


@pytest.fixture
def example(tmp_path: Path, db: Path, heimdall_dir: Path) -> Callable[..., subprocess.Popen]:
    """Start the example, with one of the two import lines."""
    (tmp_path / "powder_rss_462mhz").symlink_to(EXAMPLE.parent / "powder_rss_462mhz")

    def start(line: str, *arguments: str) -> subprocess.Popen:
        source = EXAMPLE.read_text()
        assert source.count(OURS) == 1
        script = tmp_path / "example.py"
        script.write_text(source.replace(OURS, line))
        environment = clean_environment(HEIMDALL_DIR=heimdall_dir, MLFLOW_TRACKING_URI=f"sqlite:///{db}")
        with (tmp_path / "log").open("a") as log:
            return subprocess.Popen(
                [sys.executable, script, *arguments], cwd=tmp_path, env=environment, stdout=log, stderr=log
            )

    return start


def finished(process: subprocess.Popen, folder: Path) -> None:
    assert process.wait(PATIENCE_S) == 0, (folder / "log").read_text()[-4000:]


def steps(db: Path, key: str) -> list[int]:
    query = "SELECT DISTINCT step FROM metrics WHERE key = ? ORDER BY step"
    return [step for (step,) in rows(db, query, key)]


def one_run(db: Path) -> str:
    ((run_id, name, status),) = rows(db, "SELECT run_uuid, name, status FROM runs")
    assert (name, status) == ("lightning-localization", "FINISHED")
    return run_id


def check_whole(db: Path, folder: Path, epochs: int) -> None:
    run_id = one_run(db)
    assert steps(db, "train/loss") == list(range(epochs * STEPS))
    assert set(steps(db, "val/loss")) >= {STEPS * epoch - 1 for epoch in range(1, epochs + 1)}
    assert steps(db, "final_test_loss") == [epochs * STEPS]
    assert len(EXAMPLE.read_text().splitlines()) >= 150
    files = {path.name for path in folder.rglob(f"{run_id}/artifacts/**/*") if path.is_file()}
    assert "recordings.json" in files
    assert f"epoch={epochs - 1}-step={epochs * STEPS}.ckpt" in files


# MLflow's fluent calls do not find the tracker's runs yet: autologging breaks, or makes a run of its own.


def test_the_example_makes_one_run(example, db, tmp_path):
    finished(example(OURS, "--epochs", "2"), tmp_path)
    check_whole(db, tmp_path, 2)
    (best,) = tmp_path.rglob("artifacts/model/MLmodel")
    loaded = mlflow.pytorch.load_model(str(best.parent))
    assert loaded(torch.zeros(3, 58))[0].shape == (3, 2)


def test_the_example_makes_one_run_with_the_stock_logger(example, db, tmp_path):
    finished(example(STOCK, "--epochs", "2"), tmp_path)
    check_whole(db, tmp_path, 2)


def test_a_kill_in_the_middle_loses_nothing(example, db, tmp_path, heimdall_dir):
    process = example(OURS, "--epochs", "40", "--patience", "40")
    checkpoint = tmp_path / "outputs" / "checkpoints" / "last.ckpt"

    def has_trained() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()[-4000:]
        return checkpoint.exists() and max(steps(db, "train/loss"), default=0) > 2 * STEPS

    wait_until(has_trained, "the example has trained two epochs")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sync(heimdall_dir).returncode == 0
    seen = steps(db, "train/loss")
    # Every point up to the last one is there.
    assert seen == list(range(len(seen)))
    assert len(seen) > 2 * STEPS
    epochs = len(seen) // STEPS + 2
    finished(example(OURS, "--epochs", str(epochs), "--patience", "40", "--resume"), tmp_path)
    check_whole(db, tmp_path, epochs)
