"""Processes that log into the run of the process that has started them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from .conftest import SCRIPTS, the_only


def check(runs, children):
    run = the_only(runs, "of the parent")
    numbers = range(children)
    assert run.params == {"lr": "0.125"} | {f"param-{n}": str(n) for n in numbers}
    assert run.points.pop("of the parent") == [(0, 1.0)]
    assert run.points == {f"metric-{n}": [(0, n), (1, n), (2, n)] for n in numbers}


@pytest.mark.parametrize(("door", "method"), [("uri", "fork"), ("uri", "spawn"), ("tracker", "fork")])
def test_workers_of_multiprocessing_log_into_the_parent_s_run(record, door, method):
    check(record("workers.py", door, method), 4)


@pytest.mark.parametrize("told", ["the environment", "the present URI"])
def test_programs_log_into_the_run_that_the_environment_names(record, told):
    # The present URI has no prefix: it means a store with a journal all the same.
    check(record("children.py", "uri", told), 2)


def test_a_project_of_mlflow_is_one_run(record_in_processes):
    command = (
        "run",
        SCRIPTS / "project",
        "--env-manager=local",
        "-P",
        "lr=0.125",
        "--run-name",
        "of the project",
    )
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    run = the_only(record_in_processes("uri", "-m", "mlflow", *command, PATH=path), "of the project")
    assert run.params == {"lr": "0.125", "epochs": "3"}
    assert run.points == {"loss": [(0, 0.125), (1, 0.0625), (2, pytest.approx(0.125 / 3))]}
    assert run.tags["mlflow.project.entryPoint"] == "main"
