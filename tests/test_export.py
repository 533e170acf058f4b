"""Found runs as tables and files: the columns of `mlflow.search_runs`, the values as they were logged."""

from __future__ import annotations

import csv
import json
import math
from datetime import datetime, timezone

import pytest

from heimdall_tracking import InvalidInputError, MissingPackageError, RunList


@pytest.fixture
def runs(tracker) -> list[str]:
    """Ids of three different runs, the one that started last first."""
    ids = []
    with tracker.run("first", tags={"only": "here"}) as run:
        tracker.log_params({"lr": 0.1, "text": '=1+1,"quoted"\nline'})
        tracker.log_metrics({"val/loss": 0.1 + 0.2, "nan": math.nan})
    ids.append(run.run_id)
    with tracker.run("second") as run:
        tracker.log_params({"lr": 0.2})
        tracker.log_metrics({"val/loss": math.inf})
    ids.append(run.run_id)
    ids.append(tracker.start_run("third, still running"))
    tracker.flush()
    found = [run.run_id for run in tracker.search_runs()]
    assert set(found) == set(ids)
    return found


def test_a_search_answers_with_runs_in_the_order_of_the_stock_client(tracker, client, runs):
    found = tracker.search_runs()
    stock = client.search_runs([tracker.experiment_id])
    assert isinstance(found, RunList)
    assert isinstance(found, list)
    assert [run.run_id for run in found] == [run.info.run_id for run in stock]
    for mine, theirs in zip(found, stock, strict=True):
        assert (mine.params, mine.tags) == (theirs.data.params, theirs.data.tags)
        assert (mine.status, mine.start_time, mine.end_time) == (
            theirs.info.status,
            theirs.info.start_time,
            theirs.info.end_time,
        )
        assert (mine.artifact_uri, mine.user_id) == (
            theirs.info.artifact_uri,
            theirs.data.tags["mlflow.user"],
        )


def test_a_dataframe_is_that_of_mlflow(tracker, fluent, runs):
    pandas = pytest.importorskip("pandas")
    theirs = fluent.search_runs([tracker.experiment_id])
    mine = tracker.search_runs().to_pandas()
    assert list(mine.columns[:6]) == list(theirs.columns[:6])
    pandas.testing.assert_frame_equal(mine, theirs[list(mine.columns)])
    assert len(mine.columns) == len(theirs.columns)


def test_a_dataframe_of_no_runs_has_the_columns_that_every_run_has(tracker):
    pytest.importorskip("pandas")
    frame = tracker.search_runs().to_pandas()
    assert list(frame.columns) == [
        "run_id",
        "experiment_id",
        "status",
        "artifact_uri",
        "start_time",
        "end_time",
    ]
    assert len(frame) == 0


def test_a_table_of_arrow_tells_nan_from_nothing(tracker, runs):
    pytest.importorskip("pyarrow")
    rows = {row["run_id"]: row for row in tracker.search_runs().to_arrow().to_pylist()}
    nans = [rows[run_id]["metrics.nan"] for run_id in runs]
    assert sum(value is None for value in nans) == 2
    assert sum(value is not None and math.isnan(value) for value in nans) == 1
    assert {row["end_time"] for row in rows.values()} >= {None}
    assert all(row["start_time"].tzinfo is not None for row in rows.values())


def test_a_dataframe_of_polars_tells_nan_from_nothing(tracker, runs):
    pytest.importorskip("polars")
    frame = tracker.search_runs().to_polars()
    assert frame["metrics.nan"].null_count() == 2
    assert frame["metrics.nan"].is_nan().sum() == 1
    assert frame["run_id"].to_list() == runs


def test_a_file_of_csv_has_every_value_as_it_was_logged(tracker, runs, tmp_path):
    tracker.export_runs(tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["tags.mlflow.runName"]: row for row in csv.DictReader(file)}
    first, third = rows["first"], rows["third, still running"]
    assert [row["run_id"] for row in rows.values()] == runs
    assert first["params.text"] == '=1+1,"quoted"\nline'
    assert float(first["metrics.val/loss"]) == 0.1 + 0.2
    assert (first["metrics.nan"], rows["second"]["metrics.nan"]) == ("nan", "")
    assert (third["params.lr"], third["end_time"]) == ("", "")
    started = datetime.fromisoformat(first["start_time"])
    assert started.utcoffset().total_seconds() == 0
    assert abs((datetime.now(timezone.utc) - started).total_seconds()) < 600


def test_a_file_of_json_is_strict_and_has_every_value(tracker, client, runs, tmp_path):
    tracker.export_runs(str(tmp_path / "runs.json"))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = (tmp_path / "runs.json").read_text(encoding="utf-8")
    exported = json.loads(text, parse_constant=refuse)
    assert [run["run_id"] for run in exported] == runs
    for run in exported:
        stock = client.get_run(run["run_id"]).data
        assert (run["params"], run["tags"]) == (stock.params, stock.tags)
    (first,) = [run for run in exported if run["run_name"] == "first"]
    assert first["metrics"] == {"val/loss": 0.1 + 0.2, "nan": "NaN"}


def test_a_file_of_parquet_is_the_table_of_arrow(tracker, runs, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    tracker.export_runs(tmp_path / "runs.PARQUET")
    table = parquet.read_table(tmp_path / "runs.PARQUET")
    assert table.column("run_id").to_pylist() == runs
    assert table.schema == tracker.search_runs().to_arrow().schema


def test_a_file_that_is_there_is_replaced_and_nothing_lies_beside_it(tracker, runs, tmp_path):
    folder = tmp_path / "exports"
    folder.mkdir()
    (folder / "runs.csv").write_text("old")
    tracker.export_runs(folder / "runs.csv")
    assert [file.name for file in folder.iterdir()] == ["runs.csv"]
    assert "old" not in (folder / "runs.csv").read_text()


@pytest.mark.parametrize("name", ["runs.txt", "runs", "runs.csv.gz", "missing/runs.csv"])
def test_another_file_is_refused_and_the_store_is_not_asked(tracker, tmp_path, name):
    with pytest.raises(InvalidInputError, match="runs"):
        tracker.export_runs(tmp_path / name, filter="no filter at all")
    assert not (tmp_path / name).exists()


def test_a_package_that_is_missing_is_named(tracker, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingPackageError, match="pip install polars"):
        tracker.search_runs().to_polars()
