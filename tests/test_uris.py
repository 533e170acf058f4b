"""Runs go where a URI or a setting says, to databases of all kinds; no secret gets into a message."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from heimdall_tracking import (
    ConfigurationError,
    InvalidInputError,
    MLflowTracker,
    Settings,
    initialize_mlflow,
)
from support.helpers import wait_until

VARIABLES = {
    "mlflow_tracking_uri": "MLFLOW_TRACKING_URI",
    "mlflow_artifact_uri": "MLFLOW_ARTIFACT_URI",
    "mlflow_backend_store_uri": "MLFLOW_BACKEND_STORE_URI",
    "mlflow_registry_uri": "MLFLOW_REGISTRY_URI",
    "mlflow_s3_endpoint_url": "MLFLOW_S3_ENDPOINT_URL",
    "mlflow_s3_access_key_id": "AWS_ACCESS_KEY_ID",
    "mlflow_s3_secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "mlflow_experiment_name": "MLFLOW_EXPERIMENT_NAME",
    "mlflow_run_name_prefix": "MLFLOW_RUN_NAME_PREFIX",
}


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("uri", "advice"),
    [
        ("", "sqlite:///"),
        ("mlflow.db", "sqlite:///mlflow.db"),
        ("ftp://host/mlflow", "sqlite:///"),
        ("file:///mlruns", "migrate-filestore"),
        ("file:mlruns", "migrate-filestore"),
        ("postgresql://host", "user:password@host:5432/database"),
        ("postgresql://host:port/mlflow", "0 to 65535"),
        ("mysql+pymysql://host/mlflow", "mlflow server"),
        ("mssql://host/mlflow", "mlflow server"),
        ("databricks", "sqlite:///"),
        ("http://", "https://host:5000"),
        ("https://host?x=1", "no options"),
        ("sqlite://", "sqlite:///"),
        ("sqlite:///", "sqlite:///"),
        ("sqlite:///:memory:", "sqlite:///"),
        ("sqlite:///mlflow.db?mode=ro", "options"),
        ("sqlite:///folder", "folder"),
        ("sqlite:///missing/mlflow.db", "missing"),
        ("sqlite:///text", "database"),
        ("sqlite:///other.db", "MLflow"),
    ],
)
def test_what_runs_cannot_be_written_to_is_refused_with_what_to_do(working_folder, uri, advice):
    (working_folder / "folder").mkdir()
    (working_folder / "text").write_text("This file is no database. " * 100)
    with contextlib.closing(sqlite3.connect("other.db")) as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")
    before = {path: path.stat().st_size for path in working_folder.iterdir()}
    with pytest.raises(ConfigurationError, match=advice):
        MLflowTracker(uri)
    assert {path: path.stat().st_size for path in working_folder.iterdir()} == before


@pytest.mark.parametrize("argument", ["tracking_uri", "backend_store_uri", "registry_uri"])
@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:hush@127.0.0.1:1/db",
        "postgresql://me:h@sh/hush@127.0.0.1:1/db",
        "postgresql://me:why?hush@127.0.0.1:1/db",
        "postgresql://127.0.0.1:1/db?user=me&password=hush",
        "http://me:hush@127.0.0.1:1",
        "http://me:hush?@127.0.0.1:1/path@more",
        "unknown://me:hush@host",
    ],
)
def test_a_password_is_in_no_message(argument, uri, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    arguments = {"tracking_uri": "sqlite:///mlflow.db"} | {argument: uri}
    shown = ""
    try:
        tracker = MLflowTracker(**arguments)
        shown = f"{tracker!r} {tracker.status()!r}"
    except ConfigurationError as error:
        shown = f"{error} {error!r}"
    told = " ".join(record.getMessage() for record in caplog.records)
    assert shown
    assert "hush" not in f"{shown} {told}"


def test_secrets_are_in_no_message_and_no_attribute_of_the_tracker():
    tracker = MLflowTracker("sqlite:///mlflow.db", s3_access_key_id="hush", s3_secret_access_key="hush")
    shown = [getattr(tracker, name) for name in dir(tracker) if not callable(getattr(tracker, name))]
    assert "hush" not in f"{tracker!r} {tracker} {shown}"


def test_an_artifact_uri_is_refused_without_its_password():
    with pytest.raises(ConfigurationError) as caught:
        MLflowTracker("sqlite:///mlflow.db", "s3://key:hush@bucket")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("form", ["sqlite:///{}", "sqlite+pysqlite:///{}", "SQLite:///{}"])
def test_a_database_that_does_not_exist_is_created(working_folder, form):
    path = working_folder / "with blank.db"
    tracker = MLflowTracker(form.format(path))
    assert path.is_file()
    assert tracker.tracking_uri == tracker.registry_uri == f"sqlite:///{path}"


@pytest.mark.parametrize("leaves", [False, True])
def test_a_relative_uri_is_relative_to_the_folder_of_the_start(working_folder, monkeypatch, leaves):
    if leaves:
        (working_folder / "job").mkdir()
        monkeypatch.chdir("job")
    monkeypatch.delenv("HEIMDALL_DIR")
    tracker = MLflowTracker(
        "sqlite:///here.db", "./files", "sqlite:///here.db", "sqlite:///models.db", mirrors=["sqlite:///m.db"]
    )
    with tracker.run() as run:
        tracker.log_text("text", "a.txt")
    tracker.flush()
    assert tracker.registry_uri == f"sqlite:///{working_folder}/models.db"
    wait_until((working_folder / "m.db").is_file, "the mirror is there")
    assert list(working_folder.glob(f"files/{run.run_id}/artifacts/a.txt"))
    assert tracker.status()["journal"].startswith(f"{working_folder}/.heimdall/")
    assert sorted(path.name for path in working_folder.rglob("*.db")) == ["here.db", "m.db", "models.db"]
    assert list(working_folder.glob("job/*")) == []


def test_the_mirrors_of_the_variable_are_below_the_folder_of_the_start(working_folder, monkeypatch):
    (working_folder / "job").mkdir()
    monkeypatch.chdir("job")
    monkeypatch.setenv("MLFLOW_MIRROR_URIS", "sqlite:///one.db, sqlite:///two.db")
    tracker = MLflowTracker("sqlite:///here.db")
    with tracker.run():
        pass
    for name in ("one.db", "two.db"):
        wait_until((working_folder / name).is_file, f"{name} is there")


def test_artifacts_without_a_place_are_below_the_folder_of_the_start(
    working_folder, monkeypatch, postgres_uri
):
    (working_folder / "job").mkdir()
    monkeypatch.chdir("job")
    tracker = MLflowTracker(postgres_uri, experiment_name="of a job")
    with tracker.run() as run:
        pass
    assert tracker.get_run(run.run_id).artifact_uri.startswith(f"{working_folder}/mlruns/")


@pytest.mark.parametrize("uri", ["file:my%20files", "./my files", "my files"])
def test_a_relative_folder_of_artifacts_has_two_spellings(working_folder, uri):
    tracker = MLflowTracker("sqlite:///mlflow.db", uri)
    with tracker.run() as run:
        pass
    place = tracker.get_run(run.run_id).artifact_uri
    folder = f"file://{quote(str(working_folder))}/my%20files" if ":" in uri else f"{working_folder}/my files"
    assert place == f"{folder}/{run.run_id}/artifacts"


def test_jobs_of_a_sweep_share_one_database(run_script, tmp_path):
    done = run_script(
        """
        import os
        from pathlib import Path
        from heimdall_tracking import initialize_mlflow, settings

        top = Path.cwd()
        for name in ("job-0", "job-1"):
            (top / "multirun" / name).mkdir(parents=True)
            os.chdir(top / "multirun" / name)
            with initialize_mlflow(settings).run(name):
                pass
        print(os.environ["MLFLOW_TRACKING_URI"])
        """
    )
    assert done.out == f"sqlite:///{tmp_path}/mlflow.db\n", done.err
    assert list(tmp_path.rglob("mlflow.db")) == [tmp_path / "mlflow.db"]


def test_a_relative_uri_stays_where_it_was(working_folder, monkeypatch):
    (working_folder / "sub").mkdir()
    tracker = MLflowTracker("sqlite:///sub/../mlflow.db")
    monkeypatch.chdir("sub")
    assert tracker.tracking_uri == f"sqlite:///{working_folder}/mlflow.db"
    assert (working_folder / "mlflow.db").is_file()
    run_id = tracker.start_run()
    assert tracker.get_run_info(run_id)["run_id"] == run_id


def test_another_backend_store_is_refused_with_both_uris():
    with pytest.raises(ConfigurationError, match=r"b\.db.*a\.db"):
        MLflowTracker("sqlite:///a.db", backend_store_uri="sqlite:///b.db")


def test_the_same_backend_store_may_be_spelled_differently(working_folder):
    tracker = MLflowTracker(
        "sqlite:///mlflow.db", backend_store_uri=f"sqlite+pysqlite:///{working_folder}/mlflow.db"
    )
    assert tracker.backend_store_uri == tracker.tracking_uri


def test_a_database_of_stock_mlflow_is_used_as_it_is(stock_database, working_folder):
    from mlflow import MlflowClient

    shutil.copy(stock_database, "mlflow.db")
    tracker = MLflowTracker("sqlite:///mlflow.db", experiment_name="theirs")
    with tracker.run("ours") as run:
        tracker.log_metrics({"a": 1.0}, step=1)
        tracker.log_params({"b": 2})
    tracker.flush()
    client = MlflowClient(tracker.tracking_uri, tracker.tracking_uri)
    found = client.get_run(run.run_id)
    assert found.info.experiment_id == client.get_experiment_by_name("theirs").experiment_id
    assert found.info.artifact_uri == f"/theirs/{run.run_id}/artifacts"
    assert (found.data.metrics, found.data.params) == ({"a": 1.0}, {"b": "2"})


def test_a_database_without_a_column_that_is_needed_is_refused(stock_database, working_folder):
    shutil.copy(stock_database, "mlflow.db")
    with contextlib.closing(sqlite3.connect("mlflow.db")) as connection:
        connection.execute("ALTER TABLE latest_metrics RENAME COLUMN is_nan TO old")
    with pytest.raises(ConfigurationError, match="mlflow db upgrade"):
        MLflowTracker("sqlite:///mlflow.db")


def test_a_deleted_experiment_is_refused_by_name(tracker, client, uri):
    client.delete_experiment(tracker.experiment_id)
    with pytest.raises(ConfigurationError, match=r"tests.*deleted"):
        MLflowTracker(uri, experiment_name="tests")


@pytest.mark.parametrize("name", ["", "  ", "x" * 257])
def test_an_experiment_name_against_the_rules_is_refused(name):
    with pytest.raises(InvalidInputError, match="experiment name"):
        MLflowTracker("sqlite:///mlflow.db", experiment_name=name)


def test_a_journal_that_cannot_be_kept_is_told_by_the_variable(working_folder, monkeypatch, caplog):
    (working_folder / "file").touch()
    monkeypatch.setenv("HEIMDALL_DIR", str(working_folder / "file" / "journal"))
    tracker = MLflowTracker("sqlite:///mlflow.db")
    with tracker.run() as run:
        tracker.log_metrics({"loss": 1})
    assert tracker.get_run(run.run_id).metrics == {"loss": 1.0}
    assert tracker.status().degraded
    [told] = [record.getMessage() for record in caplog.records]
    assert "HEIMDALL_DIR" in told


def test_the_journal_is_by_default_in_the_working_folder(working_folder, monkeypatch):
    monkeypatch.delenv("HEIMDALL_DIR")
    tracker = MLflowTracker("sqlite:///mlflow.db")
    assert tracker.status()["journal"].startswith(f"{working_folder}/.heimdall/journal/")


def test_the_constructor_takes_its_arguments_by_position(working_folder):
    tracker = MLflowTracker(
        "sqlite:///a.db", "files", "sqlite:///a.db", "sqlite:///b.db", "http://s3", "id", "key", "e"
    )
    assert tracker.tracking_uri == tracker.backend_store_uri == f"sqlite:///{working_folder}/a.db"
    assert tracker.registry_uri == f"sqlite:///{working_folder}/b.db"
    assert (tracker.artifact_uri, tracker.experiment_name) == ("files", "e")


def test_settings_have_defaults_that_work_without_a_server(working_folder):
    tracker = initialize_mlflow(Settings())
    assert tracker.tracking_uri == f"sqlite:///{working_folder}/mlflow.db"
    assert tracker.experiment_name == "heimdall-localization"
    assert (tracker.artifact_uri, tracker.active_run_id) == (None, None)


@pytest.mark.parametrize(("attribute", "variable"), VARIABLES.items())
def test_settings_come_from_the_environment_when_they_are_made(monkeypatch, attribute, variable):
    monkeypatch.setenv(variable, "given")
    assert getattr(Settings(), attribute) == "given"


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"])
def test_an_empty_variable_counts_as_none(monkeypatch, variable):
    default = vars(Settings())
    monkeypatch.setenv(variable, "")
    assert vars(Settings()) == default


@pytest.mark.parametrize(
    "attribute", sorted(set(VARIABLES) - {"mlflow_experiment_name", "mlflow_run_name_prefix"})
)
def test_the_repr_of_settings_has_no_secrets(attribute):
    is_uri = attribute.endswith(("_uri", "_url"))
    settings = Settings(**{attribute: "postgresql://me:hush@host/db" if is_uri else "hush"})
    assert "hush" not in repr(settings)


def test_any_object_with_the_attributes_serves_as_settings(working_folder):
    attributes = dict.fromkeys(VARIABLES) | {
        "mlflow_tracking_uri": "sqlite:///mine.db",
        "mlflow_experiment_name": "mine",
        "mlflow_artifact_uri": str(working_folder / "files"),
    }
    tracker = initialize_mlflow(SimpleNamespace(**attributes))
    assert tracker.experiment_name == "mine"
    assert (working_folder / "mine.db").is_file()
