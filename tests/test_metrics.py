"""Metrics: every point arrives, as the stock client would have logged it."""

from __future__ import annotations

import contextlib
import math
import random
import sqlite3
import time
from decimal import Decimal
from fractions import Fraction
from threading import Thread
from types import MappingProxyType

import numpy as np
import pytest

from heimdall_tracking import InvalidInputError, WrongTypeError

NAN, INFINITY = math.nan, math.inf
NUMBERS = [2, 2**53, 0.5, Fraction(1, 2), Decimal("0.5"), np.float16(0.5), np.float32(0.5)]
NUMBERS += [np.float64(0.5), np.int64(-3), np.uint8(255), np.array(0.5), np.array([0.5])]


def test_the_stock_client_reads_every_point_as_it_was_logged(tracker, client):
    points = [(0, 1.5), (1, -0.25), (5, 1e-300), (-3, 1e300), (2**63 - 1, 0.1), (-(2**63), 2.0)]
    run_id = tracker.start_run()
    before = time.time_ns() // 1_000_000
    for step, value in points:
        tracker.log_metrics({"val/loss": value}, step=step)
    after = time.time_ns() // 1_000_000
    tracker.flush()
    history = client.get_metric_history(run_id, "val/loss")
    assert {(point.step, point.value) for point in history} == set(points)
    assert len(history) == len(points)
    assert all(before <= point.timestamp <= after for point in history)


def test_a_point_without_a_step_is_at_step_zero(tracker, client):
    run_id = tracker.start_run()
    tracker.log_metrics({"a": 1})
    tracker.log_metrics({"b": 1}, step=None)
    tracker.flush()
    steps = [client.get_metric_history(run_id, key)[0].step for key in "ab"]
    assert steps == [0, 0]


def test_all_values_of_a_call_have_one_time(tracker, client):
    run_id = tracker.start_run()
    tracker.log_metrics({f"m{i}": i for i in range(50)}, step=1)
    tracker.flush()
    times = {client.get_metric_history(run_id, f"m{i}")[0].timestamp for i in range(50)}
    assert len(times) == 1


@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY], ids=str)
def test_what_is_not_finite_is_stored_as_the_stock_client_stores_it(tracker, client, value):
    ours = tracker.start_run()
    tracker.log_metrics({"m": value}, step=2)
    tracker.flush()
    theirs = client.create_run(tracker.experiment_id).info.run_id
    client.log_metric(theirs, "m", value, step=2)
    histories = [client.get_metric_history(run_id, "m") for run_id in (ours, theirs)]
    assert len({(str(point.value), point.step) for [point] in histories}) == 1
    assert len({str(client.get_run(run_id).data.metrics["m"]) for run_id in (ours, theirs)}) == 1


def test_the_same_value_again_at_the_same_step_is_one_point_per_moment(tracker, client):
    run_id = tracker.start_run()
    for _ in range(200):
        tracker.log_metrics({"m": 0.5}, step=1)
    tracker.flush()
    history = client.get_metric_history(run_id, "m")
    assert {(point.value, point.step) for point in history} == {(0.5, 1)}
    assert len(history) == len({point.timestamp for point in history})


@pytest.mark.parametrize("seed", range(3))
def test_the_latest_values_are_those_that_the_stock_store_computes(tracker, client, db, seed):
    rng = random.Random(seed)
    ours = tracker.start_run()
    for _ in range(60):
        value = rng.choice([0.0, 1.5, -1.0, NAN, INFINITY, -INFINITY])
        tracker.log_metrics({rng.choice("ab"): value}, step=rng.randint(-2, 2))
        if rng.random() < 0.2:
            tracker.flush()
    tracker.flush()
    theirs = client.create_run(tracker.experiment_id).info.run_id
    columns = "key, value, timestamp, step, is_nan"
    with contextlib.closing(sqlite3.connect(db)) as connection:
        points = f"SELECT {columns} FROM metrics WHERE run_uuid = ? ORDER BY rowid"
        for key, value, timestamp, step, is_nan in connection.execute(points, [ours]).fetchall():
            client.log_metric(theirs, key, NAN if is_nan else value, timestamp, step)
        latest = f"SELECT {columns} FROM latest_metrics WHERE run_uuid = ? ORDER BY key"
        results = [connection.execute(latest, [run_id]).fetchall() for run_id in (ours, theirs)]
    assert results[0] == results[1]
    assert len(results[0]) == 2


@pytest.mark.parametrize(
    "value",
    NUMBERS,
    ids=lambda value: f"{type(value).__name__} {value}",
)
def test_everything_that_is_one_number_is_taken(tracker, value):
    run_id = tracker.start_run()
    tracker.log_metrics({"m": value})
    expected = float(value.item() if hasattr(value, "item") else value)
    assert tracker.get_run_info(run_id)["metrics"] == {"m": expected}


@pytest.mark.filterwarnings("error")
def test_a_tensor_without_dimensions_is_taken_also_where_it_needs_a_gradient(tracker):
    torch = pytest.importorskip("torch")
    run_id = tracker.start_run()
    loss = (torch.ones(3, requires_grad=True) * 0.5).mean()
    tracker.log_metrics({"loss": loss, "half": torch.tensor(0.5, dtype=torch.float16)}, step=1)
    assert tracker.get_run_info(run_id)["metrics"] == {"loss": 0.5, "half": 0.5}


@pytest.mark.parametrize("step", [7, np.int64(7), np.uint8(7)], ids=lambda step: str(type(step)))
def test_everything_that_is_a_whole_number_is_taken_as_step(tracker, client, step):
    run_id = tracker.start_run()
    tracker.log_metrics({"m": 1}, step=step)
    tracker.flush()
    assert client.get_metric_history(run_id, "m")[0].step == 7


@pytest.mark.strict
@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), np.array(True), "0.5", b"1", None, [1.0], {}, 1j, object(), np.array([1.0, 2.0])],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_number_is_refused_and_none_of_the_call_is_logged(tracker, value):
    run_id = tracker.start_run()
    with pytest.raises(WrongTypeError, match="bad"):
        tracker.log_metrics({"good": 1.0, "bad": value})
    assert tracker.get_run_info(run_id)["metrics"] == {}


@pytest.mark.strict
def test_a_number_beyond_a_float_is_refused(tracker):
    tracker.start_run()
    with pytest.raises(InvalidInputError, match="big"):
        tracker.log_metrics({"big": 10**400})


@pytest.mark.strict
@pytest.mark.parametrize(
    ("metrics", "error"), [({"good": 1, "": 2}, InvalidInputError), ({"good": 1, 7: 2}, WrongTypeError)]
)
def test_a_bad_key_is_refused_and_none_of_the_call_is_logged(tracker, metrics, error):
    run_id = tracker.start_run()
    with pytest.raises(error):
        tracker.log_metrics(metrics)
    assert tracker.get_run_info(run_id)["metrics"] == {}


def test_more_metrics_than_the_stock_client_takes_at_once_arrive(tracker, client):
    run_id = tracker.start_run()
    metrics = {f"group {i % 7}/metric {i}": i / 3 for i in range(2500)}
    tracker.log_metrics(MappingProxyType(metrics), step=4)
    tracker.flush()
    assert client.get_run(run_id).data.metrics == metrics


def test_points_logged_from_many_threads_all_arrive(tracker, client):
    run_id = tracker.start_run()

    def log(name: int) -> None:
        for step in range(250):
            tracker.log_metrics({f"thread {name}": step}, step=step)

    threads = [Thread(target=log, args=[name]) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tracker.flush()
    for name in range(4):
        history = client.get_metric_history(run_id, f"thread {name}")
        assert [(point.step, point.value) for point in history] == [(i, i) for i in range(250)]


def test_logging_nothing_is_fine(tracker):
    run_id = tracker.start_run()
    tracker.log_metrics({})
    tracker.log_params({})
    assert tracker.get_run_info(run_id)["metrics"] == {}


def test_one_metric_is_logged_as_the_stock_client_logs_it(tracker, client):
    ours = tracker.start_run()
    tracker.log_metric("val/loss", np.float32(0.5), step=3, timestamp=1234)
    tracker.log_metric("val/loss", 1)
    tracker.flush()
    theirs = client.create_run(tracker.experiment_id).info.run_id
    client.log_metric(theirs, "val/loss", 0.5, timestamp=1234, step=3)
    first, second = client.get_metric_history(ours, "val/loss")
    (stock,) = client.get_metric_history(theirs, "val/loss")
    assert (first.value, first.step, first.timestamp) == (stock.value, stock.step, stock.timestamp)
    assert (second.value, second.step) == (1.0, 0)


def test_all_values_of_a_call_can_be_given_a_time(tracker, client):
    run_id = tracker.start_run()
    tracker.log_metrics({"a": 1, "b": 2}, step=1, timestamp=0)
    tracker.flush()
    assert [client.get_metric_history(run_id, key)[0].timestamp for key in "ab"] == [0, 0]


@pytest.mark.strict
def test_a_time_before_1970_is_refused(tracker):
    tracker.start_run()
    for call in (lambda: tracker.log_metric("m", 1, 0, -1), lambda: tracker.log_metrics({"m": 1}, 0, -1)):
        with pytest.raises(InvalidInputError, match=r"m.*-1"):
            call()


@pytest.mark.strict
def test_half_a_character_in_a_key_is_refused_and_named(tracker):
    tracker.start_run()
    with pytest.raises(InvalidInputError, match=r"metric.*half.*surrogate"):
        tracker.log_metrics({"half\ud83d": 1})
