"""Batches: metrics, params and tags in one call, all of it or nothing."""

from __future__ import annotations

import math

import pytest

from heimdall_tracking import InvalidInputError, RunStateError, WrongTypeError


def test_the_stock_client_reads_a_batch_as_it_reads_its_own(tracker, client):
    from mlflow.entities import Metric, Param, RunTag

    metrics = [Metric("loss", 1 / (step + 1), 1000 + step, step) for step in range(20)]
    metrics += [Metric("acc", math.nan, 7, -3), Metric("acc", math.inf, 8, -2)]
    params = [Param("lr", "0.1"), Param("layers", "[1, 2]")]
    tags = [RunTag("kind", "batch"), RunTag("size", "2")]
    ours = tracker.start_run()
    tracker.log_batch(metrics, params, tags)
    tracker.flush()
    theirs = client.create_run(tracker.experiment_id).info.run_id
    client.log_batch(theirs, metrics, params, tags)
    mine, stock = client.get_run(ours).data, client.get_run(theirs).data
    assert mine.params == stock.params
    assert {"kind": "batch", "size": "2"}.items() <= mine.tags.items()
    for key in ("loss", "acc"):
        points = [
            [(point.step, point.timestamp, str(point.value)) for point in client.get_metric_history(run, key)]
            for run in (ours, theirs)
        ]
        assert points[0] == points[1]
        assert str(mine.metrics[key]) == str(stock.metrics[key])


def test_tuples_and_mappings_do_as_well(tracker, client):
    run_id = tracker.start_run()
    tracker.log_batch(
        metrics=[("a", 1), ("a", 2, 5), ("a", 3, 6, 1234), ("b", 4, None, None)],
        params={"lr": 0.1, "layers": [1]},
        tags={"n": 1},
    )
    tracker.flush()
    data = client.get_run(run_id).data
    assert (data.metrics, data.params) == ({"a": 3.0, "b": 4.0}, {"lr": "0.1", "layers": "[1]"})
    assert data.tags["n"] == "1"
    history = {point.step: point for point in client.get_metric_history(run_id, "a")}
    assert sorted(history) == [0, 5, 6]
    assert history[6].timestamp == 1234
    assert history[0].timestamp > 10**12


def test_a_batch_may_be_longer_than_the_stock_client_takes(tracker, client):
    run_id = tracker.start_run()
    metrics = ((f"m{i % 50}", i, i, 10**12 + i) for i in range(12_000))
    tracker.log_batch(metrics, {f"p{i}": i for i in range(1200)}, {f"t{i}": i for i in range(1200)})
    tracker.flush()
    data = client.get_run(run_id).data
    assert (len(data.metrics), len(data.params)) == (50, 1200)
    assert data.tags["t1199"] == "1199"
    assert len(client.get_metric_history(run_id, "m7")) == 240


@pytest.mark.strict
@pytest.mark.parametrize(
    ("batch", "error"),
    [
        ({"metrics": [("bad", "1")]}, WrongTypeError),
        ({"metrics": [("bad//key", 1)]}, InvalidInputError),
        ({"metrics": [("bad", 1, 0, -1)]}, InvalidInputError),
        ({"metrics": [("bad", 1, 2**63)]}, InvalidInputError),
        ({"metrics": [("bad", 1, 0.5)]}, WrongTypeError),
        ({"metrics": [("bad", 1, True)]}, WrongTypeError),
        ({"metrics": [("bad",)]}, InvalidInputError),
        ({"params": {"bad//key": 1}}, InvalidInputError),
        ({"params": {"bad": "a\0b"}}, InvalidInputError),
        ({"tags": {"bad": "\ud800"}}, InvalidInputError),
        ({"tags": {7: 1}}, WrongTypeError),
    ],
)
def test_one_bad_thing_in_a_batch_refuses_all_of_it(tracker, batch, error):
    run_id = tracker.start_run()
    good = {"metrics": [("good", 1)], "params": {"good": 1}, "tags": {"good": 1}}
    both = {
        kind: {**good[kind], **batch.get(kind, {})} if kind != "metrics" else good[kind] + batch.get(kind, [])
        for kind in good
    }
    with pytest.raises(error, match=r"bad|7"):
        tracker.log_batch(**both)
    run = tracker.get_run(run_id)
    assert (run.metrics, run.params) == ({}, {})
    assert "good" not in run.tags


@pytest.mark.strict
def test_two_values_of_one_param_in_a_batch_are_refused(tracker):
    from mlflow.entities import Param

    run_id = tracker.start_run()
    with pytest.raises(InvalidInputError, match="lr"):
        tracker.log_batch(params=[Param("lr", "1"), Param("lr", "2")])
    tracker.log_batch(params=[Param("lr", "1"), Param("lr", "1")])
    assert tracker.get_run(run_id).params == {"lr": "1"}


def test_an_empty_batch_is_fine(tracker):
    tracker.start_run()
    tracker.log_batch()
    tracker.log_batch([], {}, {})


def test_a_batch_needs_a_run(tracker):
    with pytest.raises(RunStateError, match="log_batch"):
        tracker.log_batch(params={"a": 1})
