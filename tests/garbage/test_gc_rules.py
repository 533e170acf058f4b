"""Collecting garbage: the rules that keep runs, and the command that has all of them."""

from __future__ import annotations

import json
import re
import sqlite3
import time
from datetime import timedelta
from pathlib import Path

import pytest

from heimdall_tracking import (
    ConfigurationError,
    InvalidInputError,
    NotFoundError,
    collect_garbage,
    lifecycle,
)
from support.garbage import (
    EXPERIMENT,
    found,
    logged,
    rows_of,
    spared,
    started,
    stock,
    stock_files,
)


def test_runs_that_no_rule_keeps_lose_their_artifacts(place):
    tracker = started(place)
    worst, best, second = (logged(tracker, **{"val/loss": loss}) for loss in (0.9, 0.1, 0.2))
    without = logged(tracker)
    nan = logged(tracker, **{"val/loss": float("nan")})
    registered = logged(tracker, **{"val/loss": 5.0})
    tracker.register_model("m", f"runs:/{registered}/model")
    active = tracker.start_run()
    tracker.flush()
    rules = {"experiments": [EXPERIMENT], "keep_best": 2, "metric": "val/loss"}
    dry = collect_garbage(place.uri, **rules)
    reasons = {item.run_id: item.reason for item in dry.items}
    assert reasons.keys() == {worst, without, nan}
    assert reasons[worst] == "val/loss 0.9 is not among the 2 best"
    assert reasons[without] == "it has no val/loss"
    report = collect_garbage(place.uri, **rules, delete=True)
    assert report.complete
    assert spared(report).keys() == {registered}
    assert {path.split("/artifacts/")[0].split("/")[-1] for path in place.artifacts.files()} == {
        best,
        second,
        registered,
    }
    client = stock(place)
    assert client.get_run(worst).info.lifecycle_stage == "active"
    assert client.get_run(worst).data.metrics == {"val/loss": 0.9}
    assert client.get_run(active).info.status == "RUNNING"
    tracker.end_run()


def test_the_largest_are_the_best_where_that_is_said(disk):
    tracker = started(disk)
    low, high = (logged(tracker, accuracy=value) for value in (0.1, 0.9))
    report = collect_garbage(
        disk.uri, experiments=[EXPERIMENT], keep_best=1, metric="accuracy", maximize=True
    )
    assert found(report) == [("unkept run", low)]
    report = collect_garbage(disk.uri, experiments=[EXPERIMENT], keep_best=1, metric="accuracy")
    assert found(report) == [("unkept run", high)]


def test_all_but_the_registered_go_where_only_those_are_kept(disk, heimdall):
    tracker = started(disk)
    kept, goes = (logged(tracker) for _ in range(2))
    tracker.register_model("net", f"runs:/{kept}/model")
    done = heimdall("gc", "--uri", disk.uri, "--experiment", EXPERIMENT, "--keep-registered", "--json")
    assert done.returncode == 0, done.stderr
    assert [item["run_id"] for item in json.loads(done.stdout)["items"]] == [goes]
    report = collect_garbage(disk.uri, experiments=[EXPERIMENT], keep_registered=True, delete=True)
    assert found(report) == [("unkept run", goes)]
    assert list(spared(report)) == [kept]
    assert stock_files(stock(disk), kept) != []
    assert stock_files(stock(disk), goes) == []
    with pytest.raises(ConfigurationError, match="experiment"):
        collect_garbage(disk.uri, keep_registered=True)


def test_runs_can_go_instead_of_artifacts_and_are_restored(disk):
    tracker = started(disk)
    old, new = logged(tracker), logged(tracker)
    with sqlite3.connect(disk.uri.removeprefix("sqlite:///")) as connection:
        long_ago = int((time.time() - 91 * 86_400) * 1000)
        connection.execute("UPDATE runs SET end_time = ? WHERE run_uuid = ?", (long_ago, old))
    before = disk.artifacts.files()
    report = collect_garbage(
        disk.uri, experiments=[EXPERIMENT], keep_newer_than="90d", what="runs", delete=True
    )
    assert found(report) == [("unkept run", old)]
    assert report.items[0].reason == "it ended 91 d ago"
    client = stock(disk)
    stages = {run_id: client.get_run(run_id).info.lifecycle_stage for run_id in (old, new)}
    assert stages == {old: "deleted", new: "active"}
    assert disk.artifacts.files() == before
    client.restore_run(old)
    assert client.get_run(old).info.lifecycle_stage == "active"


def test_either_rule_keeps_a_run(disk):
    tracker = started(disk)
    runs = [logged(tracker, loss=loss) for loss in (0.1, 0.2, 0.3)]
    with sqlite3.connect(disk.uri.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE runs SET end_time = 1000 WHERE run_uuid IN (?, ?)", (runs[0], runs[1]))
    report = collect_garbage(
        disk.uri, experiments=[EXPERIMENT], keep_best=1, metric="loss", keep_newer_than="1d"
    )
    assert found(report) == [("unkept run", runs[1])]


def test_only_the_named_experiments_are_collected(disk):
    trackers = [started(disk, name) for name in ("one", "two")]
    runs = [logged(tracker) for tracker in trackers]
    for tracker, run_id in zip(trackers, runs, strict=True):
        tracker.delete_run(run_id)
    assert found(collect_garbage(disk.uri, experiments=["two"])) == [("deleted run", runs[1])]
    # Those of a deleted experiment as well.
    client = stock(disk)
    client.delete_experiment(client.get_experiment_by_name("one").experiment_id)
    assert {run_id for _, run_id in found(collect_garbage(disk.uri))} == set(runs)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"keep_newer_than": 0}, ConfigurationError, "name the experiments"),
        ({"keep_best": 1, "experiments": [EXPERIMENT]}, InvalidInputError, "come together"),
        ({"metric": "loss", "experiments": [EXPERIMENT]}, InvalidInputError, "come together"),
        ({"keep_best": 0, "metric": "loss", "experiments": [EXPERIMENT]}, InvalidInputError, "from 1 on"),
        ({"keep_best": 1, "metric": "los", "experiments": [EXPERIMENT]}, InvalidInputError, "no run of"),
        ({"what": "all"}, InvalidInputError, "artifacts or runs"),
        ({"older_than": "soon"}, InvalidInputError, "write 30d"),
        ({"older_than": ""}, InvalidInputError, "write 30d"),
        ({"older_than": -1}, InvalidInputError, "older_than"),
        ({"uploads_older_than": float("nan")}, InvalidInputError, "uploads_older_than"),
        ({"experiments": ["none such"]}, NotFoundError, "none such"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_goes(disk, arguments, error, says):
    tracker = started(disk)
    run_id = logged(tracker)
    deleted = logged(tracker)
    tracker.delete_run(deleted)
    before = disk.artifacts.files()
    with pytest.raises(error, match=says):
        collect_garbage(disk.uri, delete=True, purge=True, **arguments)
    assert disk.artifacts.files() == before
    assert stock(disk).get_run(run_id).info.lifecycle_stage == "active"


def test_a_collection_makes_no_database(tmp_path):
    with pytest.raises(ConfigurationError, match="no such database"):
        collect_garbage(f"sqlite:///{tmp_path}/typo.db")
    assert not (tmp_path / "typo.db").exists()


@pytest.mark.parametrize(
    ("age", "expected"),
    [("30d", 2_592_000), ("1.5h", 5_400), ("2d8h5m20s", 201_920), (7, 7), (timedelta(minutes=1), 60)],
)
def test_ages_are_read_as_mlflow_reads_them(age, expected):
    assert lifecycle.seconds(age) == expected


def test_the_command_lists_then_deletes(disk, heimdall):
    tracker = started(disk)
    run_id = logged(tracker)
    tracker.delete_run(run_id)
    before = disk.artifacts.files()
    done = heimdall("gc", MLFLOW_TRACKING_URI=disk.uri)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"would go: deleted run {run_id} of {EXPERIMENT}, 2 files, 12 B\n" in done.stdout
    assert "1 item, 2 files, 12 B would go; nothing was deleted\n--delete deletes it" in done.stdout
    assert disk.artifacts.files() == before
    done = heimdall("gc", "--uri", disk.uri, "--json")
    report = json.loads(done.stdout)
    assert (report["files"], report["bytes"], report["dry_run"]) == (2, 12, True)
    assert report["items"][0]["run_id"] == run_id
    done = heimdall("gc", "--uri", disk.uri, "--delete", "--purge", "--older-than", "0s")
    assert done.returncode == 0
    assert f"gone: deleted run {run_id} of {EXPERIMENT}, 2 files, 12 B, and the run for good" in done.stdout
    assert (disk.artifacts.files(), rows_of(disk.uri, run_id)) == ([], {})


def test_the_command_has_all_rules(disk, heimdall):
    tracker = started(disk)
    worse, better = (logged(tracker, loss=loss) for loss in (0.9, 0.1))
    rules = ["--experiment", EXPERIMENT, "--keep-best", 1, "--metric", "loss", "--keep-registered"]
    done = heimdall("gc", "--uri", disk.uri, *rules, "--what", "runs", "--delete")
    assert done.returncode == 0, done.stderr
    assert f"gone: unkept run {worse}" in done.stdout
    client = stock(disk)
    assert client.get_run(worse).info.lifecycle_stage == "deleted"
    assert client.get_run(better).info.lifecycle_stage == "active"


def test_the_document_names_options_that_exist_and_code_that_runs(disk, heimdall, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text()
    known = heimdall("gc", "--help").stdout
    assert {option for option in re.findall(r"--[a-z][a-z-]+", text) if option not in known} == set()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    tracker = started(disk, "sweep")
    runs = [logged(tracker, **{"val/loss": loss}) for loss in (0.1, 0.2, 0.3, 0.4)]
    names: dict = {}
    exec(code, names)
    assert found(names["report"]) == [("unkept run", runs[3])]


def test_the_command_says_what_is_wrong(disk, heimdall):
    started(disk)
    stock(disk).create_experiment("unknown", artifact_location="dbfs:/x")
    done = heimdall("gc", "--uri", disk.uri)
    assert done.returncode == 1
    assert "not looked into: dbfs:/x" in done.stdout
    done = heimdall("gc", "--uri", disk.uri, "--experiment", "none such")
    assert (done.returncode, done.stdout) == (1, "")
    assert 'experiment "none such" does not exist' in done.stderr
