"""Collecting garbage: deleted runs go, and stock MLflow agrees afterwards."""

from __future__ import annotations

import sqlite3
import time
from datetime import timedelta
from types import SimpleNamespace

import pytest

from heimdall_tracking import (
    ConfigurationError,
    Dataset,
    MLflowTracker,
    collect_garbage,
)
from support import s3
from support.garbage import (
    EXPERIMENT,
    Disk,
    found,
    logged,
    mlflow_gc,
    rows_of,
    spared,
    started,
    stock,
    stock_files,
)
from support.helpers import free_port


def test_artifacts_of_deleted_runs_go_and_others_stay(place):
    tracker = started(place)
    kept, deleted = logged(tracker), logged(tracker)
    tracker.delete_run(deleted)
    before = place.artifacts.files()

    dry = collect_garbage(place.uri)
    assert found(dry) == [("deleted run", deleted)]
    assert (dry.files, dry.bytes, dry.dry_run, dry.items[0].deleted) == (2, 12, True, False)
    assert place.artifacts.files() == before

    report = collect_garbage(place.uri, delete=True)
    assert [item.deleted for item in report.items] == [True]
    assert (report.files, report.bytes, report.complete) == (2, 12, True)
    left = place.artifacts.files()
    assert len(left) == 2
    assert all(kept in path for path in left)
    assert collect_garbage(place.uri).items == []

    # The run itself is there, and stock MLflow can restore it.
    client = stock(place)
    client.restore_run(deleted)
    assert client.get_run(deleted).data.params == {"lr": "0.1"}
    assert stock_files(client, deleted) == []
    assert stock_files(client, kept) == ["model/weights.txt", "notes.txt"]


def test_purged_runs_are_gone_for_good_and_mlflow_gc_has_nothing_left_to_do(place):
    tracker = started(place)
    kept, deleted = logged(tracker), logged(tracker)
    tracker.delete_run(deleted)
    before = rows_of(place.uri, kept)

    dry = collect_garbage(place.uri, purge=True)
    assert [item.run_goes for item in dry.items] == [True]
    assert rows_of(place.uri, deleted)

    report = collect_garbage(place.uri, purge=True, delete=True)
    assert [item.deleted for item in report.items] == [True]
    assert rows_of(place.uri, deleted) == {}
    assert rows_of(place.uri, kept) == before
    assert "permanently deleted" not in mlflow_gc(place.uri)
    client = stock(place)
    with pytest.raises(Exception, match="not found"):
        client.get_run(deleted)
    assert client.get_run(kept).data.metrics == {"loss": 0.5}
    assert collect_garbage(place.uri, purge=True).items == []


@pytest.mark.parametrize("version", ["2.8.1", "2.22.4", "3.1.4", "3.17.2", "3.18.0"])
@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_runs_are_purged_from_every_schema(request, tmp_path, uri, database, version, monkeypatch):
    monkeypatch.setenv("HEIMDALL_MLFLOW_VERSION", version)
    if database == "postgres":
        uri = request.getfixturevalue("postgres_uri")
    place = SimpleNamespace(uri=uri, artifacts=Disk(tmp_path / "artifacts"))
    tracker = started(place)
    with tracker.run() as run:
        tracker.log_metrics({"loss": float("nan")}, step=1)
        tracker.log_params({"lr": 1})
        tracker.log_input(Dataset(name="set", digest="d", source="file:///set"), context="training")
    other = logged(tracker)
    tracker.flush()
    tracker.delete_run(run.run_id)
    assert rows_of(uri, run.run_id).keys() >= {"runs.run_uuid", "inputs.destination_id", "metrics.run_uuid"}
    report = collect_garbage(uri, purge=True, delete=True)
    assert [item.error for item in report.items] == [None]
    assert rows_of(uri, run.run_id) == {}
    assert rows_of(uri, other)


def test_a_run_that_was_deleted_lately_is_not_due(disk):
    tracker = started(disk)
    run_id = logged(tracker)
    tracker.delete_run(run_id)
    assert collect_garbage(disk.uri, older_than="1h").items == []
    with sqlite3.connect(disk.uri.removeprefix("sqlite:///")) as connection:
        long_ago = int((time.time() - 31 * 86_400) * 1000)
        connection.execute("UPDATE runs SET deleted_time = ? WHERE run_uuid = ?", (long_ago, run_id))
    report = collect_garbage(disk.uri, older_than=timedelta(days=30))
    assert found(report) == [("deleted run", run_id)]
    assert report.items[0].reason == "its run was deleted 31 d ago"
    assert collect_garbage(disk.uri, older_than="32d").items == []


def test_a_place_that_cannot_be_looked_into_is_told_and_the_others_are_collected(disk, s3_bucket):
    client = stock(disk)
    tracker = started(disk)
    deleted = logged(tracker)
    tracker.delete_run(deleted)
    lost = client.create_experiment("lost", artifact_location="s3://no-such-bucket/x")
    client.delete_run(client.create_run(lost).info.run_id)
    client.create_experiment("unknown", artifact_location="dbfs:/x")
    report = collect_garbage(disk.uri, delete=True)
    assert found(report) == [("deleted run", deleted)]
    assert report.items[0].deleted
    assert not report.complete
    failures = dict(report.failures)
    assert any("no-such-bucket" in place for place in failures)
    assert "dbfs" in failures["dbfs:/x"]


@pytest.mark.parametrize("wrong", ["key", "port"])
def test_what_a_failure_says_has_no_key_and_no_signature(uri, s3_server, s3_bucket, monkeypatch, wrong):
    MLflowTracker(uri, artifact_uri=f"s3://{s3_bucket}/x", experiment_name=EXPERIMENT)
    if wrong == "key":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not+the/key")
    else:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    report = collect_garbage(uri, experiments=[EXPERIMENT])
    said = str(report)
    assert report.failures
    assert "SignatureDoesNotMatch" in said if wrong == "key" else "cannot be reached" in said
    for secret in ("X-Amz", "not+the/key", s3.SECRET_KEY, s3.ACCESS_KEY):
        assert secret not in said


def test_behind_a_server_artifacts_go_and_rows_do_not(mlflow_server, tmp_path):
    uri = mlflow_server.url
    tracker = MLflowTracker(uri, experiment_name="behind a server")
    kept, deleted, registered = logged(tracker), logged(tracker), logged(tracker)
    tracker.register_model("served", f"runs:/{registered}/model")
    for run_id in (deleted, registered):
        tracker.delete_run(run_id)
    only = {"experiments": ["behind a server"]}
    with pytest.raises(ConfigurationError, match="removes no run for good"):
        collect_garbage(uri, purge=True, delete=True, **only)
    aged = collect_garbage(uri, older_than="1s", **only)
    assert aged.items == []
    assert "does not say when" in spared(aged)[deleted]

    report = collect_garbage(uri, delete=True, **only)
    assert found(report) == [("deleted run", deleted)]
    assert (report.files, report.bytes, report.complete) == (2, 12, True)
    assert spared(report) == {registered: 'version 1 of model "served" points to it'}
    client = stock(SimpleNamespace(uri=uri))
    assert stock_files(client, deleted) == []
    assert stock_files(client, kept) == ["model/weights.txt", "notes.txt"]
    assert client.get_run(deleted).info.lifecycle_stage == "deleted"
    report = collect_garbage(uri, keep_newer_than=0, what="runs", delete=True, **only)
    assert found(report) == [("unkept run", kept)]
    assert client.get_run(kept).info.lifecycle_stage == "deleted"
    # The database behind it removes them for good, and the server their artifacts.
    alone = collect_garbage(mlflow_server.uri, purge=True, delete=True, **only)
    assert alone.items == []
    assert "only the tracking server" in alone.failures[0][1]
    both = collect_garbage(mlflow_server.uri, artifact_server=uri, purge=True, delete=True, **only)
    assert sorted((item.run_id, item.files, item.deleted) for item in both.items) == sorted(
        [(deleted, 0, True), (kept, 2, True)]
    )
    assert rows_of(mlflow_server.uri, kept) == {}
    with pytest.raises(ConfigurationError, match="address of a tracking server"):
        collect_garbage(uri, artifact_server=mlflow_server.uri)


def test_a_logged_model_holds_behind_a_server_as_well(mlflow_server):
    uri = mlflow_server.url
    tracker = MLflowTracker(uri, experiment_name="logged behind a server")
    run_id = logged(tracker)
    client = stock(SimpleNamespace(uri=uri))
    experiment = client.get_experiment_by_name("logged behind a server")
    model = client.create_logged_model(experiment.experiment_id, "net", source_run_id=run_id)
    with sqlite3.connect(mlflow_server.db) as connection:
        place = f"{client.get_run(run_id).info.artifact_uri}/model"
        connection.execute(
            "UPDATE logged_models SET artifact_location = ? WHERE model_id = ?", (place, model.model_id)
        )
    tracker.delete_run(run_id)
    report = collect_garbage(uri, experiments=["logged behind a server"], delete=True)
    assert (report.items, spared(report)) == ([], {run_id: f"logged model {model.model_id} points to it"})
