"""Runs that a search has found, as tables of other libraries and as files."""

from __future__ import annotations

from ._native import Run
from ._table import TIMES, _Table

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike
    from typing import Any

INFO = ("run_id", "experiment_id", "status", "artifact_uri", "start_time", "end_time")


class RunList(_Table[Run]):
    """Runs in the order of the search: a `list` of `Run` that turns into a table.

    A table has the columns that `mlflow.search_runs` gives: `run_id`, `experiment_id`, `status`,
    `artifact_uri`, `start_time` and `end_time` (UTC), then `metrics.*`, `params.*` and `tags.*`, each
    in the order of its keys. A run that lacks a metric has NaN there, one that lacks a param or tag None.

    Example:
        >>> tracker = MLflowTracker("sqlite:///mlflow.db")
        >>> with tracker.run("first"):
        ...     tracker.log_metric("val/loss", 0.25)
        >>> [run.metrics for run in tracker.search_runs()]
        [{'val/loss': 0.25}]
    """

    __slots__ = ()

    def _columns(self) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {name: [getattr(run, name) for run in self] for name in INFO}
        for kind in ("metrics", "params", "tags"):
            # Each access to such a property makes a dict anew.
            values: list[dict[str, Any]] = [getattr(run, kind) for run in self]
            for key in sorted(set().union(*values)):
                columns[f"{kind}.{key}"] = [of_run.get(key) for of_run in values]
        return columns


def exporter(path: str | PathLike[str]) -> Callable[[RunList], None]:
    """Return a function that writes runs into a file, by the ending of its name.

    Raises:
        InvalidInputError: Another ending than .csv, .json or .parquet.
    """
    from pathlib import Path

    from .errors import InvalidInputError

    file = Path(path)
    writers = {".csv": _write_csv, ".json": _write_json, ".parquet": _write_parquet}
    write = writers.get(file.suffix.lower())
    if write is None:
        raise InvalidInputError(f"runs are exported to .csv, .json or .parquet, not to {str(path)!r}")
    if not file.parent.is_dir():
        raise InvalidInputError(f"runs cannot be exported to {str(path)!r}: there is no folder {file.parent}")
    if write is _write_parquet:
        from ._optional import need

        need("pyarrow.parquet", "export_runs to a .parquet file")

    def export(runs: RunList) -> None:
        import os

        # The runs go into a file beside it first, so that nobody reads half a file.
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            write(runs, part)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    return export


def _write_csv(runs: RunList, file: Any) -> None:
    import csv

    columns = runs._columns()
    for name in TIMES:
        columns[name] = [_iso(time) for time in columns[name]]
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _write_json(runs: RunList, file: Any) -> None:
    import json

    with file.open("w", encoding="utf-8") as stream:
        json.dump([_json(run) for run in runs], stream, indent=2, ensure_ascii=False, allow_nan=False)
        stream.write("\n")


def _write_parquet(runs: RunList, file: Any) -> None:
    from ._optional import need

    need("pyarrow.parquet", "export_runs to a .parquet file").write_table(runs.to_arrow(), file)


def _json(run: Run) -> dict[str, Any]:
    info = {name: getattr(run, name) for name in (*INFO, "run_name", "user_id", "lifecycle_stage")}
    for name in TIMES:
        info[name] = _iso(info[name])
    # JSON has no NaN and no infinities; MLflow's REST API uses these words for them.
    metrics = {key: _number(value) for key, value in run.metrics.items()}
    inputs = [
        {
            "name": it.name,
            "digest": it.digest,
            "source_type": it.source_type,
            "source": it.source,
            "schema": it.schema,
            "profile": it.profile,
            "tags": it.tags,
        }
        for it in run.inputs
    ]
    return {**info, "metrics": metrics, "params": run.params, "tags": run.tags, "inputs": inputs}


def _number(value: float) -> float | str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return value


def _iso(time: int | None) -> str | None:
    """Format a time as ISO 8601 has it, to the millisecond, in UTC.

    Other writers have stored microseconds there: what lies beyond the year 9999 is the number itself.
    """
    from datetime import datetime, timedelta, timezone

    if time is None:
        return None
    try:
        moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=time)
    except OverflowError:
        return str(time)
    return moment.isoformat(timespec="milliseconds")
