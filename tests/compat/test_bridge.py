"""Each release of MLflow gets the bridge."""

from __future__ import annotations

from pathlib import Path

import heimdall_tracking
from heimdall_tracking import MLflowTracker

SCRIPT = """
import json, sys
from heimdall_tracking import MLflowTracker
tracker = MLflowTracker(sys.argv[1], artifact_uri=sys.argv[2], experiment_name="bridged", bridge=True)
import mlflow
seen = {}
with tracker.run("outer") as run:
    seen["active"] = mlflow.active_run().info.run_id == run.run_id
    mlflow.log_metric("a", 1.0, step=2)
    mlflow.log_params({"p": 1})
    mlflow.set_tag("t", "x")
    with mlflow.start_run(nested=True) as child:
        seen["child"] = tracker.active_run_id == child.info.run_id
        mlflow.log_metric("c", 1.0)
    seen["back"] = mlflow.active_run().info.run_id == run.run_id
seen["none"] = mlflow.active_run() is None
with mlflow.start_run(run_name="theirs") as theirs:
    seen["theirs"] = tracker.active_run_id == theirs.info.run_id
    mlflow.log_text("text", "notes.txt")
seen["experiment"] = theirs.info.experiment_id == tracker.experiment_id
client = mlflow.MlflowClient()
seen["store"] = type(client._tracking_client.store).__name__ == "HeimdallTrackingStore"
seen["read"] = client.get_run(theirs.info.run_id).info.status == "FINISHED"
client.create_registered_model("m")
seen["model"] = client.get_registered_model("m").name == "m"
print(json.dumps([seen, run.run_id, child.info.run_id, theirs.info.run_id]))
"""


def test_mlflow_writes_through_the_journal_and_reads_after_it(stock, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    stock.make_database(uri)
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "heimdall_tracking").symlink_to(Path(heimdall_tracking.__file__).parent)
    seen, outer, child, theirs = stock.run(
        SCRIPT, uri, tmp_path / "artifacts", PYTHONPATH=str(ours), HEIMDALL_DIR=str(tmp_path / "heimdall")
    )
    assert [name for name, is_right in seen.items() if not is_right] == []
    tracker = MLflowTracker(uri, experiment_name="bridged")
    found = tracker.get_run(outer)
    assert (found.metrics, found.params, found.tags["t"]) == ({"a": 1.0}, {"p": "1"}, "x")
    assert tracker.get_run(child).tags["mlflow.parentRunId"] == outer
    assert tracker.load_text(theirs, "notes.txt") == "text"
    assert {run.status for run in tracker.search_runs()} == {"FINISHED"}
