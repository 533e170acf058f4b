"""Collecting garbage: what goes, what must stay, and that stock MLflow agrees afterwards."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest

from heimdall_tracking import (
    ConfigurationError,
    Dataset,
    InvalidInputError,
    MLflowTracker,
    NotFoundError,
    collect_garbage,
    lifecycle,
)
from support import s3
from support.helpers import PATIENCE_S, clean_environment, free_port
from support.s3_proxy import S3Proxy

EXPERIMENT = "collected"


class Disk:
    """Artifacts in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def files(self) -> list[str]:
        return sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())

    def put(self, path: str, content: bytes = b"x") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)


class Bucket:
    """Artifacts in an S3 store, below a prefix that wants to be escaped."""

    def __init__(self, server, bucket: str) -> None:
        self.server, self.bucket, self.prefix = server, bucket, "pre fix/é+&"
        self.uri = f"s3://{bucket}/{self.prefix}"

    def files(self) -> list[str]:
        keys = self.server.keys(self.bucket, self.prefix)
        return [key.removeprefix(self.prefix + "/") for key in keys]

    def put(self, path: str, content: bytes = b"x") -> None:
        self.server.client().put_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}", Body=content)


@pytest.fixture(params=["sqlite-disk", "postgres-disk", "sqlite-s3", "postgres-s3"])
def place(request, tmp_path: Path, uri: str) -> SimpleNamespace:
    """A store of runs and a store of artifacts."""
    runs, artifacts = request.param.split("-")
    if runs == "postgres":
        uri = request.getfixturevalue("postgres_uri")
    if artifacts == "s3":
        bucket = request.getfixturevalue("s3_bucket")
        return SimpleNamespace(uri=uri, artifacts=Bucket(request.getfixturevalue("s3_server"), bucket))
    return SimpleNamespace(uri=uri, artifacts=Disk(tmp_path / "artifacts"))


@pytest.fixture
def disk(tmp_path: Path, uri: str) -> SimpleNamespace:
    """SQLite and a local folder, where it does not matter what the stores are."""
    return SimpleNamespace(uri=uri, artifacts=Disk(tmp_path / "artifacts"))


def started(place: SimpleNamespace, experiment: str = EXPERIMENT) -> MLflowTracker:
    return MLflowTracker(place.uri, artifact_uri=place.artifacts.uri, experiment_name=experiment)


def logged(tracker: MLflowTracker, **metrics: float) -> str:
    """A run with everything that a run can have."""
    with tracker.run() as run:
        tracker.log_params({"lr": 0.1})
        tracker.log_metrics(metrics or {"loss": 0.5}, step=1)
        tracker.log_text("weights", "model/weights.txt")
        tracker.log_text("notes", "notes.txt")
    tracker.flush()
    return run.run_id


def stock(place: SimpleNamespace):
    from mlflow import MlflowClient

    return MlflowClient(place.uri, place.uri)


def stock_files(client, run_id: str, folder: str | None = None) -> list[str]:
    """Files of a run as stock MLflow lists them; SeaweedFS shows folders for a while that have none."""
    files = []
    for item in client.list_artifacts(run_id, folder):
        files += stock_files(client, run_id, item.path) if item.is_dir else [item.path]
    return files


def location_of(place: SimpleNamespace, experiment: str = EXPERIMENT) -> str:
    return stock(place).get_experiment_by_name(experiment).artifact_location


def found(report: lifecycle.GarbageReport) -> list[tuple[str, str | None]]:
    return [(item.kind, item.run_id) for item in report.items]


def spared(report: lifecycle.GarbageReport) -> dict[str | None, str]:
    return {item.run_id: item.reason for item in report.spared}


def rows_of(uri: str, run_id: str) -> dict[str, int]:
    """How many rows of each table name a run."""
    if uri.startswith("sqlite"):
        connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        tables = [
            (table, column)
            for (table,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall()
            for (_, column, *_) in connection.execute(f"PRAGMA table_info({table})").fetchall()
        ]
        mark = "?"
    else:
        connection = psycopg.connect(uri)
        tables = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
            "AND data_type IN ('character varying', 'text')"
        ).fetchall()
        mark = "%s"
    with connection:
        counts = {}
        for table, column in tables:
            query = f'SELECT count(*) FROM {table} WHERE "{column}" = {mark}'
            (count,) = connection.execute(query, (run_id,)).fetchone()
            if count:
                counts[f"{table}.{column}"] = count
    connection.close()
    return counts


def mlflow_gc(uri: str) -> str:
    """What `mlflow gc` says; it must end well."""
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--tracking-uri", uri]
    # The variables of the artifact store are those of the test.
    s3 = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "MLFLOW_S3"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean_environment(**s3))
    assert done.returncode == 0, done.stderr
    return done.stdout


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


@pytest.mark.parametrize(
    "source",
    [
        "{artifacts}/model",
        "{artifacts}",
        "{artifacts}/",
        "{location}",
        "{location}/{run_id}",
        "runs:/{run_id}/model",
        "somewhere:/else/{run_id}/artifacts",
    ],
)
@pytest.mark.parametrize("rule", ["deleted", "unkept", "runs"])
def test_what_a_registered_version_points_to_stays(disk, source, rule):
    check_that_a_version_holds(disk, source, rule)


def check_that_a_version_holds(place: SimpleNamespace, source: str, rule: str) -> None:
    tracker = started(place)
    run_id = logged(tracker)
    location = location_of(place)
    client = stock(place)
    client.create_registered_model("m")
    names = {"artifacts": client.get_run(run_id).info.artifact_uri, "location": location, "run_id": run_id}
    client.create_model_version("m", source.format(**names))
    before = place.artifacts.files()
    if rule == "deleted":
        client.delete_run(run_id)
        report = collect_garbage(place.uri, purge=True, delete=True)
    else:
        what = "runs" if rule == "runs" else "artifacts"
        report = collect_garbage(
            place.uri, experiments=[EXPERIMENT], keep_newer_than=0, what=what, delete=True
        )
    assert report.items == []
    assert spared(report) == {run_id: 'version 1 of model "m" points to it'}
    assert place.artifacts.files() == before
    assert client.get_run(run_id).info.lifecycle_stage == ("deleted" if rule == "deleted" else "active")


@pytest.mark.parametrize("rule", ["deleted", "unkept"])
def test_what_a_registered_version_points_to_stays_on_every_store(place, rule):
    check_that_a_version_holds(place, "{artifacts}/model", rule)


def test_the_run_of_a_version_and_its_storage_location_stay(disk):
    tracker = started(disk)
    by_run, by_location, free = logged(tracker), logged(tracker), logged(tracker)
    client = stock(disk)
    client.create_registered_model("m")
    client.create_model_version("m", "/elsewhere", run_id=by_run)
    client.create_model_version("m", "/elsewhere")
    uri = client.get_run(by_location).info.artifact_uri
    with sqlite3.connect(disk.uri.removeprefix("sqlite:///")) as connection:
        connection.execute(
            "UPDATE model_versions SET storage_location = ? WHERE version = 2", (f"{uri}/model",)
        )
    for run_id in (by_run, by_location, free):
        client.delete_run(run_id)
    report = collect_garbage(disk.uri, delete=True)
    assert found(report) == [("deleted run", free)]
    assert spared(report).keys() == {by_run, by_location}


def test_versions_of_another_registry_count_where_it_is_named(disk, tmp_path):
    registry = f"sqlite:///{tmp_path}/registry.db"
    tracker = MLflowTracker(
        disk.uri,
        artifact_uri=disk.artifacts.uri,
        registry_uri=registry,
        experiment_name=EXPERIMENT,
        # Else the environment names the registry from here on.
        set_environment=False,
    )
    run_id = logged(tracker)
    tracker.register_model("m", f"runs:/{run_id}/model")
    tracker.delete_run(run_id)
    assert collect_garbage(disk.uri, registry_uri=registry).items == []
    assert found(collect_garbage(disk.uri)) == [("deleted run", run_id)]


def test_a_deleted_version_points_to_nothing(disk):
    tracker = started(disk)
    run_id = logged(tracker)
    client = stock(disk)
    tracker.register_model("m", f"runs:/{run_id}/model")
    client.delete_model_version("m", "1")
    client.delete_run(run_id)
    assert found(collect_garbage(disk.uri)) == [("deleted run", run_id)]


def test_a_logged_model_of_mlflow_3_stays_when_its_run_goes(disk):
    tracker = started(disk)
    run_id = logged(tracker)
    client = stock(disk)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    model = client.create_logged_model(experiment.experiment_id, "net", source_run_id=run_id)
    path = model.artifact_location.removeprefix(disk.artifacts.uri).lstrip("/")
    assert path.startswith(("models/", f"{experiment.experiment_id}/models/"))
    disk.artifacts.put(f"{path}/MLmodel")
    client.log_metric(run_id, "accuracy", 0.9, model_id=model.model_id)
    assert "logged_model_metrics.run_id" in rows_of(disk.uri, run_id)
    client.delete_run(run_id)
    report = collect_garbage(disk.uri, purge=True, orphans=True, delete=True)
    assert found(report) == [("deleted run", run_id)]
    assert rows_of(disk.uri, run_id) == {"logged_models.source_run_id": 1}
    assert client.get_logged_model(model.model_id).name == "net"
    assert disk.artifacts.files() == [f"{path}/MLmodel"]
    # One whose files lie in the run's own folder holds the run.
    inside = logged(tracker)
    with sqlite3.connect(disk.uri.removeprefix("sqlite:///")) as connection:
        uri = client.get_run(inside).info.artifact_uri
        connection.execute("UPDATE logged_models SET artifact_location = ?", (f"{uri}/model",))
    client.delete_run(inside)
    report = collect_garbage(disk.uri, purge=True, delete=True)
    assert spared(report) == {inside: f"logged model {model.model_id} points to it"}


def test_nothing_outside_of_the_experiments_location_goes(disk, tmp_path):
    tracker = started(disk)
    elsewhere, led = logged(tracker), logged(tracker)
    outside = Disk(tmp_path / "outside")
    outside.put("artifacts/precious")
    # A link that leads out of the location.
    folder = Path(stock(disk).get_run(led).info.artifact_uri).parent
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "outside")
    with sqlite3.connect(disk.uri.removeprefix("sqlite:///")) as connection:
        connection.execute(
            "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?",
            (f"{tmp_path}/outside/artifacts", elsewhere),
        )
    for run_id in (elsewhere, led):
        tracker.delete_run(run_id)
    report = collect_garbage(disk.uri, purge=True, delete=True)
    assert report.items == []
    assert "is not the run's own folder" in spared(report)[elsewhere]
    assert "a link leads out" in spared(report)[led]
    assert outside.files() == ["artifacts/precious"]


def test_what_a_link_among_the_artifacts_leads_to_stays(disk, tmp_path):
    tracker = started(disk)
    run_id = logged(tracker)
    outside = Disk(tmp_path / "outside")
    outside.put("precious")
    (Path(stock(disk).get_run(run_id).info.artifact_uri) / "link").symlink_to(outside.root)
    tracker.delete_run(run_id)
    assert collect_garbage(disk.uri, delete=True).complete
    assert (disk.artifacts.files(), outside.files()) == ([], ["precious"])


def test_a_run_of_a_living_process_stays_until_it_has_ended(disk, start_script):
    tracker = started(disk)
    process = start_script(
        """
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], artifact_uri=sys.argv[2], experiment_name=sys.argv[3])
        run_id = tracker.start_run()
        tracker.log_text("a", "a.txt")
        tracker.flush()
        print(run_id, flush=True)
        sys.stdin.readline()
        tracker.end_run()
        tracker.flush()
        print("ended", flush=True)
        sys.stdin.read()
        """,
        disk.uri,
        disk.artifacts.uri,
        EXPERIMENT,
    )
    run_id = process.stdout.readline().strip()
    tracker.delete_run(run_id)
    report = collect_garbage(disk.uri, purge=True, delete=True)
    assert report.items == []
    assert spared(report) == {run_id: "it is in the journal of a process that lives"}
    tracker.restore_run(run_id)
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "ended\n"
    tracker.delete_run(run_id)
    assert found(collect_garbage(disk.uri)) == [("deleted run", run_id)]
    process.communicate(timeout=PATIENCE_S)


def test_a_run_that_waits_in_a_journal_stays(disk, start_script):
    process = start_script(
        """
        import os, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name=sys.argv[2])
        run_id = tracker.start_run()
        tracker.flush()
        print(run_id, flush=True)
        sys.stdin.readline()
        tracker.log_text("a", "a.txt")
        os._exit(0)
        """,
        disk.uri,
        EXPERIMENT,
    )
    run_id = process.stdout.readline().strip()
    _, errors = process.communicate("go on\n", timeout=PATIENCE_S)
    assert process.returncode == 0, errors
    stock(disk).delete_run(run_id)
    report = collect_garbage(disk.uri, delete=True)
    assert report.items == []
    assert "heimdall sync" in spared(report)[run_id]


@pytest.mark.parametrize("damage", ["manifest", "records", "folder"])
def test_nothing_goes_while_a_journal_cannot_be_read(disk, start_script, tmp_path, damage, heimdall):
    process = start_script(
        """
        import os, sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1], experiment_name=sys.argv[2])
        run_id = tracker.start_run()
        tracker.log_params({"a": 1})
        tracker.flush()
        print(run_id, tracker.status().journal, flush=True)
        sys.stdin.readline()
        tracker.log_text("a", "a.txt")
        os._exit(0)
        """,
        disk.uri,
        EXPERIMENT,
    )
    run_id, journal = process.stdout.readline().split()
    process.communicate("go on\n", timeout=PATIENCE_S)
    stock(disk).delete_run(run_id)
    folder = Path(journal)
    if damage == "manifest":
        (folder / "manifest.json").write_text('{"pid": 1')
    elif damage == "records":
        segment = max(folder.glob("*.segment"))
        content = bytearray(segment.read_bytes())
        # In the last record, which has not been delivered.
        content[len(content.rstrip(b"\0")) - 10] ^= 0xFF
        segment.write_bytes(content)
    else:
        journals, folder = folder.parent, folder.parent.parent
        journals.rename(folder / "elsewhere")
        journals.write_text("no folder")
    before = disk.artifacts.files()
    with pytest.raises(ConfigurationError, match="it may have records of any run") as told:
        collect_garbage(disk.uri, delete=True)
    assert str(folder) in str(told.value)
    assert disk.artifacts.files() == before


def test_a_folder_of_journals_that_is_not_there_is_refused(disk, tmp_path):
    started(disk)
    with pytest.raises(ConfigurationError, match="there is no such folder"):
        collect_garbage(disk.uri, heimdall_dir=tmp_path / "typo")


def test_unfinished_uploads_below_a_prefix_are_found_on_a_store_that_lists_whole_buckets(
    s3_tracker, s3_server, s3_bucket, uri, monkeypatch
):
    with S3Proxy(s3_server.port) as proxy:
        place = SimpleNamespace(uri=uri, artifacts=Bucket(s3_server, s3_bucket))
        run_id = logged(started(place))
        artifacts = stock(place).get_run(run_id).info.artifact_uri
        prefix = artifacts.removeprefix(f"s3://{s3_bucket}/")
        keys = [f"{prefix}/big.bin", "beside/big.bin"]
        for key in keys:
            s3_server.client().create_multipart_upload(Bucket=s3_bucket, Key=key)
        # As MinIO answers: a prefix is a whole key.
        proxy.strike(
            "answer",
            lambda request: "uploads" in request.query and bool(request.query.get("prefix")),
            body="<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
        )
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", proxy.url)
        report = collect_garbage(uri, uploads_older_than=0, delete=True)
    assert report.complete
    assert found(report) == [("unfinished upload", run_id)]
    left = s3_server.client().list_multipart_uploads(Bucket=s3_bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == keys[1:]


def test_unfinished_uploads_to_s3_are_given_up_when_they_are_old(uri, s3_server, s3_bucket):
    place = SimpleNamespace(uri=uri, artifacts=Bucket(s3_server, s3_bucket))
    tracker = started(place)
    run_id = logged(tracker)
    artifacts = stock(place).get_run(run_id).info.artifact_uri
    prefix = artifacts.removeprefix(f"s3://{s3_bucket}/")
    boto = s3_server.client()
    keys = [f"{prefix}/model/a {number} é&+.bin" for number in range(3)] + ["beside/b.bin"]
    for key in keys:
        upload = boto.create_multipart_upload(Bucket=s3_bucket, Key=key)["UploadId"]
        for part, size in ((1, 5 << 20), (2, 100)):
            boto.upload_part(Bucket=s3_bucket, Key=key, UploadId=upload, PartNumber=part, Body=b"p" * size)
    before = place.artifacts.files()

    young = collect_garbage(uri, delete=True)
    assert young.items == []
    assert [item.kind for item in young.spared] == ["unfinished upload"] * 3
    assert all(item.reason.startswith("it was begun ") for item in young.spared)

    dry = collect_garbage(uri, uploads_older_than=0)
    assert found(dry) == [("unfinished upload", run_id)] * 3
    assert {item.uri for item in dry.items} == {f"s3://{s3_bucket}/{key}" for key in keys[:3]}
    assert dry.bytes == 3 * ((5 << 20) + 100)

    report = collect_garbage(uri, uploads_older_than=0, delete=True)
    assert report.complete
    assert len(report.items) == 3
    left = boto.list_multipart_uploads(Bucket=s3_bucket)["Uploads"]
    assert [upload["Key"] for upload in left] == ["beside/b.bin"]
    assert place.artifacts.files() == before


def test_an_upload_of_an_active_run_is_never_given_up(uri, s3_server, s3_bucket):
    place = SimpleNamespace(uri=uri, artifacts=Bucket(s3_server, s3_bucket))
    tracker = started(place)
    run_id = tracker.start_run()
    tracker.log_text("a", "a.txt")
    tracker.flush()
    key = stock(place).get_run(run_id).info.artifact_uri.removeprefix(f"s3://{s3_bucket}/") + "/big.bin"
    s3_server.client().create_multipart_upload(Bucket=s3_bucket, Key=key)
    report = collect_garbage(uri, uploads_older_than=0, delete=True)
    assert (report.items, spared(report)) == ([], {run_id: "it is in the journal of a process that lives"})
    tracker.end_run()
    tracker.flush()
    assert found(collect_garbage(uri, uploads_older_than=0)) == [("unfinished upload", run_id)]


def test_many_unfinished_uploads_are_all_found(uri, s3_server, s3_bucket):
    place = SimpleNamespace(uri=uri, artifacts=Bucket(s3_server, s3_bucket))
    started(place)
    prefix = location_of(place).removeprefix(f"s3://{s3_bucket}/")
    boto = s3_server.client()
    # More than a page, which is a thousand.
    with ThreadPoolExecutor(8) as threads:
        for number in range(1_005):
            key = f"{prefix}/{'a' * 32}/artifacts/{number}"
            threads.submit(boto.create_multipart_upload, Bucket=s3_bucket, Key=key)
    report = collect_garbage(uri, uploads_older_than=0)
    assert len({item.uri for item in report.items}) == 1_005


def test_half_files_in_local_folders_go_when_they_are_old(disk):
    tracker = started(disk)
    run_id = logged(tracker)
    folder = Path(stock(disk).get_run(run_id).info.artifact_uri)
    old, young = folder / "model/.heimdall-0badcafe.part", folder / ".heimdall-12345678.part"
    for part in (old, young):
        part.write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86_400
    os.utime(old, (two_days_ago, two_days_ago))
    report = collect_garbage(disk.uri, delete=True)
    assert [(item.kind, item.uri, item.bytes) for item in report.items] == [
        ("unfinished upload", str(old), 4)
    ]
    assert (old.exists(), young.exists()) == (False, True)
    assert [item.path for item in stock(disk).list_artifacts(run_id, "model")] == ["model/weights.txt"]


def test_folders_of_no_run_go_when_they_are_asked_for(place):
    tracker = started(place)
    run_id = logged(tracker)
    base = location_of(place).removeprefix(place.artifacts.uri).strip("/")
    base = f"{base}/" if base else ""
    orphan, old_store = "0" * 32, "1" * 32
    place.artifacts.put(f"{base}{orphan}/artifacts/model/a", b"12345")
    # A run of MLflow's file store, a model of MLflow 3, a trace, and what somebody has put there.
    stays = [
        f"{old_store}/artifacts/a",
        f"{old_store}/meta.yaml",
        f"models/m-{orphan}/artifacts/MLmodel",
        f"traces/tr-{orphan}/artifacts/traces.json",
        f"{'2' * 32}/other/a",
        f"{'A' * 32}/artifacts/a",
        "notes.txt",
    ]
    for path in stays:
        place.artifacts.put(base + path)
    before = place.artifacts.files()

    report = collect_garbage(place.uri, delete=True)
    assert report.items == []
    assert spared(report).keys() == {orphan}
    assert "1 files, 5 bytes" in spared(report)[orphan]
    assert place.artifacts.files() == before

    report = collect_garbage(place.uri, orphans=True, delete=True)
    assert found(report) == [("orphan", orphan)]
    assert (report.files, report.bytes) == (1, 5)
    assert set(before) - set(place.artifacts.files()) == {f"{base}{orphan}/artifacts/model/a"}
    assert stock_files(stock(place), run_id) == ["model/weights.txt", "notes.txt"]


def test_an_orphan_that_a_version_points_to_stays(disk):
    tracker = started(disk)
    orphan = "0" * 32
    location = location_of(disk)
    base = location.removeprefix(disk.artifacts.uri).strip("/")
    disk.artifacts.put(f"{base}/{orphan}/artifacts/model/a" if base else f"{orphan}/artifacts/model/a")
    client = stock(disk)
    client.create_registered_model("m")
    client.create_model_version("m", f"file://{location}/{orphan}/artifacts/model")
    report = collect_garbage(disk.uri, orphans=True, delete=True)
    assert (report.items, list(spared(report))) == ([], [orphan])
    tracker.end_run()


def test_runs_of_another_experiment_in_the_same_location_are_no_orphans(disk, tmp_path):
    client = stock(disk)
    shared = str(tmp_path / "shared")
    started(disk)
    for name in ("one", "two"):
        client.create_experiment(name, artifact_location=shared)
    other = client.create_run(client.get_experiment_by_name("two").experiment_id).info.run_id
    client.log_text(other, "a", "a.txt")
    client.delete_run(other)
    for experiments in (["one"], ["one", "two"]):
        report = collect_garbage(disk.uri, experiments=experiments, orphans=True)
        assert "orphan" not in [item.kind for item in report.items]


def test_runs_that_no_rule_keeps_lose_their_artifacts(place):
    tracker = started(place)
    worst, best, second = (logged(tracker, **{"val/loss": loss}) for loss in (0.9, 0.1, 0.2))
    without = logged(tracker)
    nan = logged(tracker, **{"val/loss": float("nan")})
    registered = logged(tracker, **{"val/loss": 5.0})
    tracker.register_model("m", f"runs:/{registered}/model")
    active = tracker.start_run()
    tracker.flush()
    rules = {"experiments": [EXPERIMENT], "keep_best": 2, "metric": "val/loss"}
    dry = collect_garbage(place.uri, **rules)
    reasons = {item.run_id: item.reason for item in dry.items}
    assert reasons.keys() == {worst, without, nan}
    assert reasons[worst] == "val/loss 0.9 is not among the 2 best"
    assert reasons[without] == "it has no val/loss"
    report = collect_garbage(place.uri, **rules, delete=True)
    assert report.complete
    assert spared(report).keys() == {registered}
    assert {path.split("/artifacts/")[0].split("/")[-1] for path in place.artifacts.files()} == {
        best,
        second,
        registered,
    }
    client = stock(place)
    assert client.get_run(worst).info.lifecycle_stage == "active"
    assert client.get_run(worst).data.metrics == {"val/loss": 0.9}
    assert client.get_run(active).info.status == "RUNNING"
    tracker.end_run()


def test_the_largest_are_the_best_where_that_is_said(disk):
    tracker = started(disk)
    low, high = (logged(tracker, accuracy=value) for value in (0.1, 0.9))
    report = collect_garbage(
        disk.uri, experiments=[EXPERIMENT], keep_best=1, metric="accuracy", maximize=True
    )
    assert found(report) == [("unkept run", low)]
    report = collect_garbage(disk.uri, experiments=[EXPERIMENT], keep_best=1, metric="accuracy")
    assert found(report) == [("unkept run", high)]


def test_all_but_the_registered_go_where_only_those_are_kept(disk, heimdall):
    tracker = started(disk)
    kept, goes = (logged(tracker) for _ in range(2))
    tracker.register_model("net", f"runs:/{kept}/model")
    done = heimdall("gc", "--uri", disk.uri, "--experiment", EXPERIMENT, "--keep-registered", "--json")
    assert done.returncode == 0, done.stderr
    assert [item["run_id"] for item in json.loads(done.stdout)["items"]] == [goes]
    report = collect_garbage(disk.uri, experiments=[EXPERIMENT], keep_registered=True, delete=True)
    assert found(report) == [("unkept run", goes)]
    assert list(spared(report)) == [kept]
    assert stock_files(stock(disk), kept) != []
    assert stock_files(stock(disk), goes) == []
    with pytest.raises(ConfigurationError, match="experiment"):
        collect_garbage(disk.uri, keep_registered=True)


def test_runs_can_go_instead_of_artifacts_and_are_restored(disk):
    tracker = started(disk)
    old, new = logged(tracker), logged(tracker)
    with sqlite3.connect(disk.uri.removeprefix("sqlite:///")) as connection:
        long_ago = int((time.time() - 91 * 86_400) * 1000)
        connection.execute("UPDATE runs SET end_time = ? WHERE run_uuid = ?", (long_ago, old))
    before = disk.artifacts.files()
    report = collect_garbage(
        disk.uri, experiments=[EXPERIMENT], keep_newer_than="90d", what="runs", delete=True
    )
    assert found(report) == [("unkept run", old)]
    assert report.items[0].reason == "it ended 91 d ago"
    client = stock(disk)
    stages = {run_id: client.get_run(run_id).info.lifecycle_stage for run_id in (old, new)}
    assert stages == {old: "deleted", new: "active"}
    assert disk.artifacts.files() == before
    client.restore_run(old)
    assert client.get_run(old).info.lifecycle_stage == "active"


def test_either_rule_keeps_a_run(disk):
    tracker = started(disk)
    runs = [logged(tracker, loss=loss) for loss in (0.1, 0.2, 0.3)]
    with sqlite3.connect(disk.uri.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE runs SET end_time = 1000 WHERE run_uuid IN (?, ?)", (runs[0], runs[1]))
    report = collect_garbage(
        disk.uri, experiments=[EXPERIMENT], keep_best=1, metric="loss", keep_newer_than="1d"
    )
    assert found(report) == [("unkept run", runs[1])]


def test_only_the_named_experiments_are_collected(disk):
    trackers = [started(disk, name) for name in ("one", "two")]
    runs = [logged(tracker) for tracker in trackers]
    for tracker, run_id in zip(trackers, runs, strict=True):
        tracker.delete_run(run_id)
    assert found(collect_garbage(disk.uri, experiments=["two"])) == [("deleted run", runs[1])]
    # Those of a deleted experiment as well.
    client = stock(disk)
    client.delete_experiment(client.get_experiment_by_name("one").experiment_id)
    assert {run_id for _, run_id in found(collect_garbage(disk.uri))} == set(runs)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"keep_newer_than": 0}, ConfigurationError, "name the experiments"),
        ({"keep_best": 1, "experiments": [EXPERIMENT]}, InvalidInputError, "come together"),
        ({"metric": "loss", "experiments": [EXPERIMENT]}, InvalidInputError, "come together"),
        ({"keep_best": 0, "metric": "loss", "experiments": [EXPERIMENT]}, InvalidInputError, "from 1 on"),
        ({"keep_best": 1, "metric": "los", "experiments": [EXPERIMENT]}, InvalidInputError, "no run of"),
        ({"what": "all"}, InvalidInputError, "artifacts or runs"),
        ({"older_than": "soon"}, InvalidInputError, "write 30d"),
        ({"older_than": ""}, InvalidInputError, "write 30d"),
        ({"older_than": -1}, InvalidInputError, "older_than"),
        ({"uploads_older_than": float("nan")}, InvalidInputError, "uploads_older_than"),
        ({"experiments": ["none such"]}, NotFoundError, "none such"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_goes(disk, arguments, error, says):
    tracker = started(disk)
    run_id = logged(tracker)
    deleted = logged(tracker)
    tracker.delete_run(deleted)
    before = disk.artifacts.files()
    with pytest.raises(error, match=says):
        collect_garbage(disk.uri, delete=True, purge=True, **arguments)
    assert disk.artifacts.files() == before
    assert stock(disk).get_run(run_id).info.lifecycle_stage == "active"


def test_a_collection_makes_no_database(tmp_path):
    with pytest.raises(ConfigurationError, match="no such database"):
        collect_garbage(f"sqlite:///{tmp_path}/typo.db")
    assert not (tmp_path / "typo.db").exists()


@pytest.mark.parametrize(
    ("age", "expected"),
    [("30d", 2_592_000), ("1.5h", 5_400), ("2d8h5m20s", 201_920), (7, 7), (timedelta(minutes=1), 60)],
)
def test_ages_are_read_as_mlflow_reads_them(age, expected):
    assert lifecycle.seconds(age) == expected


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


@pytest.fixture
def heimdall(tmp_path: Path):
    """Run the command; its exit code, output and errors."""

    def run(*arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("heimdall"), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=tmp_path,
            env=clean_environment(**variables),
        )

    return run


def test_the_command_lists_then_deletes(disk, heimdall):
    tracker = started(disk)
    run_id = logged(tracker)
    tracker.delete_run(run_id)
    before = disk.artifacts.files()
    done = heimdall("gc", MLFLOW_TRACKING_URI=disk.uri)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"would go: deleted run {run_id} of {EXPERIMENT}, 2 files, 12 B\n" in done.stdout
    assert "1 item, 2 files, 12 B would go; nothing was deleted\n--delete deletes it" in done.stdout
    assert disk.artifacts.files() == before
    done = heimdall("gc", "--uri", disk.uri, "--json")
    report = json.loads(done.stdout)
    assert (report["files"], report["bytes"], report["dry_run"]) == (2, 12, True)
    assert report["items"][0]["run_id"] == run_id
    done = heimdall("gc", "--uri", disk.uri, "--delete", "--purge", "--older-than", "0s")
    assert done.returncode == 0
    assert f"gone: deleted run {run_id} of {EXPERIMENT}, 2 files, 12 B, and the run for good" in done.stdout
    assert (disk.artifacts.files(), rows_of(disk.uri, run_id)) == ([], {})


def test_the_command_has_all_rules(disk, heimdall):
    tracker = started(disk)
    worse, better = (logged(tracker, loss=loss) for loss in (0.9, 0.1))
    rules = ["--experiment", EXPERIMENT, "--keep-best", 1, "--metric", "loss", "--keep-registered"]
    done = heimdall("gc", "--uri", disk.uri, *rules, "--what", "runs", "--delete")
    assert done.returncode == 0, done.stderr
    assert f"gone: unkept run {worse}" in done.stdout
    client = stock(disk)
    assert client.get_run(worse).info.lifecycle_stage == "deleted"
    assert client.get_run(better).info.lifecycle_stage == "active"


def test_the_document_names_options_that_exist_and_code_that_runs(disk, heimdall, tmp_path, monkeypatch):
    text = (Path(__file__).parents[1] / "docs" / "lifecycle.md").read_text()
    known = heimdall("gc", "--help").stdout
    assert {option for option in re.findall(r"--[a-z][a-z-]+", text) if option not in known} == set()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    tracker = started(disk, "sweep")
    runs = [logged(tracker, **{"val/loss": loss}) for loss in (0.1, 0.2, 0.3, 0.4)]
    names: dict = {}
    exec(code, names)
    assert found(names["report"]) == [("unkept run", runs[3])]


def test_the_command_says_what_is_wrong(disk, heimdall):
    started(disk)
    stock(disk).create_experiment("unknown", artifact_location="dbfs:/x")
    done = heimdall("gc", "--uri", disk.uri)
    assert done.returncode == 1
    assert "not looked into: dbfs:/x" in done.stdout
    done = heimdall("gc", "--uri", disk.uri, "--experiment", "none such")
    assert (done.returncode, done.stdout) == (1, "")
    assert 'experiment "none such" does not exist' in done.stderr
