"""The stock client of a tracker, and MLflow's fluent API in the tracker's run."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Thread

import pytest

from heimdall_tracking import MissingPackageError, MLflowTracker

pytestmark = pytest.mark.usefixtures("fluent")


def test_the_client_reads_what_was_just_logged_and_writes_to_the_same_store(tracker):
    run_id = tracker.start_run()
    tracker.log_metric("ours", 1.0)
    client = tracker.client
    assert client.get_run(run_id).data.metrics == {"ours": 1.0}
    client.set_tag(run_id, "theirs", "yes")
    client.create_registered_model("model")
    assert tracker.get_run(run_id).tags["theirs"] == "yes"
    assert tracker.client is client


def test_the_fluent_api_lands_in_the_active_run(tracker):
    import mlflow

    run_id = tracker.start_run()
    _ = tracker.client
    mlflow.log_metric("theirs", 2.0, step=3)
    mlflow.log_param("lr", 0.1)
    mlflow.log_text("text", "a.txt")
    run = tracker.get_run(run_id)
    assert (run.metrics, run.params) == ({"theirs": 2.0}, {"lr": "0.1"})
    assert mlflow.active_run().info.run_id == run_id
    assert len(tracker.search_runs()) == 1
    # Theirs and ours, beside each other.
    tracker.log_metric("ours", 1.0)
    assert tracker.get_run(run_id).metrics == {"theirs": 2.0, "ours": 1.0}


def test_the_fluent_api_follows_the_tracker_from_run_to_run(tracker):
    import mlflow

    _ = tracker.client
    assert mlflow.active_run() is None
    for value in (1.0, 2.0):
        with tracker.run() as run:
            mlflow.log_metric("m", value)
        assert tracker.get_run(run.run_id).metrics == {"m": value}
        assert mlflow.active_run() is None
    with tracker.run() as outer:
        with tracker.run(nested=True) as inner:
            mlflow.log_param("in", "inner")
        mlflow.log_param("in", "outer")
    runs = [tracker.get_run(run.run_id) for run in (outer, inner)]
    assert [run.params for run in runs] == [{"in": "outer"}, {"in": "inner"}]
    assert [run.status for run in runs] == ["FINISHED"] * 2


def test_threads_of_before_and_of_later_land_in_the_active_run(tracker):
    import mlflow

    def log(name: str) -> None:
        mlflow.log_metric(name, 1.0)

    _ = tracker.client
    run_id = tracker.start_run()
    for name in ("a", "b", "c"):
        thread = Thread(target=log, args=[name])
        thread.start()
        thread.join()
    assert tracker.get_run(run_id).metrics == {"a": 1.0, "b": 1.0, "c": 1.0}
    assert len(tracker.search_runs()) == 1


def test_threads_and_tasks_with_runs_of_their_own_land_in_these(tracker):
    import mlflow

    def trial(number: int) -> str:
        with tracker.run(nested=True) as run:
            for step in range(4):
                mlflow.log_metric("number", number, step=step)
        return str(run.run_id)

    async def task(number: int) -> str:
        with tracker.run(nested=True) as run:
            for step in range(4):
                mlflow.log_metric("number", number, step=step)
                await asyncio.sleep(0)
        return str(run.run_id)

    async def tasks() -> list[str]:
        return await asyncio.gather(*map(task, range(6)))

    _ = tracker.client
    with tracker.run() as outer, ThreadPoolExecutor(3) as pool:
        runs = [list(pool.map(trial, range(6))), asyncio.run(tasks())]
        mlflow.log_metric("outer", 1.0)
    for number, run_id in [pair for several in runs for pair in enumerate(several)]:
        assert [point.value for point in tracker.get_metric_history(run_id, "number")] == [number] * 4
    assert tracker.get_run(outer.run_id).metrics == {"outer": 1.0}


def test_a_run_that_mlflow_has_ended_is_not_its_active_run_again(tracker):
    import mlflow

    with tracker.run() as run:
        _ = tracker.client
        mlflow.end_run()
        assert mlflow.active_run() is None
        with mlflow.start_run() as theirs:
            mlflow.log_metric("theirs", 1.0)
            assert mlflow.active_run().info.run_id == theirs.info.run_id
    assert tracker.get_run(run.run_id).metrics == {}


def test_a_nested_run_of_mlflow_is_nested_in_the_tracker_s_run(tracker):
    import mlflow

    run_id = tracker.start_run()
    _ = tracker.client
    with mlflow.start_run(nested=True) as child:
        mlflow.log_metric("m", 1.0)
    mlflow.log_metric("parent", 1.0)
    assert tracker.get_run(child.info.run_id).tags["mlflow.parentRunId"] == run_id
    assert tracker.get_run(run_id).metrics == {"parent": 1.0}


def test_the_client_that_was_asked_for_last_decides_which_tracker_it_is(tracker, tmp_path):
    import mlflow

    other = MLflowTracker(f"sqlite:///{tmp_path / 'other.db'}", experiment_name="other")
    run_id = tracker.start_run()
    other_id = other.start_run()
    _ = tracker.client
    mlflow.log_metric("first", 1.0)
    _ = other.client
    mlflow.log_metric("second", 1.0)
    tracker.end_run()
    mlflow.log_metric("third", 1.0)
    other.end_run()
    assert tracker.get_run(run_id).metrics == {"first": 1.0}
    assert other.get_run(other_id).metrics == {"second": 1.0, "third": 1.0}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("ending", "status"),
    [("", "FINISHED"), ("raise RuntimeError('boom')", "FAILED"), ("tracker.end_run('KILLED')", "KILLED")],
)
def test_the_end_of_the_interpreter_is_told_once_and_by_the_tracker(tracker, uri, run_script, ending, status):
    run = run_script(
        f"""
        import sys
        from heimdall_tracking import MLflowTracker
        tracker = MLflowTracker(sys.argv[1])
        print(tracker.start_run(), flush=True)
        _ = tracker.client
        from mlflow import MlflowClient
        ended = MlflowClient.set_terminated
        MlflowClient.set_terminated = lambda *args, **kw: (print("ended by MLflow"), ended(*args, **kw))
        {ending}
        """,
        uri,
    )
    run_id, *more = run.out.split("\n", 1)
    assert more == [""], run.err
    assert tracker.get_run(run_id).status == status


def test_a_model_that_mlflow_logs_lands_in_the_active_run(tracker):
    import mlflow

    class Echo(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input: list[str]) -> list[str]:
            return model_input

    _ = tracker.client
    with tracker.run() as run:
        info = mlflow.pyfunc.log_model(
            name="model", python_model=Echo(), pip_requirements=[], input_example=None
        )
    assert info.run_id == run.run_id
    assert tracker.get_run(run.run_id).status == "FINISHED"


def test_where_mlflow_is_not_installed_it_is_named(tracker, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingPackageError, match="pip install mlflow"):
        _ = tracker.client
