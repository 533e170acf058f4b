"""Questions: one run read back, the best run found."""

from __future__ import annotations

import math

import pytest

from heimdall_tracking import InvalidInputError, MLflowTracker, NotFoundError


def log_run(tracker: MLflowTracker, values: list[float], metric: str = "val/loss", **params) -> str:
    with tracker.run() as run:
        tracker.log_params(params)
        for step, value in enumerate(values):
            tracker.log_metrics({metric: value}, step=step)
    return run.run_id


def test_a_run_is_read_back_with_what_was_just_logged(tracker):
    run_id = tracker.start_run("named")
    tracker.log_params({"lr": 0.1})
    tracker.log_metrics({"loss": 2.0}, step=1)
    tracker.log_metrics({"loss": 1.0}, step=2)
    tracker.end_run()
    info = tracker.get_run_info(run_id)
    tags = info.pop("tags")
    assert 0 < info.pop("start_time") <= info.pop("end_time")
    assert info == {
        "run_id": run_id,
        "experiment_id": tracker.experiment_id,
        "status": "FINISHED",
        "parameters": {"lr": "0.1"},
        "metrics": {"loss": 1.0},
    }
    assert tags["mlflow.runName"] == "named"


def test_a_running_run_is_read_back_without_an_end(tracker):
    info = tracker.get_run_info(tracker.start_run())
    assert (info["status"], info["end_time"]) == ("RUNNING", None)


def test_a_metric_that_is_not_a_number_is_read_back_as_such(tracker):
    run_id = log_run(tracker, [1.0, math.nan])
    assert math.isnan(tracker.get_run_info(run_id)["metrics"]["val/loss"])


def test_a_run_of_another_experiment_and_of_the_stock_client_is_read_back(tracker, client):
    experiment = client.create_experiment("other")
    run_id = client.create_run(experiment, run_name="theirs").info.run_id
    client.log_param(run_id, "a", "b")
    info = tracker.get_run_info(run_id)
    assert (info["experiment_id"], info["parameters"]) == (experiment, {"a": "b"})


@pytest.mark.parametrize("run_id", ["0" * 32, "", "no id at all"])
def test_a_run_that_does_not_exist_is_not_found(tracker, run_id):
    with pytest.raises(NotFoundError, match=f'"{run_id}" does not exist'):
        tracker.get_run_info(run_id)


@pytest.mark.parametrize(("compare", "best"), [(min, 0), ("min", 0), (max, 2), ("max", 2)], ids=repr)
def test_the_best_run_has_the_least_or_greatest_latest_value(tracker, compare, best):
    runs = [log_run(tracker, values, n=len(values)) for values in ([9, 1], [0.5, 2], [3])]
    found = tracker.get_best_run("val/loss", compare)
    assert found == {
        "run_id": runs[best],
        "metric_value": [1.0, 2.0, 3.0][best],
        "params": {"n": str([2, 2, 1][best])},
    }


def test_the_best_run_is_by_default_the_one_of_the_least_validation_loss(tracker):
    runs = [log_run(tracker, [value]) for value in (2, 1, 3)]
    assert tracker.get_best_run()["run_id"] == runs[1]


@pytest.mark.parametrize("metric", ["val/loss", "a b", "a.b-c_d:e/f g", "größe", "1", "order by"])
def test_a_metric_of_any_name_can_be_asked_for(tracker, metric):
    run_id = log_run(tracker, [1.0], metric)
    assert tracker.get_best_run(metric)["run_id"] == run_id


@pytest.mark.parametrize("compare", [min, max])
def test_a_run_that_is_at_nan_is_never_the_best(tracker, compare):
    best = log_run(tracker, [5.0])
    log_run(tracker, [-100.0, 100.0, math.nan])
    assert tracker.get_best_run("val/loss", compare)["run_id"] == best


@pytest.mark.parametrize(("compare", "best"), [(min, -math.inf), (max, math.inf)])
def test_an_infinite_value_can_be_the_best(tracker, compare, best):
    log_run(tracker, [0.0])
    run_id = log_run(tracker, [best])
    assert tracker.get_best_run("val/loss", compare)["run_id"] == run_id


@pytest.mark.parametrize("compare", [min, max])
def test_of_equal_runs_the_best_is_the_one_that_the_stock_search_puts_first(tracker, client, compare):
    for _ in range(5):
        log_run(tracker, [1.0])
    found = tracker.get_best_run("val/loss", compare)["run_id"]
    order = [f"metrics.`val/loss` {'ASC' if compare is min else 'DESC'}"]
    assert found == client.search_runs([tracker.experiment_id], order_by=order)[0].info.run_id


@pytest.mark.parametrize("values", [None, [math.nan]])
def test_without_a_number_there_is_no_best_run(tracker, values):
    if values:
        log_run(tracker, values)
    log_run(tracker, [1.0], metric="other")
    assert tracker.get_best_run("val/loss") is None


def test_deleted_runs_are_ignored(tracker, client):
    kept = log_run(tracker, [2.0])
    deleted = log_run(tracker, [1.0])
    tracker.flush()
    client.delete_run(deleted)
    assert tracker.get_best_run()["run_id"] == kept


def test_runs_of_other_experiments_are_ignored(tracker, uri):
    log_run(MLflowTracker(uri, experiment_name="other"), [1.0])
    assert tracker.get_best_run() is None


def test_an_unfinished_run_can_be_the_best(tracker):
    run_id = tracker.start_run()
    tracker.log_metrics({"val/loss": 1.0})
    assert tracker.get_best_run()["run_id"] == run_id


@pytest.mark.parametrize("compare", [sum, "minimum", "MIN", 1, lambda values: min(values)])
def test_another_way_to_compare_is_refused(tracker, compare):
    with pytest.raises(InvalidInputError, match="min or max"):
        tracker.get_best_run("val/loss", compare)


@pytest.mark.parametrize("metric", ["", "a//b", "val/loss ASC; DROP TABLE runs"])
def test_a_key_that_no_metric_can_have_is_refused(tracker, metric):
    with pytest.raises(InvalidInputError, match="metric key"):
        tracker.get_best_run(metric)
