"""Versions of a model beside each other, as a table."""

from __future__ import annotations

from ._native import ModelVersion, Run
from ._table import _Table

# Spelled out for the same reason as in `settings`.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any


INFO = ("version", "stage", "aliases", "run_id")


class VersionList(_Table["dict[str, Any]"]):
    """Versions of a model by their numbers: a `list` of rows that turns into a table.

    A row is a dict with `version`, `stage`, `aliases`, `run_id` and `metrics.*`, the latest values of the
    run that made the version. Each row has all of the keys; a metric that its run lacks is None there.

    Example:
        >>> tracker = MLflowTracker("sqlite:///mlflow.db")
        >>> with tracker.run("first") as run:
        ...     tracker.log_metric("val/loss", 0.25)
        ...     tracker.log_text("weights", "model/weights.txt")
        >>> version = tracker.register_model("compared", f"runs:/{run.run_id}/model")
        >>> [row["metrics.val/loss"] for row in tracker.compare_model_versions("compared")]
        [0.25]
    """

    __slots__ = ()

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
