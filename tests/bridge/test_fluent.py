"""MLflow's fluent API, its client and its autologging write through the journal of the tracker."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest
from mlflow.exceptions import MlflowException

from heimdall_tracking import MLflowTracker

pytestmark = pytest.mark.usefixtures("fluent")


def test_what_mlflow_logs_lands_in_the_tracker_s_run_without_a_property_to_touch(tracker, fluent):
    with tracker.run("outer") as run:
        assert fluent.active_run().info.run_id == run.run_id
        fluent.log_metric("loss", 1.0, step=2)
        fluent.log_metrics({"a": 1.0, "b": 2.0})
        fluent.log_param("lr", 0.1)
        fluent.log_params({"depth": 3})
        fluent.set_tag("kind", "demo")
        fluent.log_text("text", "notes.txt")
    assert fluent.active_run() is None
    found = tracker.get_run(run.run_id)
    assert found.metrics == {"loss": 1.0, "a": 1.0, "b": 2.0}
    assert found.params == {"lr": "0.1", "depth": "3"}
    assert (found.tags["kind"], found.status) == ("demo", "FINISHED")
    assert tracker.load_text(run.run_id, "notes.txt") == "text"
    assert len(tracker.search_runs()) == 1


def test_a_run_of_mlflow_is_the_tracker_s_active_run(tracker, fluent):
    with fluent.start_run(run_name="theirs") as run:
        assert tracker.active_run_id == run.info.run_id
        assert run.info.experiment_id == tracker.experiment_id
        tracker.log_params({"ours": 1})
    assert tracker.active_run_id is None
    found = tracker.get_run(run.info.run_id)
    assert (found.run_name, found.status, found.params) == ("theirs", "FINISHED", {"ours": "1"})


def test_nested_runs_of_either_have_the_run_of_the_other_as_parent(tracker, fluent):
    with tracker.run("outer") as outer:
        with fluent.start_run(nested=True) as middle:
            with tracker.run("inner", nested=True) as inner:
                assert tracker.active_run_ids == [outer.run_id, middle.info.run_id, inner.run_id]
                assert fluent.active_run().info.run_id == inner.run_id
            assert fluent.active_run().info.run_id == middle.info.run_id
        assert tracker.active_run_id == outer.run_id
    parent = "mlflow.parentRunId"
    assert tracker.get_run(middle.info.run_id).tags[parent] == outer.run_id
    assert tracker.get_run(inner.run_id).tags[parent] == middle.info.run_id
    assert {run.status for run in tracker.search_runs()} == {"FINISHED"}


def test_either_may_end_the_run_of_the_other(tracker, fluent):
    run_id = tracker.start_run()
    fluent.end_run("FAILED")
    assert (tracker.active_run_id, tracker.get_run(run_id).status) == (None, "FAILED")
    run = fluent.start_run()
    tracker.end_run("KILLED")
    assert fluent.active_run() is None
    assert fluent.get_run(run.info.run_id).info.status == "KILLED"
    assert fluent.last_active_run().info.run_id == run.info.run_id


def test_a_second_run_is_refused_by_both_while_one_is_active(tracker, fluent):
    with tracker.run(), pytest.raises(Exception, match="is already active"):
        fluent.start_run()
    with fluent.start_run(), pytest.raises(Exception, match="active"):
        tracker.start_run()


def test_a_finished_run_that_mlflow_resumes_is_active_again(tracker, fluent):
    with tracker.run() as run:
        pass
    with fluent.start_run(run_id=run.run_id):
        assert tracker.active_run_id == run.run_id
        assert tracker.get_run(run.run_id).status == "RUNNING"
        fluent.log_metric("again", 1.0)
    found = tracker.get_run(run.run_id)
    assert (found.status, found.metrics) == ("FINISHED", {"again": 1.0})


def test_threads_log_to_their_own_nested_runs(tracker, fluent):
    def job(number: int) -> str:
        with fluent.start_run(run_name=f"job-{number}", nested=True) as run:
            for step in range(5):
                fluent.log_metric("job", number, step=step)
                tracker.log_metric("ours", number, step=step)
        return run.info.run_id

    with tracker.run("outer") as outer, ThreadPoolExecutor(3) as pool:
        jobs = list(pool.map(job, range(6)))
        assert tracker.active_run_id == outer.run_id
    for number, run_id in enumerate(jobs):
        found = tracker.get_run(run_id)
        assert found.metrics == {"job": number, "ours": number}
        assert [point.value for point in tracker.get_metric_history(run_id, "job")] == [number] * 5
        assert found.tags["mlflow.parentRunId"] == outer.run_id
    assert tracker.get_run(outer.run_id).metrics == {}


def test_tasks_log_to_their_own_nested_runs(tracker, fluent):
    async def job(number: int) -> str:
        with fluent.start_run(nested=True) as run:
            for step in range(3):
                fluent.log_metric("job", number, step=step)
                await asyncio.sleep(0)
        return run.info.run_id

    async def jobs() -> list[str]:
        return list(await asyncio.gather(*map(job, range(4))))

    with tracker.run() as outer:
        found = asyncio.run(jobs())
    for number, run_id in enumerate(found):
        run = tracker.get_run(run_id)
        assert (run.metrics, run.status) == ({"job": number}, "FINISHED")
        assert run.tags["mlflow.parentRunId"] == outer.run_id


def test_a_thread_without_a_run_sees_the_tracker_s(tracker, fluent):
    seen = []
    run_id = tracker.start_run()
    thread = Thread(target=lambda: seen.append(fluent.active_run().info.run_id))
    thread.start()
    thread.join()
    tracker.end_run()
    assert seen == [run_id]


def test_reads_come_after_writes(tracker, fluent):
    client = fluent.MlflowClient()
    for number in range(5):
        with tracker.run(f"trial-{number}") as run:
            tracker.log_metric("m", number)
            assert client.get_run(run.run_id).data.metrics == {"m": number}
        found = fluent.search_runs([tracker.experiment_id], f"attributes.run_name = 'trial-{number}'")
        assert (found["status"][0], found["metrics.m"][0]) == ("FINISHED", number)


def test_another_store_is_left_to_mlflow(tracker, fluent, tmp_path):
    with tracker.run() as ours:
        fluent.set_tracking_uri(f"sqlite:///{tmp_path / 'other.db'}")
        assert fluent.active_run() is None
        with fluent.start_run() as theirs:
            fluent.log_metric("m", 1.0)
        assert theirs.info.experiment_id == "0"
        assert fluent.get_run(theirs.info.run_id).data.metrics == {"m": 1.0}
    assert tracker.get_run(ours.run_id).metrics == {}


def test_the_bridge_can_be_off(uri, fluent):
    tracker = MLflowTracker(uri, experiment_name="off", bridge=False)
    with tracker.run():
        assert fluent.active_run() is None


def test_a_client_of_before_the_tracker_is_bridged(uri, fluent):
    client = fluent.MlflowClient(uri)
    client.search_experiments()
    tracker = MLflowTracker(uri, experiment_name="later")
    run_id = tracker.start_run()
    client.log_metric(run_id, "m", 1.0)
    # It stands in the journal: nothing has gone to the store behind it.
    assert type(client._tracking_client.store).__module__.startswith("heimdall_tracking")
    assert tracker.get_run(run_id).metrics == {"m": 1.0}
    tracker.end_run()


def test_a_run_that_is_not_there_is_refused_as_by_mlflow(tracker, fluent):
    with pytest.raises(MlflowException, match="not found") as raised:
        fluent.MlflowClient().log_metric("0" * 32, "m", 1.0)
    assert raised.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    # It costs nobody else anything.
    with tracker.run() as run:
        tracker.log_metric("m", 1.0)
    assert tracker.get_run(run.run_id).metrics == {"m": 1.0}


def test_sklearn_s_autologging_goes_into_the_tracker_s_run(tracker, fluent):
    from sklearn.linear_model import Ridge

    fluent.sklearn.autolog(log_models=False, log_datasets=False, silent=True)
    try:
        with tracker.run() as run:
            Ridge(alpha=0.5).fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
    finally:
        fluent.sklearn.autolog(disable=True, silent=True)
    found = tracker.get_run(run.run_id)
    assert found.params["alpha"] == "0.5"
    assert "training_r2_score" in found.metrics
    assert (found.status, len(tracker.search_runs())) == ("FINISHED", 1)


def test_mlflow_registers_what_the_tracker_is_still_uploading(tracker, fluent, tmp_path):
    with tracker.run() as run:
        for number in range(50):
            (tmp_path / "model").mkdir(exist_ok=True)
            (tmp_path / "model" / f"{number}.bin").write_bytes(bytes(1 << 16))
        (tmp_path / "model" / "MLmodel").write_text("flavors: {}\n")
        tracker.log_artifacts_dir(tmp_path / "model", "model")
        version = fluent.register_model(f"runs:/{run.run_id}/model", "net")
    assert (version.run_id, str(version.version)) == (run.run_id, "1")
    with pytest.raises(MlflowException, match="Unable to find a logged_model"):
        fluent.register_model(f"runs:/{run.run_id}/nothing", "net")
    assert len(fluent.MlflowClient().search_model_versions("name = 'net'")) == 1
    client = fluent.MlflowClient()
    for number in range(2):
        tracker.log_text("weights", f"late-{number}/MLmodel", run_id=run.run_id)
        client.create_model_version("net", f"runs:/{run.run_id}/late-{number}", run.run_id)
    assert tracker.status()["pending"] == 0
