"""Databases with rows of other programs, databases that are locked, and those of other programs."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from heimdall_tracking import ConfigurationError, MLflowTracker
from support.helpers import PATIENCE_S, wait_until, write

pytestmark = pytest.mark.faults


def changed(uri: str, *statements: str) -> None:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()


def two_runs(uri: str) -> MLflowTracker:
    tracker = MLflowTracker(uri, experiment_name="e")
    for name in ("ours", "theirs"):
        with tracker.run(name):
            tracker.log_metric("m", 1.5, step=3)
    tracker.flush(PATIENCE_S)
    return tracker


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("UPDATE runs SET start_time = start_time + 0.25 WHERE name = 'theirs'", id="float"),
        pytest.param("UPDATE runs SET end_time = end_time || '.5' WHERE name = 'theirs'", id="text"),
        pytest.param("UPDATE latest_metrics SET step = step + 0.5, timestamp = timestamp + 0.5", id="point"),
    ],
)
def test_times_and_steps_of_another_type_are_read(uri, statement):
    tracker = two_runs(uri)
    before = {run.run_name: run.start_time for run in tracker.search_runs()}
    changed(uri, statement)
    runs = tracker.search_runs()
    assert {run.run_name: run.start_time for run in runs} == before
    assert [run.metrics for run in runs] == [{"m": 1.5}] * 2


def test_a_value_that_is_no_number_is_named_and_is_no_outage(uri):
    tracker = two_runs(uri)
    changed(uri, "UPDATE runs SET start_time = 'yesterday' WHERE name = 'theirs'")
    with pytest.raises(Exception, match="yesterday") as failed:
        tracker.search_runs()
    assert "at present" not in str(failed.value)


def test_a_start_in_microseconds_is_exported(uri, tmp_path):
    tracker = two_runs(uri)
    changed(uri, "UPDATE runs SET start_time = start_time * 1000 WHERE name = 'theirs'")
    for name in ("runs.csv", "runs.json"):
        tracker.export_runs(tmp_path / name)
        assert "theirs" in (tmp_path / name).read_text()


def test_a_database_that_is_locked_at_the_start_costs_nothing(uri, monkeypatch):
    monkeypatch.setenv("HEIMDALL_CONNECT_TIMEOUT", "1")
    MLflowTracker(uri, experiment_name="e").flush(PATIENCE_S)
    path = uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        tracker = MLflowTracker(uri, experiment_name="e")
        run_id = tracker.start_run("r")
        tracker.log_metric("m", 1)
        other.execute("COMMIT")
    tracker.end_run()
    tracker.flush(PATIENCE_S)
    assert tracker.get_run(run_id).metrics == {"m": 1.0}


def test_the_database_of_another_program_is_named_as_such(tmp_path):
    path = tmp_path / "optuna.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("CREATE TABLE studies (study_id INTEGER)")
        database.commit()
    with pytest.raises(ConfigurationError, match="no MLflow database") as refused:
        MLflowTracker(f"sqlite:///{path}", experiment_name="e")
    assert "upgrade" not in str(refused.value)


def test_a_relative_location_begins_where_the_tracker_was_made(uri, tmp_path, monkeypatch, run_script):
    (tmp_path / "begun").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "begun")
    MLflowTracker(uri, experiment_name="old").flush(PATIENCE_S)
    changed(uri, "UPDATE experiments SET artifact_location = './mlruns/1' WHERE name = 'old'")
    tracker = MLflowTracker(uri, experiment_name="old")
    big = write(tmp_path / "big", os.urandom(1 << 20))
    with tracker.run() as run:
        for number in range(6):
            tracker.log_artifact(big, f"d{number}")
        os.chdir(tmp_path / "elsewhere")
    tracker.flush(PATIENCE_S)
    assert len(files(tmp_path / "begun" / "mlruns")) == 6
    assert files(tmp_path / "elsewhere") == []
    assert len(tracker.list_artifacts(run_id=run.run_id)) == 6
    # A file that is delivered elsewhere, after the death of the process, goes to the same place.
    dies = """
        import os, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name="old", mode="offline")
        tracker.start_run("dead")
        tracker.log_artifact(sys.argv[2])
        os._exit(0)
        """
    # The script runs in the folder of the test.
    assert run_script(dies, uri, big).code == 0
    MLflowTracker(uri, experiment_name="old").flush(PATIENCE_S)
    wait_until(lambda: len(files(tmp_path / "mlruns")) == 1, "the file of the dead process")
    assert files(tmp_path / "elsewhere") == []


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and ".heimdall" not in path.parts]
