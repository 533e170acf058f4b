"""Runs and values are there to be read once the call has returned: for other programs, and for queries."""

from __future__ import annotations

import time

import pytest

from heimdall_tracking import MLflowTracker
from support.helpers import PATIENCE_S, rows
from support.s3_proxy import puts

# A port that nobody listens at.
NOBODY = "postgresql://ada:secret@127.0.0.1:1/mlflow"
# More than a wait of a second lasts on a busy machine, less than the next limit.
SOON_S = 20


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, uri: str) -> str:
    return uri if request.param == "sqlite" else request.getfixturevalue("postgres_uri")


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can wait for."""
    monkeypatch.setenv("HEIMDALL_CONNECT_TIMEOUT", "1")
    monkeypatch.setenv("HEIMDALL_END_TIMEOUT", "1.5")


def took(call, *arguments) -> float:
    begun = time.monotonic()
    call(*arguments)
    return time.monotonic() - begun


def test_a_run_is_there_when_it_has_started_and_has_ended_when_its_end_returns(place, tmp_path):
    from mlflow import MlflowClient

    tracker = MLflowTracker(place, str(tmp_path / "artifacts"), experiment_name="tests")
    client = MlflowClient(place, place)
    file = tmp_path / "file.txt"
    file.write_text("content")
    for number in range(10):
        run_id = tracker.start_run(f"run-{number}", tags={"number": number})
        run = client.get_run(run_id)
        assert (run.info.run_name, run.info.status) == (f"run-{number}", "RUNNING")
        assert run.data.tags["number"] == str(number)
        tracker.log_params({"number": number})
        for step in range(100):
            tracker.log_metrics({"loss": number + step}, step=step)
        tracker.log_artifact(file)
        tracker.end_run()
        run = client.get_run(run_id)
        assert (run.info.status, run.data.metrics, run.data.params) == (
            "FINISHED",
            {"loss": number + 99.0},
            {"number": str(number)},
        )
        assert len(client.get_metric_history(run_id, "loss")) == 100
        assert (tmp_path / "artifacts" / run_id / "artifacts" / "artifacts" / "file.txt").is_file()


def test_a_nested_run_and_one_that_goes_on_are_there_when_they_have_started(tracker, client):
    with tracker.run("outer") as outer, tracker.run("inner", nested=True) as inner:
        assert client.get_run(inner.run_id).data.tags["mlflow.parentRunId"] == outer.run_id
    assert [client.get_run(run.run_id).info.status for run in (outer, inner)] == ["FINISHED"] * 2
    tracker.resume(outer.run_id)
    assert client.get_run(outer.run_id).info.status == "RUNNING"
    tracker.end_run("FAILED")
    assert client.get_run(outer.run_id).info.status == "FAILED"


def test_another_tracker_of_the_process_reads_what_the_first_has_logged(place, tmp_path):
    first, second = (
        MLflowTracker(place, str(tmp_path / "artifacts"), experiment_name="tests") for _ in range(2)
    )
    with first.run("first") as run:
        for step in range(20):
            first.log_metric("loss", step, step=step)
            history = second.get_metric_history(run.run_id, "loss")
            assert [point.step for point in history] == list(range(step + 1))
        first.set_tag("found", "yes")
        (found,) = second.search_runs("tags.found = 'yes'")
        assert (found.run_id, found.status, found.metrics) == (run.run_id, "RUNNING", {"loss": 19.0})
        first.log_text("text", "text.txt")
        assert second.load_text(run.run_id, "text.txt") == "text"
    best = second.get_best_run("loss")
    assert best is not None
    assert best["run_id"] == run.run_id


def test_the_first_start_waits_for_a_store_that_is_away_and_the_next_one_does_not(away, tmp_path, caplog):
    # The construction waits as well, and tells of it.
    tracker = MLflowTracker(NOBODY, str(tmp_path / "artifacts"))
    with caplog.at_level("WARNING"):
        first = took(tracker.start_run, "first")
        tracker.log_metric("loss", 1.0)
        second = took(lambda: tracker.start_run("second", nested=True))
        ends = took(tracker.end_run), took(tracker.end_run)
    assert first < SOON_S
    assert max(second, *ends) < 0.9
    outages = [record for record in caplog.records if "127.0.0.1:1" in record.getMessage()]
    assert len(outages) <= 1
    assert tracker.status().pending > 0


def test_a_start_tells_of_a_database_that_goes_away_later_and_the_next_does_not_wait(
    away, db, uri, locked, caplog
):
    tracker = MLflowTracker(uri, experiment_name="tests")
    with locked(db):
        first = took(tracker.start_run, "first")
        told = [record for record in caplog.records if record.levelname == "WARNING"]
        second = took(lambda: tracker.start_run("second", nested=True))
        ends = took(tracker.end_run), took(tracker.end_run)
        later = [record for record in caplog.records if record.levelname == "WARNING"]
    assert 0.9 < first < SOON_S
    assert len(told) == 1
    assert later == told
    assert max(second, *ends) < 0.9
    tracker.flush(PATIENCE_S)
    assert [run.status for run in tracker.search_runs()] == ["FINISHED"] * 2


def test_an_end_waits_for_a_database_that_is_locked_no_longer_than_its_limit(away, db, uri, locked):
    tracker = MLflowTracker(uri, experiment_name="tests")
    run_id = tracker.start_run()
    with locked(db):
        tracker.log_metric("loss", 1.0)
        assert 1.4 < took(tracker.end_run) < SOON_S
        assert tracker.active_run_id is None
    tracker.flush(PATIENCE_S)
    run = tracker.get_run(run_id)
    assert (run.status, run.metrics) == ("FINISHED", {"loss": 1.0})


def test_a_start_and_an_end_that_are_offline_do_not_wait(away, uri):
    tracker = MLflowTracker(uri, mode="offline")
    assert took(tracker.start_run) < 0.9
    assert took(tracker.end_run) < 0.9


@pytest.mark.parametrize("limit", ["soon", "-1", "nan"])
def test_a_limit_of_the_end_that_is_no_time_is_an_error(uri, monkeypatch, limit):
    from heimdall_tracking import ConfigurationError

    monkeypatch.setenv("HEIMDALL_END_TIMEOUT", limit)
    with pytest.raises(ConfigurationError, match="HEIMDALL_END_TIMEOUT"):
        MLflowTracker(uri)


def test_a_run_waits_for_no_upload_of_another_run(
    s3_tracker, proxy, bucket, db, tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("HEIMDALL_END_TIMEOUT", "2")
    tracker = s3_tracker(bucket, proxy)
    large = tmp_path / "large.bin"
    large.write_bytes(b"x" * 100_000)
    proxy.strike("hold", puts)
    with tracker.run("large") as run:
        run.log_artifact(large)
    with tracker.run("quick") as run:
        run.log_metric("loss", 0.5)
    # Another program reads this while the upload still waits.
    statuses = dict(rows(db, "SELECT name, status FROM runs"))
    assert statuses == {"large": "RUNNING", "quick": "FINISHED"}
    assert "has not taken" not in caplog.text
    proxy.heal()
    tracker.flush(PATIENCE_S)
    assert rows(db, "SELECT DISTINCT status FROM runs") == [("FINISHED",)]
