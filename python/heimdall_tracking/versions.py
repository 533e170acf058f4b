"""Versions of a model beside each other, as a table."""

from __future__ import annotations

from ._native import ModelVersion, Run

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    import pandas
    import polars
    import pyarrow

    BaseList = list[dict[str, Any]]
else:
    BaseList = list

INFO = ("version", "stage", "aliases", "run_id")


class VersionList(BaseList):
    """Versions of a model by their numbers: a `list` of rows that turns into a table.

    A row is a dict with `version`, `stage`, `aliases`, `run_id` and `metrics.*`, the latest values of the
    run that made the version. Each row has all of the keys; a metric that its run lacks is None there.

    Example:
        >>> tracker = MLflowTracker("sqlite:///mlflow.db")
        >>> with tracker.run("first") as run:
        ...     tracker.log_metric("val/loss", 0.25)
        >>> version = tracker.register_model("compared", f"runs:/{run.run_id}/model")
        >>> [row["metrics.val/loss"] for row in tracker.compare_model_versions("compared")]
        [0.25]
    """

    __slots__ = ()

    def to_pandas(self) -> pandas.DataFrame:
        """Return the versions as a DataFrame of pandas; a missing metric is NaN.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        from ._optional import need

        pandas = need("pandas", "to_pandas")
        data: dict[str, Any] = {}
        for name, values in self._columns().items():
            if name.startswith("metrics."):
                values = [float("nan") if value is None else value for value in values]
            data[name] = values
        return pandas.DataFrame(data)

    def to_arrow(self) -> pyarrow.Table:
        """Return the versions as a table of Arrow; a missing metric is null, as it is no NaN.

        Raises:
            MissingPackageError: pyarrow is not installed.
        """
        from ._optional import need

        arrow = need("pyarrow", "to_arrow")

        def kind(name: str) -> Any:
            if name == "aliases":
                return arrow.list_(arrow.string())
            return arrow.float64() if name.startswith("metrics.") else arrow.string()

        columns = self._columns()
        return arrow.table({name: arrow.array(values, kind(name)) for name, values in columns.items()})

    def to_polars(self) -> polars.DataFrame:
        """Return the versions as a DataFrame of Polars; a missing metric is null, as it is no NaN.

        Raises:
            MissingPackageError: Polars is not installed.
        """
        from ._optional import need

        polars = need("polars", "to_polars")

        def kind(name: str) -> Any:
            if name == "aliases":
                return polars.List(polars.String)
            return polars.Float64 if name.startswith("metrics.") else polars.String

        columns = self._columns()
        return polars.DataFrame(columns, schema={name: kind(name) for name in columns})

    def _columns(self) -> dict[str, list[Any]]:
        names = list(self[0]) if self else list(INFO)
        return {name: [row[name] for row in self] for name in names}


def compared(found: list[tuple[ModelVersion, Run | None]], metrics: Iterable[str] | None) -> VersionList:
    """Return versions, each with its run, as rows with the metrics that are named, or with all of them."""
    values = [run.metrics if run is not None else {} for _, run in found]
    keys = sorted(set().union(*values)) if metrics is None else list(dict.fromkeys(metrics))
    rows = VersionList()
    for (version, _), of_run in zip(found, values, strict=True):
        row: dict[str, Any] = {
            "version": version.version,
            "stage": version.current_stage,
            "aliases": version.aliases,
            "run_id": version.run_id,
        }
        row.update({f"metrics.{key}": of_run.get(key) for key in keys})
        rows.append(row)
    return rows
