"""Garbage of each release's databases and behind its servers."""

from __future__ import annotations

from pathlib import Path

from heimdall_tracking import Dataset, MLflowTracker, collect_garbage

from .environments import driver

READ = """
    import json, sys
    from mlflow import MlflowClient

    client = MlflowClient(sys.argv[1], sys.argv[1])
    experiment = client.get_experiment_by_name("collected")
    runs = client.search_runs([experiment.experiment_id], run_view_type=3)
    ids = [run.info.run_id for run in runs]
    print(json.dumps({run_id: [file.path for file in client.list_artifacts(run_id)] for run_id in ids}))
"""


def logged(tracker: MLflowTracker) -> str:
    with tracker.run() as run:
        tracker.log_params({"lr": 0.1})
        tracker.log_metrics({"loss": 0.5}, step=1)
        tracker.log_input(Dataset("s3://b/x", name="d", digest="1"), context="training")
        tracker.log_text("weights", "model/weights.txt")
    tracker.flush()
    return run.run_id


def test_garbage_goes_behind_the_releases_server_and_from_its_database(
    stock, empty_database, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    stock.make_database(empty_database)
    with stock.server(empty_database, tmp_path) as url:
        tracker = MLflowTracker(url, experiment_name="collected")
        kept, deleted, registered = logged(tracker), logged(tracker), logged(tracker)
        tracker.register_model("m", f"runs:/{registered}/model")
        for run_id in (deleted, registered):
            tracker.delete_run(run_id)
        report = collect_garbage(url, experiments=["collected"], delete=True)
        assert [(item.run_id, item.files, item.deleted) for item in report.items] == [(deleted, 1, True)]
        assert [item.run_id for item in report.spared] == [registered]
        assert report.complete
    report = collect_garbage(empty_database, experiments=["collected"], purge=True, delete=True)
    assert [(item.run_id, item.error) for item in report.items] == [(deleted, None)]
    assert [item.run_id for item in report.spared] == [registered]
    assert stock.run(READ, driver(empty_database)) == {kept: ["model"], registered: ["model"]}
