"""The location of an experiment stays as it is spelt, and both clients find the same files there."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from heimdall_tracking import MLflowTracker, collect_garbage
from heimdall_tracking.cli import doctor

# How a location is given, and the folder that it names; {} is a folder whose name has a blank.
SPELLINGS = {
    "path": ("{path}/files", "files"),
    "slash at the end": ("{path}/files/", "files"),
    "percent": ("{path}/a%20b", "a b"),
    "file": ("file://{uri}/files", "files"),
    "file, percent": ("file://{uri}/a%20b%2520c/", "a b%20c"),
    "file, blank": ("file://{path}/a b", "a b"),
    "one slash": ("file:{uri}/files", "files"),
    "localhost": ("file://localhost{uri}/files", "files"),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "a place"
    folder.mkdir()
    return folder


def files_in(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


@pytest.fixture(params=SPELLINGS)
def spelt(request: pytest.FixtureRequest, place: Path) -> tuple[str, Path]:
    form, name = SPELLINGS[request.param]
    return form.format(path=place, uri=str(place).replace(" ", "%20")), place / name


def test_a_location_stays_as_it_is_spelt_and_both_clients_read_and_write_there(uri, spelt, tmp_path):
    location, folder = spelt
    tracker = MLflowTracker(uri, location, experiment_name="spelt")
    run_id = tracker.start_run()
    tracker.log_text("ours", "notes/a b.txt")
    tracker.log_table({"n": [1]}, "table.json")
    tracker.end_run()
    with tracker.run(run_id=run_id):
        tracker.log_table({"n": [2]}, "table.json")
    tracker.flush()

    assert tracker.get_experiment("spelt").artifact_location == location
    client = MlflowClient(uri)
    assert client.get_experiment_by_name("spelt").artifact_location == location
    artifact_uri = client.get_run(run_id).info.artifact_uri
    assert artifact_uri == f"{location.rstrip('/')}/{run_id}/artifacts"
    client.log_text(run_id, "theirs", "theirs.txt")
    there = folder / run_id / "artifacts"
    assert files_in(there) == ["notes/a b.txt", "table.json", "theirs.txt"]
    assert {file.split("/")[0] for file in files_in(folder.parent)} == {folder.name}

    listed = [
        [file.path for file in answer]
        for answer in (client.list_artifacts(run_id), tracker.list_artifacts(run_id=run_id))
    ]
    assert listed[0] == listed[1] == ["notes", "table.json", "theirs.txt"]
    assert tracker.load_text(run_id, "theirs.txt") == "theirs"
    assert tracker.load_text(run_id, "notes/a b.txt") == "ours"
    assert json.loads(tracker.load_text(run_id, "table.json"))["data"] == [[1], [2]]
    downloaded = Path(client.download_artifacts(run_id, "notes", str(tmp_path)))
    assert (downloaded / "a b.txt").read_text() == "ours"


def test_models_of_a_location_are_registered_loaded_and_kept_by_gc(uri, spelt, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    location, folder = spelt
    tracker = MLflowTracker(uri, location, experiment_name="spelt")
    with tracker.run() as kept:
        tracker.log_text("weights", "a model/weights.txt")
    with tracker.run() as gone:
        tracker.log_text("garbage", "a.txt")
    run_id = kept.run_id
    version = tracker.register_model("m", f"runs:/{run_id}/a model")
    for source in ("models:/m/1", f"runs:/{run_id}/a model", tracker.resolve_model_uri("models:/m/1")):
        ours = Path(tracker.download_artifacts(source, dst=tmp_path / "ours"))
        (tmp_path / "theirs").mkdir(exist_ok=True)
        theirs = Path(download_artifacts(artifact_uri=source, dst_path=str(tmp_path / "theirs")))
        assert {files_in(ours)[-1], files_in(theirs)[-1]} <= {"weights.txt", "a model/weights.txt"}
        shutil.rmtree(tmp_path / "ours")
    assert version == "1"

    tracker.delete_run(run_id)
    tracker.delete_run(gone.run_id)
    report = collect_garbage(uri, delete=True)
    assert not report.failures
    assert files_in(folder) == [f"{run_id}/artifacts/a model/weights.txt"]


def test_two_spellings_are_one_folder(uri, tmp_path):
    folder = tmp_path / "files"
    MLflowTracker(uri, f"file://{folder}", experiment_name="one")
    again = MLflowTracker(uri, str(folder), experiment_name="one")
    other = MLflowTracker(uri, str(folder), experiment_name="other")
    runs = []
    for tracker in (again, other):
        with tracker.run() as run:
            tracker.log_text("text", "a.txt")
            runs.append(run.run_id)
    assert [tracker.get_run(run).artifact_uri for run in runs] == [
        f"file://{folder}/{runs[0]}/artifacts",
        f"{folder}/{runs[1]}/artifacts",
    ]
    assert files_in(folder) == sorted(f"{run}/artifacts/a.txt" for run in runs)
    assert not collect_garbage(uri, orphans=True, delete=True).items


@pytest.mark.parametrize("given", ["files", "./files/", "file:files"])
def test_a_relative_location_is_made_absolute_as_the_stock_client_makes_it(uri, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("heimdall_tracking._start.FOLDER", str(tmp_path))
    tracker = MLflowTracker(uri, given, experiment_name="ours")
    client = MlflowClient(uri)
    theirs = client.get_experiment(client.create_experiment("theirs", given)).artifact_location
    assert tracker.get_experiment("ours").artifact_location == theirs


def test_a_working_directory_with_a_percent_sign_has_its_own_artifacts(tmp_path, monkeypatch):
    (tmp_path / "50%25").mkdir()
    monkeypatch.chdir(tmp_path / "50%25")
    monkeypatch.setattr("heimdall_tracking._start.FOLDER", str(Path.cwd()))
    tracker = MLflowTracker("sqlite:///mlflow.db", experiment_name="here")
    with tracker.run() as run:
        tracker.log_text("text", "a.txt")
    (file,) = Path("mlruns").rglob("a.txt")
    assert file.read_text() == "text"
    with sqlite3.connect("mlflow.db") as connection:
        (uri,) = connection.execute("SELECT artifact_uri FROM runs").fetchone()
    assert Path(download_artifacts(artifact_uri=f"{uri}/a.txt")).read_text() == "text"
    assert tracker.load_text(run.run_id, "a.txt") == "text"


def test_the_doctor_writes_at_a_location_and_leaves_no_folder(uri, spelt):
    location, folder = spelt
    settings = {"mlflow_tracking_uri": uri, "mlflow_artifact_uri": location}
    keys = ("endpoint_url", "access_key_id", "secret_access_key")
    settings.update({f"mlflow_s3_{key}": None for key in keys})
    check, _ = doctor._artifacts(settings, None, 10.0)
    assert (check.state, "written, read and deleted" in check.found) == ("ok", True)
    assert not folder.exists()
