"""Every revision of the schema since that of MLflow 2.8, those between releases as well, takes our runs."""

from __future__ import annotations

import math

from heimdall_tracking import Dataset, MLflowTracker, collect_garbage

from .catalog import catalog, rows
from .environments import CHOSEN, Stock, driver

OLDEST = "acf3f17fdcc7"
LARGEST = "1.7976931348623157e+308"
READ_ALL = """
    import json, sys
    from mlflow import MlflowClient

    client = MlflowClient(sys.argv[1], sys.argv[1])
    found = client.search_runs([client.get_experiment_by_name("walk").experiment_id], max_results=1000)
    print(json.dumps({run.info.run_name: [
        run.info.status, run.data.params, {key: str(value) for key, value in run.data.metrics.items()},
        run.data.tags["of"], [given.dataset.name for given in run.inputs.dataset_inputs],
        [str(point.value) for point in client.get_metric_history(run.info.run_id, "val/loss")],
        client.get_model_version("walked", run.data.params["version"]).tags,
        client.get_model_version_download_uri("copied", run.data.params["version"])
        == client.get_model_version("walked", run.data.params["version"]).source,
    ] for run in found}))
"""


def shape(uri: str) -> dict[str, list]:
    """Return what the catalog says of the tables, without the parts that count rows."""
    found = catalog(uri)
    return {aspect: found[aspect] for aspect in found.keys() - {"experiments", "sequences"}}


def write(tracker: MLflowTracker, revision: str, version: int) -> str:
    with tracker.run(revision, {"of": revision}) as run:
        tracker.log_params({"lr": 0.1, "version": version})
        for step, value in [(0, 1.5), (1, math.nan), (-1, math.inf)]:
            tracker.log_metric("val/loss", value, step=step, timestamp=7)
        tracker.log_metric("acc", 0.5 + version / 1000, step=2**62, timestamp=7)
        tracker.log_input(Dataset("s3://b/x", name="powder", digest="abc"), context="training")
        tracker.log_text("weights", "model/weights.txt")
    registered = tracker.register_model("walked", f"runs:/{run.run_id}/model", "good", {"of": revision})
    assert registered == str(version)
    tracker.transition_model_stage("walked", version, "Staging")
    tracker.set_model_alias("walked", "newest", version)
    tracker.register_model("copied", f"models:/walked/{version}")
    # A renamed model keeps all that it has, and a deleted one leaves nothing that would be in the way.
    tracker.create_registered_model("passing", {"a": "b"}, "for a moment")
    for _ in range(2):
        tracker.register_model("passing", "s3://models/m", tags={"c": "d"})
    tracker.set_model_alias("passing", "champion", 1)
    tracker.delete_model_version("passing", 2)
    tracker.rename_registered_model("passing", "renamed")
    renamed = tracker.get_registered_model("renamed")
    assert (renamed.tags, renamed.aliases) == ({"a": "b"}, {"champion": "1"})
    assert [found.tags for found in renamed.latest_versions] == [{"c": "d"}]
    tracker.delete_registered_model("renamed")
    return run.run_id


def check_what_we_read(tracker: MLflowTracker, run_id: str, revision: str) -> None:
    run = tracker.get_run(run_id)
    assert (run.run_name, run.status, run.tags["of"]) == (revision, "FINISHED", revision)
    assert math.isnan(run.metrics["val/loss"])
    assert [(dataset.name, dataset.digest) for dataset in run.inputs] == [("powder", "abc")]
    history = tracker.get_metric_history(run_id, "val/loss")
    assert [(point.step, str(point.value)) for point in history] == [(-1, LARGEST), (0, "1.5"), (1, "nan")]
    assert tracker.get_best_run("acc", max)["run_id"] == run_id
    found = tracker.search_runs(
        f"tags.of = '{revision}' AND datasets.name = 'powder'", order_by="metrics.acc"
    )
    assert [run.run_id for run in found] == [run_id]
    (version,) = tracker.search_model_versions(f"tags.of = '{revision}' AND name = 'walked'")
    assert (version.run_id, version.current_stage, version.aliases) == (run_id, "Staging", ["newest"])
    assert tracker.get_model_version_by_alias("walked", "newest") == version
    assert tracker.resolve_model_uri("models:/copied/latest") == version.source
    assert [model.name for model in tracker.search_registered_models()] == ["copied", "walked"]


def check_rows(uri: str, run_id: str, revision: str, version: int) -> None:
    of_run = f"run_uuid = '{run_id}'"
    runs = f"SELECT name, source_type, status, lifecycle_stage, deleted_time FROM runs WHERE {of_run}"
    assert rows(uri, runs) == [(revision, "UNKNOWN", "FINISHED", "active", None)]
    points = "SELECT key, value, timestamp, step, is_nan FROM {} WHERE {} ORDER BY key, step"
    assert rows(uri, points.format("metrics", of_run)) == [
        ("acc", 0.5 + version / 1000, 7, 2**62, False),
        ("val/loss", float(LARGEST), 7, -1, False),
        ("val/loss", 1.5, 7, 0, False),
        ("val/loss", 0.0, 7, 1, True),
    ]
    assert rows(uri, points.format("latest_metrics", of_run)) == [
        ("acc", 0.5 + version / 1000, 7, 2**62, False),
        ("val/loss", 0.0, 7, 1, True),
    ]
    params = f"SELECT key, value FROM params WHERE {of_run} ORDER BY key"
    assert rows(uri, params) == [("lr", "0.1"), ("version", str(version))]
    given = f"""
        SELECT d.name, d.digest, t.name, t.value FROM inputs i JOIN datasets d ON d.dataset_uuid = i.source_id
        JOIN input_tags t ON t.input_uuid = i.input_uuid
        WHERE i.source_type = 'DATASET' AND i.destination_type = 'RUN' AND i.destination_id = '{run_id}'
    """
    assert rows(uri, given) == [("powder", "abc", "mlflow.data.context", "training")]
    registered = f"""
        SELECT v.version, v.current_stage, v.status, v.description, t.key, t.value
        FROM model_versions v JOIN model_version_tags t ON t.name = v.name AND t.version = v.version
        WHERE v.run_id = '{run_id}' AND v.name = 'walked'
    """
    assert rows(uri, registered) == [(version, "Staging", "READY", "good", "of", revision)]


def check_what_is_purged(tracker: MLflowTracker, uri: str) -> None:
    with tracker.run() as run:
        tracker.log_params({"p": 1})
        tracker.log_metric("m", 1.0)
        tracker.log_input(Dataset("s3://b/x", name="powder", digest="abc"))
    tracker.flush()
    tracker.delete_run(run.run_id)
    report = collect_garbage(uri, experiments=["walk"], purge=True, delete=True)
    assert [(item.run_id, item.error) for item in report.items] == [(run.run_id, None)]
    for table in ("runs", "metrics", "latest_metrics", "params", "tags"):
        assert rows(uri, f"SELECT count(*) FROM {table} WHERE run_uuid = '{run.run_id}'") == [(0,)]


def test_a_database_of_any_revision_takes_runs_stays_of_it_and_is_upgraded_with_them(
    empty_database, tmp_path, monkeypatch, subtests, request
):
    monkeypatch.chdir(tmp_path)
    stock = Stock(CHOSEN[-1])
    request.addfinalizer(stock.stop)
    written = []
    for version, revision in enumerate(stock.walk(empty_database, OLDEST), start=1):
        with subtests.test(revision=revision):
            before = shape(empty_database)
            assert before["revision"] == [(revision,)]
            tracker = MLflowTracker(empty_database, experiment_name="walk")
            run_id = write(tracker, revision, version)
            check_what_we_read(tracker, run_id, revision)
            assert tracker.status()["parked"] == 0
            check_rows(empty_database, run_id, revision, version)
            check_what_is_purged(tracker, empty_database)
            assert shape(empty_database) == before
            written.append(revision)
    assert len(written) > 40
    assert stock.run(READ_ALL, driver(empty_database)) == {
        revision: [
            "FINISHED",
            {"lr": "0.1", "version": str(version)},
            {"val/loss": "nan", "acc": str(0.5 + version / 1000)},
            revision,
            ["powder"],
            [LARGEST, "1.5", "nan"],
            {"of": revision},
            True,
        ]
        for version, revision in enumerate(written, start=1)
    }
