"""The bridged store gives what the stock store gives: the same calls on both, beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    RunStatus,
    RunTag,
    ViewType,
)
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking._tracking_service.utils import _get_store

from heimdall_tracking import MLflowTracker


@pytest.fixture(scope="module", params=["of a tracker", "of an entry point", "of PostgreSQL"])
def stores(request, tmp_path_factory):
    """A stock store and a bridged one, each with a database of its own."""
    tmp_path = tmp_path_factory.mktemp("stores")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("HEIMDALL_DIR", str(tmp_path / "heimdall"))
    theirs, uri = f"sqlite:///{tmp_path / 'theirs.db'}", f"sqlite:///{tmp_path / 'ours.db'}"
    if request.param == "of PostgreSQL":
        server = request.getfixturevalue("postgres_server")
        theirs, uri = server.create_database("theirs"), server.create_database("ours")
    tracker = None
    if request.param != "of an entry point":
        tracker = MLflowTracker(
            uri, artifact_uri=str(tmp_path / "artifacts"), experiment_name="x", strict=True
        )
    else:
        uri = f"heimdall+{uri}"
    stock = SqlAlchemyStore(theirs, str(tmp_path / "artifacts"))
    stock.create_experiment("x", str(tmp_path / "artifacts" / "1"), [])
    bridged = _get_store(uri)
    assert type(bridged).__name__ == "HeimdallTrackingStore"
    if tracker is None:
        bridged.create_experiment("x", str(tmp_path / "artifacts" / "1"), [])
    yield stock, bridged
    del tracker
    monkeypatch.undo()


def outcome(store: Any, call: Callable[[Any], Any]) -> Any:
    """What a call gives, in a form that can be compared: ids and times of the moment are left out."""
    try:
        return plain(call(store))
    except MlflowException as error:
        return f"{error.error_code}"


def plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        if value and isinstance(value[0], Metric) and len({metric.key for metric in value}) > 1:
            value = sorted(value, key=lambda metric: metric.key)
        return [plain(item) for item in value]
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if hasattr(value, "__dict__"):
        left_out = ("run_id", "run_uuid", "artifact_uri", "creation_time", "last_update_time", "digest")
        return {
            name.lstrip("_"): plain(item)
            for name, item in vars(value).items()
            if name.lstrip("_") not in left_out
        }
    if isinstance(value, dict):
        return {name: plain(item) for name, item in sorted(value.items())}
    return value


def made(store: Any) -> str:
    tags = [RunTag("kind", "demo"), RunTag("mlflow.runName", "one")]
    run_id = store.create_run("1", "user", 1000, tags, "one").info.run_id
    # The bridge knows the run by then, as in all calls but the first.
    store.set_tag(run_id, RunTag("begun", "1"))
    return run_id


DATASET = DatasetInput(
    Dataset("data", "digest", "local", "source"), [InputTag("mlflow.data.context", "train")]
)

CALLS: dict[str, Callable[[Any, str], Any]] = {
    "run": lambda store, run: store.get_run(run),
    "run of no id": lambda store, run: store.get_run("0" * 32),
    "run of a bad id": lambda store, run: store.log_metric("no/id", Metric("m", 1.0, 1, 0)),
    "run of two names": lambda store, run: store.create_run(
        "1", "user", 1, [RunTag("mlflow.runName", "a")], "b"
    ),
    "run of no experiment": lambda store, run: store.create_run("99", "user", 1, [], "a"),
    "run without a user": lambda store, run: store.create_run("1", "", 5, [], "a").data.tags,
    "metric": lambda store, run: (
        store.log_metric(run, Metric("m", 1.5, 10, 3)),
        store.get_run(run).data,
    ),
    "metric of infinity and NaN": lambda store, run: (
        store.log_metric(run, Metric("up", math.inf, 10, 0)),
        store.log_metric(run, Metric("down", -math.inf, 10, 0)),
        store.log_metric(run, Metric("none", math.nan, 10, 0)),
        store.get_run(run).data,
    ),
    "metric that is a text": lambda store, run: store.log_metric(run, Metric("m", "text", 10, 0)),
    "metric of a forbidden key": lambda store, run: store.log_metric(run, Metric("acc@1", 1.0, 10, 0)),
    "metric of no key": lambda store, run: store.log_metric(run, Metric(None, 1.0, 10, 0)),
    "metric before 1970": lambda store, run: store.log_metric(run, Metric("m", 1.0, -1, 0)),
    "history": lambda store, run: (
        [store.log_metric(run, Metric("m", float(n), n, n)) for n in range(20)],
        list(store.get_metric_history(run, "m")),
    ),
    "latest of equal steps": lambda store, run: (
        store.log_batch(
            run, [Metric("m", v, t, s) for v, t, s in ((1.0, 1, 2), (5.0, 2, 1), (3.0, 2, 2))], [], []
        ),
        store.get_run(run).data.metrics,
    ),
    "param": lambda store, run: (store.log_param(run, Param("p", "v")), store.get_run(run).data.params),
    "param twice": lambda store, run: (
        store.log_param(run, Param("p", "v")),
        store.log_param(run, Param("p", "v")),
        store.get_run(run).data.params,
    ),
    "param that changes": lambda store, run: (
        store.log_param(run, Param("p", "v")),
        store.log_param(run, Param("p", "w")),
    ),
    "param that changes in a batch": lambda store, run: (
        store.log_param(run, Param("p", "v")),
        store.log_batch(run, [], [Param("q", "1"), Param("p", "w")], []),
    ),
    "param twice in a batch": lambda store, run: store.log_batch(
        run, [], [Param("p", "1"), Param("p", "2")], []
    ),
    "param that is long": lambda store, run: (
        store.log_param(run, Param("p", "x" * 9000)),
        len(store.get_run(run).data.params["p"]),
    ),
    "param of a long key": lambda store, run: store.log_param(run, Param("p" * 251, "v")),
    "tag": lambda store, run: (store.set_tag(run, RunTag("t", "1")), store.get_run(run).data.tags),
    "tag that changes": lambda store, run: (
        store.set_tag(run, RunTag("t", "1")),
        store.set_tag(run, RunTag("t", "2")),
        store.get_run(run).data.tags,
    ),
    "tag with the name": lambda store, run: (
        store.set_tag(run, RunTag("mlflow.runName", "other")),
        store.get_run(run).info.run_name,
    ),
    "tag deleted": lambda store, run: (store.delete_tag(run, "kind"), store.get_run(run).data.tags),
    "tag deleted that is not there": lambda store, run: store.delete_tag(run, "none"),
    "tag of a forbidden key": lambda store, run: store.set_tag(run, RunTag("a//b", "1")),
    "batch": lambda store, run: (
        store.log_batch(run, [Metric("m", 1.0, 1, 1)], [Param("p", "1")], [RunTag("t", "1")]),
        store.get_run(run).data,
    ),
    "batch of too much": lambda store, run: store.log_batch(
        run, [Metric("m", 1.0, 1, n) for n in range(1001)], [], []
    ),
    "batch of one moment": lambda store, run: (
        store.log_batch(run, [Metric(f"layer.{n}/m", float(n), 7, 3) for n in range(5)], [], []),
        store.get_run(run).data,
    ),
    "batch of many moments": lambda store, run: (
        store.log_batch(run, [Metric("m", float(n), n, -n) for n in range(1000)], [], []),
        list(store.get_metric_history(run, "m")),
    ),
    "batch of other numbers": lambda store, run: (
        store.log_batch(run, [Metric("a", 3, 1, 1), Metric("b", np.float64(0.5), 1, 1)], [], []),
        store.log_batch(run, [Metric("c", np.float32(0.25), 1, 2)], [], []),
        store.get_run(run).data,
    ),
    "batch of keys": lambda store, run: (
        store.log_batch(run, [Metric("é:m", 1.0, 1, 1), Metric("..a", 1.0, 1, 1)], [], []),
    ),
    "batch of keys that are known": lambda store, run: (
        store.log_batch(run, [Metric("é:m/.a", 1.0, 1, 1)], [Param("a:b", "1")], [RunTag("ü.a", "1")]),
        store.get_run(run).data,
    ),
    "batch of texts": lambda store, run: (
        store.log_batch(run, [], [Param("p", "x" * 501), Param("q", "")], [RunTag("t", "")]),
        store.get_run(run).data,
    ),
    "batch of too many params": lambda store, run: store.log_batch(
        run, [], [Param(f"p{n}", "1") for n in range(101)], []
    ),
    "batch of too many of all": lambda store, run: store.log_batch(
        run, [Metric("m", 1.0, 1, n) for n in range(1000)], [Param("p", "1")], []
    ),
    "batch before 1970": lambda store, run: store.log_batch(run, [Metric("m", 1.0, -1, 1)], [], []),
    "batch of bools": lambda store, run: store.log_batch(run, [Metric("m", True, 1, 1)], [], []),
    "batch without lists": lambda store, run: (
        store.log_batch(run, (Metric("m", 1.0, 1, 1),), (Param("p", "1"),), (RunTag("t", "1"),)),
        store.get_run(run).data,
    ),
    "batch whose param changes": lambda store, run: (
        outcome(store, lambda _: store.log_batch(run, [], [Param("p", "1")], [])),
        outcome(store, lambda _: store.log_batch(run, [Metric("m", 1.0, 1, 1)], [Param("p", "2")], [])),
        store.get_run(run).data,
    ),
    "batch of nothing": lambda store, run: store.log_batch(run, [], [], []),
    "batch with a bad key": lambda store, run: (
        store.log_batch(run, [Metric("good", 1.0, 1, 1), Metric("b@d", 1.0, 1, 1)], [], []),
    ),
    "end": lambda store, run: (
        store.update_run_info(run, RunStatus.FINISHED, 2000, None),
        store.get_run(run).info,
    ),
    "end and resumption": lambda store, run: (
        store.update_run_info(run, RunStatus.FAILED, 2000, None).status,
        store.update_run_info(run, RunStatus.RUNNING, None, "renamed").status,
        store.get_run(run).info.run_name,
    ),
    "name": lambda store, run: (
        store.update_run_info(run, None, None, "renamed").run_name,
        store.get_run(run).data.tags["mlflow.runName"],
    ),
    "deleted run": lambda store, run: (store.delete_run(run), store.get_run(run).info.lifecycle_stage),
    "metric of a deleted run": lambda store, run: (
        store.delete_run(run),
        store.log_batch(run, [Metric("m", 1.0, 1, 1)], [], []),
    ),
    "restored run": lambda store, run: (
        store.delete_run(run),
        store.restore_run(run),
        store.log_metric(run, Metric("m", 1.0, 1, 1)),
        store.get_run(run).data.metrics,
    ),
    "inputs": lambda store, run: (store.log_inputs(run, [DATASET]), store.get_run(run).inputs),
    "inputs of one dataset": lambda store, run: (
        store.log_inputs(run, [DATASET, DatasetInput(DATASET.dataset, [InputTag("other", "tag")])]),
        store.log_inputs(run, [DatasetInput(DATASET.dataset, [InputTag("third", "tag")])]),
        store.get_run(run).inputs,
    ),
    "inputs with a tag that is long": lambda store, run: store.log_inputs(
        run, [DatasetInput(DATASET.dataset, [InputTag("long", "x" * 501)])]
    ),
    "inputs of no dataset": lambda store, run: store.log_inputs(run, [DatasetInput(None, [])]),
    "inputs of no run": lambda store, run: store.log_inputs("0" * 32, [DATASET]),
    "no inputs": lambda store, run: store.log_inputs(run),
    "search": lambda store, run: (
        store.log_metric(run, Metric("sought", 1.0, 1, 1)),
        store.search_runs(["1"], "metrics.sought = 1", ViewType.ACTIVE_ONLY, 10, [], None),
    ),
    "experiments": lambda store, run: [it.name for it in store.search_experiments()],
    "experiment by name": lambda store, run: store.get_experiment_by_name("x").experiment_id,
    "experiment of a taken name": lambda store, run: store.create_experiment("x", None, []),
    "experiment": lambda store, run: store.get_experiment(store.create_experiment("new", "/there", [])).name,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_gives_what_the_stock_store_gives(stores, name):
    found = [outcome(store, lambda store: CALLS[name](store, made(store))) for store in stores]
    assert found[1] == found[0]
