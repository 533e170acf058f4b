"""`resume(run, from_step=n)`: the points from a step on are recorded anew, and nothing else changes."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from subprocess import Popen
from types import SimpleNamespace

import pytest

from heimdall_tracking import InvalidInputError, MLflowTracker, NotFoundError, RunStateError
from support import s3
from support.helpers import rows, wait_until, write
from support.s3_proxy import S3Proxy, puts


@pytest.fixture(params=["sqlite", "postgresql"])
def tracker(request: pytest.FixtureRequest, uri: str):
    store = uri if request.param == "sqlite" else request.getfixturevalue("postgres_uri")
    tracker = MLflowTracker(store, experiment_name="tests")
    yield tracker
    tracker.end_run()


@pytest.fixture
def client(tracker):
    from mlflow import MlflowClient

    uri = tracker._uris()[0]
    return MlflowClient(uri, uri)


def log(tracker: MLflowTracker, steps: range, value: float, key: str = "loss") -> None:
    for step in steps:
        tracker.log_metric(key, value, step=step)


def values(tracker: MLflowTracker, run_id: str, key: str = "loss") -> list[tuple[int, float]]:
    points = tracker.get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in points)


def test_the_points_from_a_step_on_are_recorded_anew(tracker, client):
    with tracker.run("other"):
        log(tracker, range(10), 7.0)
    with tracker.run("long") as run:
        tracker.log_param("lr", 0.1)
        log(tracker, range(10), 1.0)
        log(tracker, range(5, 8), 1.0, "late")
        log(tracker, range(3), 1.0, "early")
        log(tracker, range(10), 1.0, "system/cpu_utilization_percentage")
        tracker.log_metric("nan", math.nan, step=2)
        tracker.log_metric("nan", 0.5, step=8)
        tracker.log_metric("negative", 1.0, step=-3)
    assert tracker.resume(run.run_id, from_step=5) == run.run_id == tracker.active_run_id
    assert values(tracker, run.run_id) == [(step, 1.0) for step in range(5)]
    latest = {metric.key: (metric.step, metric.value) for metric in latest_of(client, run.run_id)}
    assert math.isnan(latest.pop("nan")[1])
    assert latest == {
        "loss": (4, 1.0),
        "early": (2, 1.0),
        "negative": (-3, 1.0),
        "system/cpu_utilization_percentage": (9, 1.0),
    }
    log(tracker, range(5, 8), 2.0)
    tracker.end_run()
    expected = [(step, 1.0) for step in range(5)] + [(step, 2.0) for step in range(5, 8)]
    assert values(tracker, run.run_id) == expected
    assert client.get_run(run.run_id).data.metrics["loss"] == 2.0
    assert client.get_run(run.run_id).data.params == {"lr": "0.1"}
    (other,) = (found for found in tracker.search_runs() if found.run_name == "other")
    assert len(values(tracker, other.run_id)) == 10


def latest_of(client, run_id: str) -> list:
    return client.get_run(run_id)._data._metric_objs


def test_a_run_is_rewound_again_and_again(tracker):
    with tracker.run() as run:
        log(tracker, range(6), 0.0)
    for attempt in range(1, 4):
        tracker.resume(run.run_id, from_step=attempt)
        log(tracker, range(attempt, 6), float(attempt))
        tracker.end_run("KILLED")
    assert values(tracker, run.run_id) == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
        *((step, 3.0) for step in range(3, 6)),
    ]


def test_from_the_first_step_all_points_are_recorded_anew(tracker, client):
    with tracker.run() as run:
        log(tracker, range(3), 1.0)
    tracker.resume(run.run_id, from_step=0)
    assert client.get_run(run.run_id).data.metrics == {}
    assert client.get_metric_history(run.run_id, "loss") == []


def test_an_active_run_is_rewound_and_stays_active(tracker):
    run_id = tracker.start_run("active")
    log(tracker, range(6), 1.0)
    assert tracker.resume(run_id, from_step=3) == run_id
    log(tracker, range(3, 5), 2.0)
    assert tracker.resume("active", nested=True, from_step=4) == run_id
    log(tracker, range(4, 6), 3.0)
    assert tracker.active_run_ids == [run_id]
    tracker.end_run()
    assert values(tracker, run_id) == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 3.0), (5, 3.0)]


def test_a_run_other_than_the_active_one_is_rewound_only_where_it_may_be_nested(tracker):
    with tracker.run() as ended:
        log(tracker, range(4), 1.0)
    outer = tracker.start_run()
    with pytest.raises(RunStateError, match=outer):
        tracker.resume(ended.run_id, from_step=2)
    assert len(values(tracker, ended.run_id)) == 4
    tracker.resume(ended.run_id, nested=True, from_step=2)
    # The outer run is active, but not this caller's own.
    with pytest.raises(RunStateError, match=outer):
        tracker.resume(outer, nested=True, from_step=0)
    tracker.end_run()
    assert len(values(tracker, ended.run_id)) == 2


def test_a_run_that_does_not_exist_is_not_rewound(tracker):
    with pytest.raises(NotFoundError):
        tracker.resume("0" * 32, from_step=1)


@pytest.mark.parametrize("step", [True, False, -1, 2**63, 1.0, "1", [1]])
def test_a_step_that_is_none_is_refused(uri, step):
    tracker = MLflowTracker(uri)
    with tracker.run() as run:
        log(tracker, range(2), 1.0)
    with pytest.raises(
        InvalidInputError, match=r"from_step .* must be an integer from 0 to 9223372036854775807"
    ):
        tracker.resume(run.run_id, from_step=step)
    assert tracker.active_run_id is None
    assert len(values(tracker, run.run_id)) == 2


def test_the_largest_step_is_one(uri):
    tracker = MLflowTracker(uri)
    with tracker.run() as run:
        tracker.log_metric("loss", 1.0, step=2**63 - 1)
        tracker.log_metric("loss", 1.0, step=2**63 - 2)
    tracker.resume(run.run_id, from_step=2**63 - 1)
    assert values(tracker, run.run_id) == [(2**63 - 2, 1.0)]
    tracker.end_run()


def test_a_server_keeps_the_points_which_is_told_once(mlflow_server, caplog):
    tracker = MLflowTracker(mlflow_server.url, experiment_name="rewound")
    with tracker.run() as run:
        log(tracker, range(4), 1.0)
    with caplog.at_level(logging.WARNING, "heimdall_tracking"):
        for _ in range(2):
            tracker.resume(run.run_id, from_step=2)
            log(tracker, range(2, 4), 2.0)
            tracker.end_run()
        tracker.flush()
    told = [record.getMessage() for record in caplog.records if "keeps the points" in record.getMessage()]
    assert len(told) == 1
    assert run.run_id in told[0]
    assert "step 2" in told[0]
    assert [step for step, _ in values(tracker, run.run_id)] == [0, 1, 2, 2, 2, 3, 3, 3]
    assert tracker.status().parked == 0


def test_each_mirror_is_rewound_at_its_own_pace(uri, db, postgres_server, postgres_uri):
    # A mirror makes its tables at its own pace as well.
    MLflowTracker(postgres_uri)
    tracker = MLflowTracker(uri, experiment_name="tests", mirrors=[postgres_uri])
    with tracker.run() as run:
        log(tracker, range(6), 1.0)
    tracker.resume(run.run_id, from_step=3)
    log(tracker, range(3, 5), 2.0)
    tracker.end_run()
    query = f"SELECT step, value FROM metrics WHERE run_uuid = '{run.run_id}' ORDER BY step"
    expected = [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    database = postgres_uri.rpartition("/")[2]
    assert rows(db, query) == expected
    wait_until(lambda: postgres_server.execute(query, database) == expected, "the mirror has the same")


DOOMED = """
    import sys
    from heimdall_tracking import MLflowTracker

    uri, artifacts, file, rewinds = sys.argv[1:]
    tracker = MLflowTracker(uri, artifacts, experiment_name="tests")
    run_id = tracker.start_run()
    print(run_id, flush=True)
    tracker.log_artifact(file, "")
    for step in range(8):
        tracker.log_metric("loss", 1.0, step=step)
    if rewinds == "yes":
        tracker.resume(run_id, from_step=4)
        for step in range(4, 6):
            tracker.log_metric("loss", 2.0, step=step)
    tracker.set_tag("all", "there")
    print("logged", flush=True)
    tracker.flush()
    """


@pytest.mark.faults
@pytest.mark.parametrize("by", ["same process", "next process"])
def test_points_that_a_dead_process_delivers_again_do_not_come_back(
    by: str,
    start_script: Callable[..., Popen],
    run_script: Callable[..., SimpleNamespace],
    s3_server: s3.S3Server,
    proxy: S3Proxy,
    bucket: str,
    uri: str,
    db,
    tmp_path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # While the upload cannot finish, the position stays before it: everything behind it is delivered again.
    variables = s3_server.variables | {"MLFLOW_S3_ENDPOINT_URL": proxy.url}
    proxy.strike("refuse", puts, status=503, code="SlowDown")
    file, artifacts = write(tmp_path / "weights"), f"s3://{bucket}/runs"
    rewinds = "yes" if by == "same process" else "no"
    process = start_script(DOOMED, uri, artifacts, file, rewinds, **variables)
    run_id, said = (process.stdout.readline().strip() for _ in range(2))
    assert said == "logged", process.communicate()
    all_there = "SELECT value FROM tags WHERE key = 'all'"
    wait_until(lambda: rows(db, all_there) == [("there",)], "its records are delivered")
    process.kill()
    process.wait()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if by == "next process":
        tracker = MLflowTracker(uri, artifacts, experiment_name="tests")
        tracker.resume(run_id, from_step=4)
        log(tracker, range(4, 6), 2.0)
        tracker.end_run()
    proxy.heal()
    code = "import sys; from heimdall_tracking import MLflowTracker; MLflowTracker(sys.argv[1]).flush()"
    done = run_script(code, uri, **variables)
    assert done.code == 0, done.err
    assert s3_server.objects(bucket, f"runs/{run_id}/artifacts") == {"weights": b"content"}
    query = "SELECT step, value FROM metrics WHERE key = 'loss' ORDER BY step"
    assert rows(db, query) == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)]
    assert rows(db, "SELECT step, value FROM latest_metrics WHERE key = 'loss'") == [(5, 2.0)]
