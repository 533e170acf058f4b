"""Questions: one run read back, the best run found."""

from __future__ import annotations

import math

import pytest

from heimdall_tracking import InvalidInputError, MLflowTracker, NotFoundError, Run


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


def test_a_run_is_read_back_as_the_stock_client_reads_it(tracker, client):
    run_id = tracker.start_run("named")
    tracker.log_params({"lr": 0.1})
    tracker.log_metric("loss", 2.0, step=1)
    tracker.end_run()
    mine, stock = tracker.get_run(run_id), client.get_run(run_id)
    names = ["run_id", "run_name", "experiment_id", "user_id", "status", "start_time", "end_time"]
    names += ["lifecycle_stage", "artifact_uri"]
    assert [getattr(mine, name) for name in names] == [getattr(stock.info, name) for name in names]
    assert (mine.params, mine.metrics, mine.tags) == (stock.data.params, stock.data.metrics, stock.data.tags)
    assert mine.inputs == []
    assert mine == tracker.get_run(run_id)


def test_a_run_shows_what_it_is_and_cannot_be_changed(tracker):
    run_id = log_run(tracker, [0.25], name="<b>")
    run = tracker.get_run(run_id)
    assert isinstance(run, Run)
    assert run_id in repr(run)
    assert "'val/loss': 0.25" in repr(run)
    assert "&lt;b&gt;" in run._repr_html_()  # type: ignore[attr-defined]
    assert "<b>&lt;" not in run._repr_html_().partition("</caption>")[2]  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        run.status = "FAILED"


def test_a_history_is_that_of_the_stock_client(tracker, client):
    run_id = log_run(tracker, [1.0, math.nan, 3.0, math.inf])
    mine, stock = (
        tracker.get_metric_history(run_id, "val/loss"),
        client.get_metric_history(run_id, "val/loss"),
    )
    assert [(str(p.value), p.step, p.timestamp) for p in mine] == [
        (str(p.value), p.step, p.timestamp) for p in stock
    ]
    assert repr(mine[0]).startswith("MetricPoint(value=1.0, step=0, timestamp=")


def test_a_metric_that_a_run_does_not_have_has_no_history(tracker):
    assert tracker.get_metric_history(log_run(tracker, []), "never") == []


@pytest.mark.parametrize("run_id", ["0" * 32, "no id"])
def test_a_run_that_does_not_exist_has_no_history(tracker, run_id):
    with pytest.raises(NotFoundError, match=run_id):
        tracker.get_metric_history(run_id, "loss")


def test_experiments_are_those_that_the_stock_client_lists(tracker, client):
    from mlflow.entities import ViewType

    client.create_experiment("kept", tags={"team": "rf"})
    client.delete_experiment(client.create_experiment("deleted"))
    for view, stock_view in [
        ("active_only", ViewType.ACTIVE_ONLY),
        ("deleted_only", ViewType.DELETED_ONLY),
        ("all", ViewType.ALL),
    ]:
        mine, stock = tracker.list_experiments(view), client.search_experiments(stock_view)
        names = ["experiment_id", "name", "artifact_location", "lifecycle_stage", "creation_time", "tags"]
        assert [[getattr(it, name) for name in names] for it in mine] == [
            [getattr(it, name) for name in names] for it in stock
        ]
    with pytest.raises(InvalidInputError, match="active_only"):
        tracker.list_experiments("some")


def test_an_experiment_is_found_by_name_by_id_and_as_the_tracker_s_own(tracker, client):
    other = client.create_experiment("other")
    assert tracker.get_experiment().name == "tests"
    assert tracker.get_experiment("other") == tracker.get_experiment(other)
    assert tracker.get_experiment(other).experiment_id == other
    for unknown in ("unknown", "123456"):
        with pytest.raises(NotFoundError, match=unknown):
            tracker.get_experiment(unknown)


def test_a_run_is_deleted_and_restored(tracker, client):
    run_id = log_run(tracker, [1.0])
    tracker.delete_run(run_id)
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"
    assert tracker.search_runs() == []
    assert [run.run_id for run in tracker.search_runs(view="deleted_only")] == [run_id]
    assert len(tracker.search_runs(view="all")) == 1
    tracker.restore_run(run_id)
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    for call in (tracker.delete_run, tracker.restore_run):
        with pytest.raises(NotFoundError):
            call("0" * 32)


@pytest.mark.parametrize("by", ["name", "id"])
def test_an_experiment_is_deleted_and_restored_with_its_runs(tracker, uri, client, by):
    other = MLflowTracker(uri, experiment_name="other")
    run_id = log_run(other, [1.0])
    wanted = "other" if by == "name" else other.experiment_id
    other.flush()
    tracker.delete_experiment(wanted)
    assert client.get_experiment(other.experiment_id).lifecycle_stage == "deleted"
    assert client.get_run(run_id).info.lifecycle_stage == "deleted"
    tracker.restore_experiment(wanted)
    assert client.get_experiment(other.experiment_id).lifecycle_stage == "active"
    assert client.get_run(run_id).info.lifecycle_stage == "active"


def test_a_search_finds_what_its_filter_says_in_the_order_that_is_asked_for(tracker):
    runs = [log_run(tracker, [value], kind=kind) for value, kind in [(3, "a"), (1, "a"), (2, "b")]]
    found = tracker.search_runs("params.kind = 'a'", order_by="metrics.`val/loss` ASC")
    assert [run.run_id for run in found] == [runs[1], runs[0]]
    found = tracker.search_runs(order_by=["metrics.`val/loss` DESC"], max_results=2)
    assert [run.run_id for run in found] == [runs[0], runs[2]]
    assert tracker.search_runs(max_results=0) == []


def test_a_search_can_look_in_other_experiments(tracker, uri):
    other = MLflowTracker(uri, experiment_name="other")
    theirs = log_run(other, [1.0])
    other.flush()
    mine = log_run(tracker, [1.0])
    found = {run.run_id for run in tracker.search_runs(experiment_names=["other", "tests"])}
    assert found == {mine, theirs}
    assert tracker.search_runs(experiment_names=[]) == []
    with pytest.raises(NotFoundError, match="missing"):
        tracker.search_runs(experiment_names=["missing"])


@pytest.mark.parametrize(
    "search",
    [{"filter": "nonsense"}, {"order_by": "nonsense"}, {"view": "some"}, {"max_results": -1}],
    ids=str,
)
def test_a_search_that_mlflow_would_refuse_is_refused(tracker, search):
    with pytest.raises(InvalidInputError):
        tracker.search_runs(**search)


def test_the_best_run_can_be_one_of_those_that_a_filter_finds(tracker):
    log_run(tracker, [1.0], kind="a")
    second = log_run(tracker, [2.0], kind="b")
    assert tracker.get_best_run(filter="params.kind = 'b'")["run_id"] == second
    assert tracker.get_best_run(filter="params.kind = 'c'") is None
