"""Collecting garbage: what must stay."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from heimdall_tracking import (
    ConfigurationError,
    MLflowTracker,
    collect_garbage,
)
from support.garbage import (
    EXPERIMENT,
    Disk,
    found,
    location_of,
    logged,
    rows_of,
    spared,
    started,
    stock,
)
from support.helpers import PATIENCE_S


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


def test_the_password_of_a_location_is_not_shown(disk):
    tracker = started(disk)
    run_id = logged(tracker)
    tracker.delete_run(run_id)
    with closing(sqlite3.connect(disk.uri.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE experiments SET artifact_location = 'ftp://me:hush@host/m'")
        database.execute("UPDATE runs SET artifact_uri = 'ftp://me:hush@host/m/' || run_uuid || '/artifacts'")
        database.commit()
    report = collect_garbage(disk.uri)
    assert f"ftp://***@host/m/{run_id}/artifacts" in str(report)
    assert "hush" not in str(report) + repr(report)
