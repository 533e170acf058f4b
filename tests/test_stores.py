"""One behaviour on every store: a stock client cannot tell which one we wrote to, nor that it was us."""

from __future__ import annotations

import contextlib
import json
import math
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.entities import Metric, ViewType

from heimdall_tracking import Dataset, InvalidInputError, MLflowTracker, NotFoundError
from support.helpers import wait_until


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """The name of an experiment of this test alone: tests share the server."""
    return request.node.name


@pytest.fixture
def tracker(store: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MLflowTracker:
    monkeypatch.chdir(tmp_path)
    return MLflowTracker(store, experiment_name=name)


def test_the_stock_client_reads_all_of_a_run(tracker, stock, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker._uris()[0])
    (tmp_path / "weights 1é.bin").write_bytes(bytes(range(256)) * 1000)
    run_id = tracker.start_run("the name", {"mine": "é '\"%\\", "gone": "soon"})
    tracker.log_params({"lr": 1e-3, "layers": [64, 128], "long": "x" * 7000, "empty": ""})
    points = [(0, 1.5), (-3, math.inf), (2**62, -math.inf), (5, math.nan), (5, 7.0)]
    for step, value in points:
        tracker.log_metric("val/my loss", value, step=step, timestamp=1_700_000_000_000 + step % 7)
    tracker.set_tag("long", "y" * 9000)
    tracker.delete_tag("gone")
    tracker.log_input(
        Dataset("https://example.org/powder.csv", name="powder", digest="abc"), context="training"
    )
    tracker.log_text("grüße", "notes/a.txt")
    tracker.log_artifact(tmp_path / "weights 1é.bin", "files")
    tracker.end_run()
    tracker.flush()

    run = stock.get_run(run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "the name")
    assert run.info.start_time <= run.info.end_time
    assert run.data.params == {"lr": "0.001", "layers": "[64, 128]", "long": "x" * 6000, "empty": ""}
    assert run.data.tags["mine"] == "é '\"%\\"
    assert run.data.tags["mlflow.runName"] == "the name"
    assert "gone" not in run.data.tags
    assert run.data.tags["long"] == "y" * 8000
    assert run.data.metrics["val/my loss"] == -sys.float_info.max
    history = {(p.step, str(p.value)) for p in stock.get_metric_history(run_id, "val/my loss")}
    largest = str(sys.float_info.max)
    expected = {(0, "1.5"), (-3, largest), (2**62, f"-{largest}"), (5, "7.0")}
    assert history - {(5, "nan"), (5, "0.0")} == expected
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("powder", "abc")
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
    files = {file.path: file.file_size for file in stock.list_artifacts(run_id, "files")}
    assert files == {"files/weights 1é.bin": 256_000}
    assert Path(stock.download_artifacts(run_id, "notes/a.txt")).read_text() == "grüße"


def test_we_read_of_a_run_what_the_stock_client_reads(tracker, stock):
    experiment_id = tracker.experiment_id
    run_id = stock.create_run(experiment_id, run_name="theirs", tags={"t": "v"}).info.run_id
    stock.log_param(run_id, "p", "1")
    stock.log_metric(run_id, "m", math.nan, step=3)
    stock.log_metric(run_id, "n", 0.1, timestamp=5, step=-1)
    stock.set_terminated(run_id, "FAILED")

    ours, theirs = tracker.get_run(run_id), stock.get_run(run_id)

    assert (ours.run_name, ours.status, ours.experiment_id) == ("theirs", "FAILED", experiment_id)
    assert (ours.start_time, ours.end_time) == (theirs.info.start_time, theirs.info.end_time)
    assert ours.artifact_uri == theirs.info.artifact_uri
    assert ours.params == {"p": "1"}
    assert math.isnan(ours.metrics["m"])
    assert ours.metrics["n"] == 0.1
    assert ours.tags == theirs.data.tags
    (point,) = tracker.get_metric_history(run_id, "n")
    assert (point.value, point.timestamp, point.step) == (0.1, 5, -1)


@pytest.mark.strict
def test_a_param_keeps_its_first_value_and_the_other_one_is_named(tracker, stock):
    with tracker.run() as run:
        tracker.log_params({"a": 1})
        tracker.log_params({"a": 1})
        with pytest.raises(InvalidInputError, match=r'"1".*"2"'):
            tracker.log_params({"a": 2})
    tracker.flush()
    assert stock.get_run(run.run_id).data.params == {"a": "1"}


def test_a_param_that_another_process_has_set_is_parked_and_the_rest_arrives(tracker, stock, caplog):
    run_id = tracker.start_run()
    tracker.flush()
    stock.log_param(run_id, "a", "theirs")
    tracker.log_params({"a": "ours"})
    tracker.log_metric("m", 1.0)
    tracker.flush()
    assert tracker.status()["parked"] == 1
    assert '"theirs"' in caplog.text
    assert '"ours"' in caplog.text
    assert stock.get_run(run_id).data.params == {"a": "theirs"}
    assert stock.get_run(run_id).data.metrics == {"m": 1.0}


def test_a_point_that_is_logged_twice_is_one_point(tracker, stock):
    run_id = tracker.start_run()
    for _ in range(3):
        tracker.log_metric("m", 0.5, step=1, timestamp=7)
        tracker.flush()
    tracker.log_batch(metrics=[("m", 0.5, 1, 7), ("m", 0.5, 1, 7), ("m", 0.5, 2, 7)])
    tracker.flush()
    assert [(p.step, p.value) for p in stock.get_metric_history(run_id, "m")] == [(1, 0.5), (2, 0.5)]


def test_the_latest_point_has_the_greatest_step_then_time_then_value(tracker, stock):
    run_id = tracker.start_run()
    for batch in ([(2.0, 1, 5), (1.0, 2, 4)], [(3.0, 2, 4), (9.0, 1, 9)], [(0.5, 2, 3)]):
        for value, step, timestamp in batch:
            tracker.log_metric("m", value, step=step, timestamp=timestamp)
        tracker.flush()
    assert stock.get_run(run_id).data.metrics == {"m": 3.0}


def test_points_in_any_order_are_what_they_are_for_the_stock_client(tracker, stock):
    rng = random.Random(3)
    values = [0.0, -0.0, 1.5, -1.5, math.nan, math.inf, -math.inf, 5e-324, sys.float_info.max]
    points = [
        (rng.choice(values), rng.randint(-1, 1) * 2 ** rng.choice([0, 62]), rng.randint(0, 2))
        for _ in range(150)
    ]
    theirs = stock.create_run(tracker.experiment_id).info.run_id
    ours = tracker.start_run()
    for start in range(0, 150, 30):
        batch = points[start : start + 30]
        stock.log_batch(theirs, [Metric("m", value, time, step) for value, step, time in batch])
        tracker.log_batch(metrics=[("m", *point) for point in batch])
        tracker.flush()

    def history(run_id: str) -> list[tuple]:
        found = stock.get_metric_history(run_id, "m")
        return sorted((point.step, point.timestamp, str(point.value + 0.0)) for point in found)

    assert history(ours) == history(theirs)
    mine, stocks = (stock.get_run(run_id).data.metrics["m"] for run_id in (ours, theirs))
    assert str(mine + 0.0) == str(stocks + 0.0)
    read = [(p.step, p.timestamp, str(p.value + 0.0)) for p in tracker.get_metric_history(theirs, "m")]
    assert sorted(read) == history(theirs)


def test_the_longest_of_everything_arrives_whole(tracker, stock, store, name):
    long = MLflowTracker(store, experiment_name=f"{name} ".ljust(256, "é"))
    key, path = "é" * 250, f"{'k' * 100}/{'é' * 149}"
    with long.run("ñ" * 250, {key: "ü" * 8000}, description="n" * 8000) as run:
        long.log_batch(metrics=[(key, 1.0), (path, 2.0)], params={key: "漢" * 6000, path: ""})
        dataset = Dataset("s3://b/x", name="é" * 500, digest="d" * 36, schema=["s" * 10_000])
        long.log_input(dataset, tags={"é" * 255: "ü" * 500})
    long.flush()
    assert long.status()["parked"] == 0
    found = stock.get_run(run.run_id)
    assert stock.get_experiment(found.info.experiment_id).name == f"{name} ".ljust(256, "é")
    assert found.info.run_name == "ñ" * 250
    assert found.data.tags[key] == "ü" * 8000
    assert found.data.params == {key: "漢" * 6000, path: ""}
    assert found.data.metrics == {key: 1.0, path: 2.0}
    (given,) = found.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("é" * 500, "d" * 36)
    assert given.dataset.schema == json.dumps(["s" * 10_000])
    assert [(tag.key, tag.value) for tag in given.tags] == [("é" * 255, "ü" * 500)]


KEYS = ["val/loss", "a.b-c_d:e f", "größe/µ", "日本", "٣", "1", "order by", "Loss", "loss", " a", "a "]


def test_keys_of_all_kinds_are_kept_apart_and_found(tracker, stock):
    with tracker.run("worse") as worse:
        tracker.log_metrics(dict.fromkeys(KEYS, math.nan))
        tracker.log_metrics({key: 1000.0 + i for i, key in enumerate(KEYS)}, step=1)
    with tracker.run("better") as better:
        tracker.log_batch(
            metrics=[(key, float(i), 0, 7) for i, key in enumerate(KEYS)],
            params={key: f"p {key}" for key in KEYS},
            tags={key: f"t {key}" for key in KEYS},
        )
    tracker.flush()
    found = stock.get_run(better.run_id).data
    assert found.metrics == {key: float(i) for i, key in enumerate(KEYS)}
    assert found.params == {key: f"p {key}" for key in KEYS}
    assert {f"t {key}" for key in KEYS} <= set(found.tags.values())
    for i, key in enumerate(KEYS):
        assert [point.value for point in tracker.get_metric_history(better.run_id, key)] == [float(i)]
        assert tracker.get_best_run(key, min)["run_id"] == better.run_id
        best = tracker.get_best_run(key, max)
        assert (best["run_id"], best["metric_value"]) == (worse.run_id, 1000.0 + i)
        found = tracker.search_runs(f"metrics.`{key}` < 500 AND params.`{key}` = 'p {key}'")
        assert [run.run_id for run in found] == [better.run_id]


QUOTED = [
    "it's",
    'say "a"',
    "100%",
    "a_b",
    "back\\slash",
    "; DROP TABLE runs --",
    "$1",
    "?",
    "{}",
    "é ü",
    " ",
]


def test_values_with_quotes_and_wildcards_are_found_as_they_are(tracker, stock):
    runs = {}
    for value in QUOTED:
        with tracker.run(value, {"t": value}) as run:
            tracker.log_param("p", value)
            tracker.log_metric("m", 1.0)
        runs[value] = run.run_id
    for value, run_id in runs.items():
        quote = '"' if "'" in value else "'"
        for field in ("params.p", "tags.t", "attributes.run_name"):
            text = f"{field} = {quote}{value}{quote}"
            assert [run.run_id for run in tracker.search_runs(text)] == [run_id], text
            best = tracker.get_best_run("m", min, filter=text)
            assert (best["run_id"], best["params"]) == (run_id, {"p": value})
        assert stock.get_run(run_id).data.params == {"p": value}
        assert tracker.resume(value) == run_id
        tracker.end_run()


def test_batches_over_mlflows_limits_arrive_whole(tracker, stock):
    with tracker.run() as run:
        tracker.log_batch(
            metrics=[(f"m{i % 30}", i / 7, i, 1_700_000_000_000) for i in range(2_500)],
            params={f"p{i}": "é" * 3000 for i in range(250)},
            tags={f"t{i}": "ü" * 4000 for i in range(150)},
        )
    tracker.flush()
    assert tracker.status()["parked"] == 0
    found = stock.get_run(run.run_id)
    assert len(found.data.params) == 250
    assert sum(key.startswith("t") for key in found.data.tags) == 150
    assert sum(len(stock.get_metric_history(run.run_id, f"m{i}")) for i in range(30)) == 2_500


FILTERS = [
    ("", ["metrics.`val/loss` ASC"]),
    ("", ["metrics.`val/loss` DESC", "params.lr"]),
    ("", ["tags.`a b` DESC", "start_time ASC"]),
    ("metrics.`val/loss` < 0.5", []),
    ("metrics.`val/loss` != 0.25", []),
    ("metrics.`val/loss` >= 0", ["attributes.run_name"]),
    ("params.lr = '0.1'", []),
    ("params.lr LIKE '0%'", []),
    ("params.lr IS NULL", []),
    ("tags.`a b` ILIKE 'X%'", []),
    ("tags.`a b` LIKE 'X%'", []),
    ("tags.`a b` IS NOT NULL AND params.lr != '0.1'", []),
    ("status = 'FINISHED' and run_name LIKE 'run%'", ["end_time DESC"]),
    ("datasets.name = 'd1'", []),
    ("datasets.context LIKE 't%'", []),
    ('params.quoted = "it\'s"', []),
]


@pytest.fixture
def several_runs(tracker: MLflowTracker) -> list[str]:
    values = [0.5, 0.25, math.nan, None, -math.inf, 0.25]
    runs = []
    for i, value in enumerate(values):
        with tracker.run(f"run {i}", {"a b": "xX"[i % 2] + str(i)} if i % 3 else None) as run:
            if value is not None:
                tracker.log_metric("val/loss", value)
            if i != 1:
                tracker.log_param("lr", "0.1" if i % 2 else "1e-2")
            if i == 2:
                tracker.log_param("quoted", "it's")
                tracker.log_input(Dataset("s3://b/x", name="d1", digest="1"), context="train")
            runs.append(run.run_id)
    return runs


@pytest.mark.parametrize(("filter_string", "order_by"), FILTERS)
def test_a_search_finds_what_the_stock_client_finds_in_its_order(
    tracker, stock, several_runs, filter_string, order_by
):
    found = [run.run_id for run in tracker.search_runs(filter_string, order_by=order_by)]
    theirs = stock.search_runs([tracker.experiment_id], filter_string, order_by=order_by)
    assert found == [run.info.run_id for run in theirs]


def test_the_best_run_has_the_best_number(tracker, several_runs):
    assert tracker.get_best_run("val/loss", min)["run_id"] == several_runs[4]
    assert tracker.get_best_run("val/loss", "max")["run_id"] == several_runs[0]
    assert (
        tracker.get_best_run("val/loss", min, filter="metrics.`val/loss` > 0.3")["run_id"] == several_runs[0]
    )
    assert tracker.get_best_run("no such metric") is None


def test_a_deleted_run_takes_nothing_and_a_restored_one_does(tracker, stock):
    with tracker.run("kept") as run:
        tracker.log_metric("m", 1.0)
    tracker.delete_run(run.run_id)
    assert stock.get_run(run.run_id).info.lifecycle_stage == "deleted"
    assert tracker.search_runs() == []
    with pytest.raises(InvalidInputError, match="restore"):
        tracker.resume(run.run_id)
    tracker.restore_run(run.run_id)
    assert tracker.resume("kept") == run.run_id
    tracker.log_metric("m", 2.0, step=1)
    tracker.end_run()
    tracker.flush()
    found = stock.get_run(run.run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"m": 2.0})


def test_what_a_deleted_run_is_sent_is_parked_and_the_rest_arrives(tracker, stock, caplog):
    deleted = tracker.start_run()
    tracker.flush()
    stock.delete_run(deleted)
    tracker.log_metric("m", 1.0)
    tracker.log_param("p", 1)
    tracker.set_tag("t", 1)
    tracker.end_run()
    with tracker.run() as kept:
        tracker.log_metric("m", 2.0)
    tracker.flush()
    assert tracker.status()["parked"] > 0
    assert [deleted in record.getMessage() for record in caplog.records].count(True) == 1
    assert stock.get_run(kept.run_id).data.metrics == {"m": 2.0}
    found = stock.get_run(deleted)
    assert (found.data.metrics, found.data.params, "t" in found.data.tags) == ({}, {}, False)


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_has_the_status_and_the_times_of_its_end_and_of_its_resumption(tracker, stock, status):
    before = time.time_ns() // 1_000_000
    run_id = tracker.start_run()
    tracker.flush()
    running = stock.get_run(run_id).info
    assert (running.status, running.end_time) == ("RUNNING", None)
    tracker.end_run(status)
    tracker.flush()
    after = time.time_ns() // 1_000_000
    ended = stock.get_run(run_id).info
    assert ended.status == status
    assert before <= running.start_time == ended.start_time <= ended.end_time <= after
    tracker.resume(run_id)
    tracker.flush()
    assert stock.get_run(run_id).info.status == "RUNNING"
    tracker.end_run()
    tracker.flush()
    again = stock.get_run(run_id).info
    assert (again.status, again.start_time) == ("FINISHED", ended.start_time)
    assert again.end_time >= ended.end_time


def test_a_run_is_renamed_by_its_tag(tracker, stock):
    with tracker.run("first") as run:
        tracker.set_tag("mlflow.runName", "second")
    tracker.flush()
    found = stock.get_run(run.run_id)
    assert (found.info.run_name, found.data.tags["mlflow.runName"]) == ("second", "second")
    assert tracker.get_run(run.run_id).run_name == "second"


def test_a_nested_run_names_its_parent(tracker, stock):
    with tracker.run("parent") as parent, tracker.run("child", nested=True) as child:
        tracker.log_metric("m", 1.0)
    tracker.flush()
    assert stock.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert stock.get_run(parent.run_id).data.metrics == {}


def test_experiments_are_listed_deleted_and_restored(tracker, stock, store, name):
    other = MLflowTracker(store, experiment_name=f"{name} other")
    listed = [experiment.name for experiment in tracker.list_experiments()]
    assert {name, f"{name} other"} <= set(listed)
    with other.run() as run:
        other.log_metric("m", 1.0)
    other.flush()
    tracker.delete_experiment(f"{name} other")
    assert stock.get_experiment(other.experiment_id).lifecycle_stage == "deleted"
    assert stock.get_run(run.run_id).info.lifecycle_stage == "deleted"
    assert f"{name} other" not in [experiment.name for experiment in tracker.list_experiments()]
    with pytest.raises(ValueError, match="deleted"):
        MLflowTracker(store, experiment_name=f"{name} other")
    tracker.restore_experiment(f"{name} other")
    again = MLflowTracker(store, experiment_name=f"{name} other")
    assert again.experiment_id == other.experiment_id
    assert again.get_best_run("m")["run_id"] == run.run_id
    with again.run():
        again.log_metric("m", 0.5)
    assert len(again.search_runs()) == 2


def test_a_run_in_an_experiment_that_somebody_has_deleted_is_refused(tracker, stock, name, caplog):
    tracker.flush()
    stock.delete_experiment(tracker.experiment_id)
    with contextlib.suppress(InvalidInputError):
        tracker.start_run()
        tracker.log_metric("m", 1.0)
        tracker.end_run()
        tracker.flush()
        assert tracker.status()["parked"] > 0
        assert "deleted" in caplog.text
    assert stock.search_runs([tracker.experiment_id], run_view_type=ViewType.ALL) == []
    stock.restore_experiment(tracker.experiment_id)
    with tracker.run() as run:
        tracker.log_metric("m", 2.0)
    tracker.flush()
    assert stock.get_run(run.run_id).data.metrics == {"m": 2.0}


@pytest.mark.usefixtures("fluent")
@pytest.mark.bridge
def test_the_stock_client_of_the_tracker_and_the_fluent_api_write_to_the_same_store(tracker, stock):
    import mlflow

    run_id = tracker.start_run()
    tracker.log_metric("ours", 1.0)
    assert tracker.client.get_run(run_id).data.metrics == {"ours": 1.0}
    mlflow.log_metric("theirs", 2.0)
    mlflow.log_text("text", "a.txt")
    tracker.end_run()
    tracker.flush()
    found = stock.get_run(run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"ours": 1.0, "theirs": 2.0})
    assert [file.path for file in stock.list_artifacts(run_id)] == ["a.txt"]


def test_a_model_version_is_registered_and_staged(tracker, stock, name):
    model = name.translate(str.maketrans("[]/:", "____"))
    with tracker.run() as run:
        tracker.log_text("weights", "model/weights.txt")
    assert tracker.register_model(model, f"runs:/{run.run_id}/model", "good", {"a": "b"}) == "1"
    assert tracker.register_model(model, f"runs:/{run.run_id}/model") == "2"
    tracker.transition_model_stage(model, 2, "production")
    first, second = (stock.get_model_version(model, version) for version in ("1", "2"))
    assert (first.description, first.tags, first.run_id) == ("good", {"a": "b"}, run.run_id)
    assert (second.current_stage, second.status) == ("Production", "READY")
    with pytest.raises(NotFoundError):
        tracker.transition_model_stage(model, 7, "Staging")


def test_what_does_not_exist_is_said_not_to(tracker):
    unknown = "0" * 32
    for question in (
        lambda: tracker.get_run(unknown),
        lambda: tracker.get_metric_history(unknown, "m"),
        lambda: tracker.delete_run(unknown),
        lambda: tracker.get_experiment("no such experiment"),
        lambda: tracker.register_model("m", f"runs:/{unknown}/model"),
    ):
        with pytest.raises(NotFoundError):
            question()


ONE_EXPERIMENT = """
    import sys
    from heimdall_tracking import MLflowTracker

    print("ready", flush=True)
    sys.stdin.readline()
    tracker = MLflowTracker(sys.argv[1], experiment_name=sys.argv[2])
    with tracker.run():
        tracker.log_metric("m", 1.0)
    print(tracker.experiment_id, flush=True)
"""


def test_processes_that_race_for_an_experiment_get_the_same_one(
    store, name, tmp_path, start_script: Callable[..., SimpleNamespace]
):
    processes = [
        start_script(ONE_EXPERIMENT, store, name, HEIMDALL_DIR=tmp_path / f"journal{i}") for i in range(5)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    ids = set()
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        ids.add(out.strip())
    assert len(ids) == 1
    tracker = MLflowTracker(store, experiment_name=name)
    assert len(tracker.search_runs()) == 5


DOOMED = """
    import sys
    from heimdall_tracking import MLflowTracker

    tracker = MLflowTracker(sys.argv[1], experiment_name=sys.argv[2])
    print(tracker.start_run("doomed"), flush=True)
    for i in range(500):
        tracker.log_metric("m", i / 7, step=i)
    print("logged", flush=True)
    sys.stdin.readline()
"""


def test_what_a_killed_process_had_logged_arrives_and_its_run_is_failed(store, name, start_script):
    process = start_script(DOOMED, store, name)
    run_id = process.stdout.readline().strip()
    assert process.stdout.readline() == "logged\n"
    process.kill()
    process.wait()
    tracker = MLflowTracker(store, experiment_name=name)
    tracker.flush()
    assert len(tracker.get_metric_history(run_id, "m")) == 500
    assert tracker.get_run(run_id).status == "FAILED"


def test_the_system_metrics_of_a_resumed_run_go_on_behind_their_last_step(store, name, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    tracker = MLflowTracker(store, experiment_name=name, system_metrics=True)
    key = "system/cpu_utilization_percentage"
    with tracker.run("long") as run:
        # Of no concern to the steps: another key, and one that only begins alike.
        tracker.log_metrics({"loss": 1, "system_loss": 1, "SYSTEM/loss": 1}, step=1000)
        wait_until(lambda: len(tracker.get_metric_history(run.run_id, key)) >= 2, "there are points")
    before = len(tracker.get_metric_history(run.run_id, key))
    with tracker.run(run_id=run.run_id):
        wait_until(lambda: len(tracker.get_metric_history(run.run_id, key)) > before, "it goes on")
    steps = [point.step for point in tracker.get_metric_history(run.run_id, key)]
    assert steps == list(range(len(steps)))
