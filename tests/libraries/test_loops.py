"""Trainings by loops of one's own, whose logger belongs to a library: accelerate and ignite."""

from __future__ import annotations

import pytest

from .conftest import DOORS, the_only


@pytest.mark.parametrize("door", DOORS[:2])
def test_accelerate_s_tracker_records_one_run(record, door):
    runs = record("accelerate_tracker.py", door, imports=["accelerate"])
    run = the_only(runs, runs[0].name)
    assert run.params == {"lr": "0.125", "epochs": "2"}
    assert run.points["step"] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert run.steps["train/loss"] == [0, 1, 2]


def test_accelerate_s_nested_run_is_below_the_tracker_s(record):
    outer, inner = record("accelerate_tracker.py", "run", imports=["accelerate"], MLFLOW_NESTED_RUN="1")
    assert (outer.name, outer.status, outer.params) == ("of the tracker", "FINISHED", {})
    assert (inner.status, inner.parent) == ("FINISHED", outer.run_id)
    assert (inner.params["lr"], inner.steps["train/loss"]) == ("0.125", [0, 1, 2])


@pytest.mark.parametrize("door", DOORS)
def test_ignite_s_logger_records_one_run(record, door):
    runs = record("ignite_logger.py", door, imports=["ignite.engine", "ignite.handlers"])
    run = the_only(runs, "of the tracker" if door == "run" else runs[0].name)
    assert run.params == {"lr": "0.125", "epochs": "2"}
    assert run.steps["train loss"] == [1, 2, 3, 4, 5, 6]
    assert run.points["val loss"] == [(3, 0.5), (6, 0.5)]
    assert [value for _, value in run.points["lr group_0"]] == [0.125] * 6
