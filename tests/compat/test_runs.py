"""A release's own client and server read what we write into its database, and the other way round."""

from __future__ import annotations

import json
import math
import sys
import urllib.request

import pytest

from heimdall_tracking import Dataset, MLflowTracker

from .environments import driver

READ = """
    import json, sys
    from mlflow import MlflowClient

    client = MlflowClient(sys.argv[1], sys.argv[1])
    run = client.get_run(sys.argv[2])
    history = client.get_metric_history(sys.argv[2], "val/loss")
    (input,) = run.inputs.dataset_inputs
    version = client.get_model_version("powder", "1")
    found = client.search_runs([run.info.experiment_id], order_by=["start_time"])
    print(json.dumps({
        "status": run.info.status, "name": run.info.run_name, "params": run.data.params,
        "metrics": {key: str(value) for key, value in run.data.metrics.items()},
        "tag": run.data.tags["mine"], "run name": run.data.tags["mlflow.runName"],
        "history": sorted([point.step, point.timestamp, str(point.value)] for point in history),
        "dataset": [input.dataset.name, input.dataset.digest, input.tags[0].value],
        "artifacts": [file.path for file in client.list_artifacts(sys.argv[2])],
        "version": [version.current_stage, version.description, version.tags],
        "runs": [run.info.run_name for run in found],
    }))
"""
WRITE = """
    import json, math, sys
    from mlflow import MlflowClient

    client = MlflowClient(sys.argv[1], sys.argv[1])
    experiment_id = client.create_experiment("theirs", artifact_location=sys.argv[2])
    run_id = client.create_run(experiment_id, run_name="theirs", tags={"t": "v"}).info.run_id
    client.log_param(run_id, "p", "1")
    for step, value in [(0, 0.5), (1, math.nan), (2, 0.25)]:
        client.log_metric(run_id, "val/loss", value, timestamp=5 + step, step=step)
    client.set_terminated(run_id)
    print(json.dumps(run_id))
"""


@pytest.fixture(params=["ours", "theirs"])
def database(request: pytest.FixtureRequest, stock, empty_database: str, tmp_path, monkeypatch) -> str:
    """A database of the release, whose tables we have made or it has."""
    monkeypatch.setenv("HEIMDALL_MLFLOW_VERSION", stock.version)
    monkeypatch.chdir(tmp_path)
    if request.param == "theirs":
        stock.make_database(empty_database)
    return empty_database


def test_the_releases_client_reads_all_of_our_run(stock, database, tmp_path):
    tracker = MLflowTracker(database, str(tmp_path / "artifacts"), experiment_name="shared")
    with tracker.run("the run", {"mine": "x" * 9000}) as run:
        tracker.log_params({"lr": 0.1, "long": "y" * 9000})
        for step, value in [(0, 1.5), (1, math.inf), (-2, 0.25)]:
            tracker.log_metric("val/loss", value, step=step, timestamp=7)
        tracker.log_input(Dataset("s3://b/x", name="powder", digest="abc"), context="training")
        tracker.log_text("grüße", "a.txt")
    tracker.register_model("powder", f"runs:/{run.run_id}/a.txt", "good", {"a": "b"})
    tracker.transition_model_stage("powder", 1, "Staging")

    found = stock.run(READ, driver(database), run.run_id)

    tag, long = found.pop("tag"), found["params"].pop("long")
    assert set(tag) == {"x"}
    assert len(tag) in (5000, 8000)
    assert set(long) == {"y"}
    assert len(long) in (500, 6000)
    largest = str(sys.float_info.max)
    assert found == {
        "status": "FINISHED",
        "name": "the run",
        "run name": "the run",
        "params": {"lr": "0.1"},
        "metrics": {"val/loss": largest},
        "history": [[-2, 7, "0.25"], [0, 7, "1.5"], [1, 7, largest]],
        "dataset": ["powder", "abc", "training"],
        "artifacts": ["a.txt"],
        "version": ["Staging", "good", {"a": "b"}],
        "runs": ["the run"],
    }


def test_we_read_what_the_releases_client_has_written(stock, database, tmp_path):
    run_id = stock.run(WRITE, driver(database), tmp_path / "theirs")
    tracker = MLflowTracker(database, experiment_name="theirs")
    run = tracker.get_run(run_id)
    assert (run.run_name, run.status, run.params, run.metrics) == (
        "theirs",
        "FINISHED",
        {"p": "1"},
        {"val/loss": 0.25},
    )
    assert run.tags["t"] == "v"
    assert [str(point.value) for point in tracker.get_metric_history(run_id, "val/loss")] == [
        "0.5",
        "nan",
        "0.25",
    ]
    assert tracker.get_best_run("val/loss")["run_id"] == run_id
    tracker.resume(run_id)
    tracker.log_metric("val/loss", 0.125, step=3)
    tracker.end_run()
    assert tracker.get_run(run_id).metrics == {"val/loss": 0.125}


def test_the_releases_server_serves_our_database_and_takes_runs_of_ours(
    stock, empty_database, tmp_path, monkeypatch
):
    monkeypatch.setenv("HEIMDALL_MLFLOW_VERSION", stock.version)
    monkeypatch.chdir(tmp_path)
    direct = MLflowTracker(empty_database, experiment_name="shared")
    with direct.run("direct") as first:
        direct.log_metric("m", 1.0)
    direct.flush()
    with stock.server(empty_database, tmp_path) as url:
        with urllib.request.urlopen(f"{url}/api/2.0/mlflow/runs/get?run_id={first.run_id}") as answer:
            assert json.load(answer)["run"]["data"]["metrics"][0]["value"] == 1.0
        served = MLflowTracker(url, experiment_name="shared")
        with served.run("served") as second:
            served.log_params({"p": 1})
            served.log_metric("m", 2.0)
            served.log_input(Dataset("s3://b/x", name="d", digest="1"))
        assert served.get_run(second.run_id).metrics == {"m": 2.0}
        assert [run.run_name for run in served.search_runs(order_by=["metrics.m DESC"])] == [
            "served",
            "direct",
        ]
    assert [run.run_name for run in direct.search_runs(order_by=["metrics.m ASC"])] == ["direct", "served"]
    assert direct.get_run(second.run_id).params == {"p": "1"}
