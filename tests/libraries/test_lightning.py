"""Lightning's own logger for MLflow, and MLflow's autologging of Lightning, with both packages."""

from __future__ import annotations

import pytest

from .conftest import the_only

# Lightning itself reads the URI of the environment when it is imported.
IMPORTS = ("torchmetrics", "torchvision", "jsonargparse")
PACKAGES = ("lightning.pytorch", "pytorch_lightning")
CASES = [
    ("uri", "lightning.pytorch"),
    ("uri", "pytorch_lightning"),
    ("tracker", "lightning.pytorch"),
]


def check(run):
    assert run.params["lr"] == "0.125"
    assert run.steps["train/loss"] == [0, 1, 2, 3, 4, 5]
    assert run.points["val/loss"] == [(2, 4.0), (5, 2.0)]


@pytest.mark.parametrize(("door", "package"), CASES)
def test_its_logger_records_one_run(record, door, package):
    runs = record("lightning_mlflow.py", door, package, imports=IMPORTS)
    check(the_only(runs, "of the logger", "of lightning"))


@pytest.mark.parametrize("package", PACKAGES)
def test_its_logger_joins_the_tracker_s_run(record, package):
    check(the_only(record("lightning_mlflow.py", "run", package, "joins", imports=IMPORTS), "of the tracker"))


def test_a_training_that_breaks_is_failed(record):
    (run,) = record("lightning_mlflow.py", "uri", "lightning.pytorch", "breaks", imports=IMPORTS)
    assert (run.name, run.status, run.steps["train/loss"]) == ("of the logger", "FAILED", [0, 1, 2])


@pytest.mark.parametrize(("door", "package"), [("uri", PACKAGES[0]), ("run", PACKAGES[1])])
def test_autologging_records_one_run(record, door, package):
    runs = record("lightning_autolog.py", door, package, imports=IMPORTS)
    run = the_only(runs, "of the tracker" if door == "run" else runs[0].name)
    assert (run.params["epochs"], run.params["optimizer_name"]) == ("2", "SGD")
    assert [value for _, value in run.points["val/loss"]] == [4.0, 2.0]
    assert len(run.points["train/loss"]) == 2
