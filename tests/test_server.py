"""A stock `mlflow server` on our database shows runs as its own."""

from __future__ import annotations

import json
import math
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from heimdall_tracking import MLflowTracker, PermissionDeniedError
from support.helpers import PATIENCE_S, contents, free_port
from support.stock import server_command, serving

pytestmark = pytest.mark.server

HISTORY = [(step, math.sin(step)) for step in range(1500)]


@pytest.fixture(scope="module")
def served(mlflow_server, tmp_path_factory):
    """A run with a bit of everything, logged while the server runs."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "files" / "deep").mkdir(parents=True)
    (folder / "files" / "weights.ckpt").write_bytes(bytes(range(256)) * 100)
    (folder / "files" / "deep" / "with blank.txt").write_text("ü")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEIMDALL_DIR", str(folder / "heimdall"))
        tracker = MLflowTracker(mlflow_server.uri, experiment_name="served")
    with tracker.run("everything", {"mine": "yes"}) as run:
        tracker.log_params({"lr": 0.001, "layers": [64, 128], "blank name": "ü"})
        for step, value in HISTORY:
            tracker.log_metrics({"val/loss": value}, step=step)
        tracker.log_metrics({"nan": math.nan, "huge": math.inf})
        tracker.log_artifacts_dir(folder / "files", "files")
    version = tracker.register_model("served", f"runs:/{run.run_id}/files", "good", {"a": "b"})
    tracker.transition_model_stage("served", version, "Production")
    return SimpleNamespace(
        run_id=run.run_id, experiment_id=tracker.experiment_id, files=contents(folder / "files")
    )


@pytest.fixture
def rest(mlflow_server, served):
    """The stock client on the server."""
    from mlflow import MlflowClient

    return MlflowClient(mlflow_server.url, mlflow_server.url)


@pytest.fixture
def get(mlflow_server, served):
    """GET without any client."""

    def get(path: str, /, **query: str) -> bytes:
        url = f"{mlflow_server.url}/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url) as answer:
            return answer.read()

    return get


def test_the_client_reads_the_experiment(rest, served):
    experiment = rest.get_experiment_by_name("served")
    assert (experiment.experiment_id, experiment.lifecycle_stage) == (served.experiment_id, "active")


def test_the_client_reads_the_run(rest, served):
    run = rest.get_run(served.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "everything")
    assert run.info.start_time <= run.info.end_time
    assert run.data.params == {"lr": "0.001", "layers": "[64, 128]", "blank name": "ü"}
    assert run.data.tags["mine"] == "yes"
    assert run.data.metrics["val/loss"] == HISTORY[-1][1]
    assert math.isnan(run.data.metrics["nan"])


def test_the_client_reads_every_point(rest, served):
    history = rest.get_metric_history(served.run_id, "val/loss")
    assert [(point.step, point.value) for point in history] == HISTORY


def test_the_client_finds_the_run_by_its_metric(rest, served):
    found = rest.search_runs([served.experiment_id], "metrics.`val/loss` < 1 and params.lr = '0.001'")
    assert [run.info.run_id for run in found] == [served.run_id]


def test_the_client_downloads_the_artifacts(rest, served, tmp_path):
    rest.download_artifacts(served.run_id, "files", str(tmp_path))
    assert contents(tmp_path / "files") == served.files


def test_the_client_reads_the_model_version(rest, served):
    version = rest.get_model_version("served", "1")
    assert (version.run_id, version.description, version.tags) == (served.run_id, "good", {"a": "b"})
    assert (version.status, version.current_stage) == ("READY", "Production")
    assert [found.name for found in rest.search_registered_models()] == ["served"]


def test_plain_http_reads_the_run_and_a_history(get, served):
    run = json.loads(get("api/2.0/mlflow/runs/get", run_id=served.run_id))["run"]
    assert run["info"]["status"] == "FINISHED"
    assert {"key": "lr", "value": "0.001"} in run["data"]["params"]
    query = {"run_id": served.run_id, "metric_key": "val/loss"}
    points = json.loads(get("api/2.0/mlflow/metrics/get-history", **query))["metrics"]
    assert [(int(point.get("step", 0)), point["value"]) for point in points] == HISTORY


def test_plain_http_lists_and_downloads_the_artifacts(get, served):
    query = {"run_id": served.run_id, "path": "files"}
    files = json.loads(get("api/2.0/mlflow/artifacts/list", **query))["files"]
    assert [file["path"] for file in files] == ["files/deep", "files/weights.ckpt"]
    downloaded = get("get-artifact", run_id=served.run_id, path="files/weights.ckpt")
    assert downloaded == served.files["weights.ckpt"]


def test_a_run_is_seen_while_it_runs(rest, mlflow_server):
    tracker = MLflowTracker(mlflow_server.uri, experiment_name="served")
    with tracker.run("live") as run:
        tracker.log_metrics({"loss": 0.5}, step=3)
        tracker.flush()
        seen = rest.get_run(run.run_id)
    assert (seen.info.status, seen.data.metrics) == ("RUNNING", {"loss": 0.5})


def test_what_the_server_writes_into_our_run_is_read_back(rest, mlflow_server, served):
    rest.set_tag(served.run_id, "by server", "yes")
    tracker = MLflowTracker(mlflow_server.uri, experiment_name="served")
    assert tracker.get_run_info(served.run_id)["tags"]["by server"] == "yes"


def test_the_server_has_nothing_to_complain_about(get, mlflow_server):
    get("api/2.0/mlflow/experiments/get-by-name", experiment_name="served")
    log = mlflow_server.log.read_text()
    assert "GET /health" in log
    complaints = [line for line in log.splitlines() if "ERROR" in line or "Traceback" in line]
    assert complaints == []
    assert "schema" not in log
    assert "upgrade" not in log.lower()


@pytest.fixture(scope="module")
def guarded_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with MLflow's own users and a path before everything."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder / 'auth.db'}\n"
        "admin_username = admin\nadmin_password = a p@ss:w/rd%%\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    port = free_port()
    address = f"127.0.0.1:{port}/team"
    options = ["--app-name", "basic-auth", "--static-prefix", "/team"]
    command = server_command(port, f"sqlite:///{folder / 'mlflow.db'}", *options)
    variables = {"MLFLOW_AUTH_CONFIG_PATH": folder / "auth.ini", "MLFLOW_FLASK_SERVER_SECRET_KEY": "key"}
    with serving(command, f"http://{address}", folder / "server.log", **variables):
        yield address


def test_a_server_with_users_and_a_path_takes_a_run_with_artifacts(guarded_server, monkeypatch):
    from mlflow import MlflowClient

    url = f"http://admin:{urllib.parse.quote('a p@ss:w/rd%', safe='')}@{guarded_server}"
    # A run that starts without the server has another id there.
    monkeypatch.setenv("HEIMDALL_CONNECT_TIMEOUT", str(PATIENCE_S))
    tracker = MLflowTracker(url, experiment_name="guarded")
    with tracker.run("by its user") as run:
        tracker.log_metric("m", 1.0)
        tracker.log_text("hello", "a.txt")
    tracker.flush()
    assert tracker.status()["parked"] == 0
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a p@ss:w/rd%")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{guarded_server}")
    client = MlflowClient(f"http://{guarded_server}")
    assert client.get_run(run.run_id).data.metrics == {"m": 1.0}
    assert Path(client.download_artifacts(run.run_id, "a.txt")).read_text() == "hello"


def test_a_server_with_users_refuses_a_wrong_password(guarded_server):
    with pytest.raises(PermissionDeniedError) as refused:
        MLflowTracker(f"http://admin:hush@{guarded_server}")
    assert "hush" not in str(refused.value)


def test_models_are_registered_elsewhere_than_the_runs(mlflow_server, uri):
    from mlflow import MlflowClient

    tracker = MLflowTracker(mlflow_server.url, registry_uri=uri, experiment_name="served")
    with tracker.run() as run:
        tracker.log_text("weights", "model/weights.txt")
    version = tracker.register_model("elsewhere", f"runs:/{run.run_id}/model")
    tracker.transition_model_stage("elsewhere", version, "Staging")
    found = MlflowClient(mlflow_server.url, uri).get_model_version("elsewhere", version)
    assert (found.run_id, found.current_stage) == (run.run_id, "Staging")
