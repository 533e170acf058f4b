"""Scripts that know nothing of the tracker: MLFLOW_TRACKING_URI=heimdall+… is all that they have."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from heimdall_tracking import MLflowTracker
from support.helpers import PATIENCE_S, free_port, rows, sync
from support.stock import serving

PREFIX = "heimdall+"

STOCK = """
    import os
    import sys
    import mlflow
    from mlflow.tracking._tracking_service.utils import _get_store

    with mlflow.start_run(run_name="stock") as run:
        mlflow.log_param("lr", 0.1)
        for step in range(50):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        mlflow.log_text("text", "notes/first.txt")
    assert [it.path for it in mlflow.MlflowClient().list_artifacts(run.info.run_id)] == ["notes"]
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/notes/first.txt") == "text"
    assert type(_get_store()).__name__ == "HeimdallTrackingStore", type(_get_store())
    # Processes that this one starts have a journal as well; MLflow itself has the plain URI.
    assert os.environ["MLFLOW_TRACKING_URI"].startswith("heimdall+")
    assert not mlflow.get_tracking_uri().startswith("heimdall+")
    print(run.info.run_id)
    """


def test_a_script_with_nothing_but_the_uri_records_by_the_journal(run_script, uri, heimdall_dir):
    done = run_script(STOCK, MLFLOW_TRACKING_URI=PREFIX + uri)
    assert done.code == 0, done.err
    assert (heimdall_dir / "journal").is_dir()
    found = MLflowTracker(uri, experiment_name="Default").get_run(done.out.strip())
    assert (found.run_name, found.status, found.params) == ("stock", "FINISHED", {"lr": "0.1"})
    assert found.metrics == {"loss": 0.02}
    assert found.experiment_id == "0"


def test_set_tracking_uri_does_the_same(run_script, uri, heimdall_dir):
    done = run_script(
        "import mlflow, sys\nmlflow.set_tracking_uri(sys.argv[1])\n" + _dedented(STOCK), PREFIX + uri
    )
    assert done.code == 0, done.err
    assert (heimdall_dir / "journal").is_dir()


def test_a_deleted_default_experiment_keeps_nobody_from_another_one(run_script, uri):
    tracker = MLflowTracker(uri, experiment_name="used")
    tracker.delete_experiment("Default")
    script = """
        import mlflow
        mlflow.set_experiment("used")
        with mlflow.start_run() as run:
            mlflow.log_metric("m", 1.0)
        print(run.info.run_id)
        """
    done = run_script(script, MLFLOW_TRACKING_URI=PREFIX + uri)
    assert done.code == 0, done.err
    assert tracker.get_run(done.out.strip()).metrics == {"m": 1.0}


def test_a_param_of_another_process_is_refused_with_another_value(run_script, uri):
    tracker = MLflowTracker(uri, experiment_name="x", bridge=False)
    with tracker.run() as run:
        tracker.log_param("lr", 0.1)
    again = """
        import sys
        import mlflow
        from mlflow.exceptions import MlflowException
        mlflow.start_run(run_id=sys.argv[1])
        mlflow.log_param("lr", 0.1)
        for call in (lambda: mlflow.log_param("lr", 0.2), lambda: mlflow.log_params({"a": 1, "lr": 0.2})):
            try:
                call()
            except MlflowException as error:
                assert error.error_code == "INVALID_PARAMETER_VALUE", error
                assert "Changing param values is not allowed" in str(error)
            else:
                raise AssertionError("no error")
        """
    done = run_script(again, run.run_id, MLFLOW_TRACKING_URI=PREFIX + uri)
    assert done.code == 0, done.err


def test_a_postgresql_database_does_as_well(run_script, postgres_uri, heimdall_dir):
    done = run_script(STOCK, MLFLOW_TRACKING_URI=PREFIX + postgres_uri)
    assert done.code == 0, done.err
    assert (heimdall_dir / "journal").is_dir()


def test_a_script_runs_while_the_store_is_away(run_script, uri, heimdall_dir):
    script = """
        import mlflow
        mlflow.set_experiment("of the script")
        with mlflow.start_run():
            mlflow.log_metric("m", 1.0)
            mlflow.log_param("p", 1)
        """
    done = run_script(script, MLFLOW_TRACKING_URI=PREFIX + uri, HEIMDALL_MODE="offline")
    assert done.code == 0, done.err
    assert sync(heimdall_dir, HEIMDALL_DIR=heimdall_dir, MLFLOW_TRACKING_URI=PREFIX + uri).returncode == 0
    tracker = MLflowTracker(uri, experiment_name="of the script")
    (run,) = tracker.search_runs()
    assert (run.status, run.metrics, run.params) == ("FINISHED", {"m": 1.0}, {"p": "1"})


@pytest.mark.faults
def test_a_script_that_is_killed_loses_nothing(start_script, uri, heimdall_dir):
    script = """
        import mlflow
        mlflow.start_run()
        for step in range(1000):
            mlflow.log_metric("loss", step, step=step)
        mlflow.log_param("last", 1)
        print("logged", flush=True)
        input()
        """
    process = start_script(script, MLFLOW_TRACKING_URI=PREFIX + uri)
    assert process.stdout.readline() == "logged\n"
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)
    assert sync(heimdall_dir, HEIMDALL_DIR=heimdall_dir, MLFLOW_TRACKING_URI=PREFIX + uri).returncode == 0
    db = Path(uri.removeprefix("sqlite:///"))
    assert rows(db, "SELECT count(*) FROM metrics") == [(1000,)]
    assert rows(db, "SELECT status FROM runs") == [("FAILED",)]
    assert rows(db, "SELECT key FROM params") == [("last",)]


def test_the_import_of_mlflow_makes_nothing(run_script, tmp_path, heimdall_dir):
    script = """
        import sys
        import mlflow
        assert not any(type(finder).__module__.startswith("heimdall") for finder in sys.meta_path)
        """
    done = run_script(script, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path / 'plain.db'}")
    assert done.code == 0, done.err
    assert not heimdall_dir.exists()


MODEL = """
    import mlflow

    class Twice(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return [2 * value for value in model_input]

    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        with open("file.txt", "w") as file:
            file.write("content")
        mlflow.log_artifact("file.txt", "folder")
        client.log_text(run.info.run_id, "text", "of_client.txt")
        info = mlflow.pyfunc.log_model(name="model", python_model=Twice(), registered_model_name="twice")
    assert run.info.artifact_uri.startswith("mlflow-artifacts:"), run.info.artifact_uri
    assert sorted(it.path for it in client.list_artifacts(run.info.run_id)) == ["folder", "of_client.txt"]
    assert mlflow.pyfunc.load_model(info.model_uri).predict([1, 2]) == [2, 4]
    assert mlflow.pyfunc.load_model("models:/twice/1").predict([3]) == [6]
    print(run.info.run_id)
    """


def test_files_and_models_go_to_a_server_that_keeps_its_artifacts(run_script, mlflow_server, heimdall_dir):
    # The experiment of the environment is made by MLflow; its artifacts are at the server.
    done = run_script(
        MODEL, MLFLOW_TRACKING_URI=PREFIX + mlflow_server.url, MLFLOW_EXPERIMENT_NAME="at the server"
    )
    assert done.code == 0, done.err
    assert (heimdall_dir / "journal").is_dir()
    assert rows(mlflow_server.db, "SELECT status FROM runs WHERE run_uuid = ?", done.out.split()[-1]) == [
        ("FINISHED",)
    ]


@pytest.fixture(scope="module")
def bridged_server(request, tmp_path_factory):
    """`mlflow server` with two workers, whose store has our prefix."""
    folder = tmp_path_factory.mktemp("bridged_server")
    port = free_port()
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    if request.param == "postgresql":
        uri = request.getfixturevalue("postgres_server").create_database("bridged_server")
    with pytest.MonkeyPatch.context() as patch:
        # MLflow takes seconds to make its tables.
        patch.setenv("HEIMDALL_DIR", str(folder / "heimdall"))
        # The experiment Default of a PostgreSQL has its artifacts below the working directory.
        patch.chdir(folder)
        MLflowTracker(uri, experiment_name="Default", set_environment=False)
    url = f"http://127.0.0.1:{port}"
    # In a process of its own from the beginning: the entry points are those of its environment.
    command = [sys.executable, "-c", "from mlflow.cli import cli; cli()", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "2", "--backend-store-uri", PREFIX + uri]
    with serving(command, url, folder / "server.log", HEIMDALL_DIR=folder / "heimdall"):
        yield SimpleNamespace(url=url, uri=uri, log=folder / "server.log", journals=folder / "heimdall")


@pytest.mark.server
@pytest.mark.parametrize("bridged_server", ["sqlite", "postgresql"], indirect=True)
def test_a_server_serves_a_store_of_a_prefixed_uri(bridged_server, run_script):
    script = """
        import mlflow
        from mlflow.exceptions import MlflowException
        client = mlflow.MlflowClient()
        for number in range(5):
            with mlflow.start_run() as run:
                mlflow.log_param("number", number)
                mlflow.log_metrics({"a": number, "b": 1.0})
                for again in range(4):
                    # The workers take turns: each reads what the other has written.
                    assert client.get_run(run.info.run_id).data.metrics == {"a": number, "b": 1.0}
                try:
                    mlflow.log_param("number", "other")
                except MlflowException as error:
                    assert error.error_code == "INVALID_PARAMETER_VALUE"
                else:
                    raise AssertionError("no error")
                mlflow.log_text("text", "a.txt")
            assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/a.txt") == "text"
        client.create_registered_model("net")
        client.set_registered_model_tag("net", "k", "v")
        assert client.get_registered_model("net").tags == {"k": "v"}
        assert len(mlflow.search_runs()) == 5
        """
    done = run_script(script, MLFLOW_TRACKING_URI=bridged_server.url)
    assert done.code == 0, done.err + bridged_server.log.read_text()[-3000:]
    found = SqlAlchemyStore(bridged_server.uri, "").search_runs(["0"], "status = 'FINISHED'", 1, 10)
    assert len(found) == 5


def _dedented(script: str) -> str:
    import textwrap

    return textwrap.dedent(script)
