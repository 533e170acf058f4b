"""Collection of garbage: files and runs that nobody needs are found, listed and, on demand, deleted."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from . import _environment, _native, _start
from ._native import GarbageItem, SparedItem
from .errors import InvalidInputError
from .settings import values_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from typing import Any, Literal

    from .settings import TrackerSettings

    Age = float | str | timedelta

AGE = re.compile(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?")


@dataclass(frozen=True)
class GarbageReport:
    """The garbage that a collection has found and, unless it was a dry run, deleted."""

    items: list[GarbageItem]
    """Garbage that goes, or has gone."""
    spared: list[SparedItem]
    """Things that look like garbage and stay: artifacts of versions, runs in journals, and the like."""
    failures: list[tuple[str, str]]
    """Places that could not be searched, each with the reason."""
    dry_run: bool
    """True where nothing was to be deleted."""

    @property
    def files(self) -> int:
        """Files that go, or have gone."""
        return sum(item.files for item in self._counted())

    @property
    def bytes(self) -> int:
        """Bytes that these files free."""
        return sum(item.bytes for item in self._counted())

    @property
    def complete(self) -> bool:
        """True where all places could be searched, and all garbage that was to go has gone."""
        return not self.failures and not any(item.error for item in self.items)

    def _counted(self) -> list[GarbageItem]:
        return [item for item in self.items if self.dry_run or item.deleted]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as a dict that JSON has a form for, with the totals."""
        return {
            "items": [_members(item) for item in self.items],
            "spared": [_members(item) for item in self.spared],
            "failures": list(self.failures),
            "dry_run": self.dry_run,
            "files": self.files,
            "bytes": self.bytes,
            "complete": self.complete,
        }

    def __str__(self) -> str:
        """Return the report as lines for people."""
        lines = []
        for item in self.items:
            fate = "would go" if self.dry_run else "gone" if item.deleted else "stays"
            run = "" if item.run_id is None else f" {item.run_id}"
            row = _row(item)
            lines.append(
                f"{fate}: {item.kind}{run} of {item.experiment}, {_size(item.files, item.bytes)}{row}"
            )
            lines.append(f"  {item.uri}\n  {item.error or item.reason}")
        for spared in self.spared:
            run = "" if spared.run_id is None else f" {spared.run_id}"
            lines.append(
                f"stays: {spared.kind}{run} of {spared.experiment}\n  {spared.uri}\n  {spared.reason}"
            )
        for uri, why in self.failures:
            lines.append(f"not looked into: {uri}\n  {why}")
        count = len(self._counted())
        what = f"{count} item{'' if count == 1 else 's'}, {_size(self.files, self.bytes)}"
        lines.append(f"{what} would go; nothing was deleted" if self.dry_run else f"{what} deleted")
        return "\n".join(lines)


def collect_garbage(
    tracking_uri: str | None = None,
    *,
    registry_uri: str | None = None,
    experiments: Sequence[str] | None = None,
    older_than: Age = 0,
    uploads_older_than: Age = "1d",
    orphans: bool = False,
    keep_best: int | None = None,
    metric: str | None = None,
    maximize: bool = False,
    keep_newer_than: Age | None = None,
    keep_registered: bool = False,
    what: Literal["artifacts", "runs"] = "artifacts",
    purge: bool = False,
    delete: bool = False,
    artifact_server: str | None = None,
    heimdall_dir: str | PathLike[str] | None = None,
    settings: TrackerSettings | None = None,
) -> GarbageReport:
    """Find files and runs that nobody needs, and delete them on demand; `heimdall gc` in Python.

    Looked for are the artifacts of deleted runs, uploads that were begun and never finished, folders of
    runs that the store does not know and, where rules are given, runs that no rule keeps. What a registered
    version or a logged model points to never goes, nor what lies outside of an experiment's artifact
    location, nor a run of which a journal in `HEIMDALL_DIR` has records.

    Args:
        tracking_uri: The store of the runs; that of `settings` if left out.
        registry_uri: The registry of the models, if elsewhere; that of `settings` if left out.
        experiments: Names of experiments, active or deleted; all of them if left out.
        older_than: Least time since a run was deleted: seconds, a `timedelta`, or words such as
            `30d` or `2d12h`. A server does not say when that was: with an age its deleted runs stay.
        uploads_older_than: Least time since an upload was begun.
        orphans: True deletes folders that belong to no run of the store. They are listed either way, as
            another store may have the same location.
        keep_best: A rule: so many of the best runs of each experiment are kept. Needs `experiments`.
        metric: The metric by whose latest value runs are the best.
        maximize: True where large values of the metric are good, not small ones.
        keep_newer_than: A rule: runs that ended within this time are kept. Needs `experiments`.
        keep_registered: A rule: runs that a registered version is of or points to are kept. Other rules keep
            them as well; alone, it lets all others go. Needs `experiments`.
        what: Part to delete of an ended run that no rule keeps: its `artifacts`, or the `runs`, which are
            marked as deleted and can be restored.
        purge: True removes deleted runs for good with their params, metrics and tags, as `mlflow gc` does.
            Only a database does that, no server.
        delete: True deletes the garbage that is found; False is a dry run.
        artifact_server: Address of the tracking server that keeps the artifacts of a database's experiments
            (`mlflow-artifacts:`).
        heimdall_dir: Folder of the journals whose runs stay; `HEIMDALL_DIR`, else `.heimdall`.
        settings: Settings for S3 keys and for what is left out; `Settings()`, which reads the
            environment, if left out.

    Returns:
        The garbage that goes or has gone, the things that look like garbage and stay, and the totals.

    Raises:
        ConfigurationError: The store cannot be opened or cannot purge, rules have no experiments, there is no
            `heimdall_dir`, or a journal in it cannot be read.
        InvalidInputError: An age or a rule is wrong, or no run has the metric.
        NotFoundError: There is no such experiment.
        StoreUnavailableError: The store does not answer.

    Example:
        >>> tracker = MLflowTracker("sqlite:///mlflow.db", experiment_name="swept")
        >>> with tracker.run() as run:
        ...     tracker.log_text("weights", "model.txt")
        >>> tracker.flush()
        >>> tracker.delete_run(run.run_id)
        >>> report = collect_garbage("sqlite:///mlflow.db", experiments=["swept"], delete=True)
        >>> [(item.kind, item.files, item.deleted) for item in report.items]
        [('deleted run', 1, True)]
    """
    _environment.load()
    given = values_of({} if settings is None else settings)
    items, spared, failures = _native.collect_garbage(
        {
            "tracking_uri": _start.store(tracking_uri or given["mlflow_tracking_uri"] or ""),
            "registry_uri": _start.store(registry_uri or given["mlflow_registry_uri"] or ""),
            "s3_endpoint_url": given["mlflow_s3_endpoint_url"],
            "s3_access_key_id": given["mlflow_s3_access_key_id"],
            "s3_secret_access_key": given["mlflow_s3_secret_access_key"],
            "experiments": None if experiments is None else list(experiments),
            "older_than": seconds(older_than),
            "uploads_older_than": seconds(uploads_older_than),
            "orphans": orphans,
            "keep_best": keep_best,
            "metric": metric,
            "maximize": maximize,
            "keep_newer_than": None if keep_newer_than is None else seconds(keep_newer_than),
            "keep_registered": keep_registered,
            "what": what,
            "purge": purge,
            "delete": delete,
            "heimdall_dir": heimdall_dir or _heimdall_dir(),
            "artifact_server": artifact_server,
        }
    )
    return GarbageReport(items, spared, failures, dry_run=not delete)


def _heimdall_dir() -> Path | None:
    """Return the folder of the start where the process has left it; None is found by the native module."""
    if not _start.has_left():
        return None
    folder = Path(_start.path(os.environ.get("HEIMDALL_DIR") or ".heimdall"))
    return folder if folder.is_dir() else None


def seconds(age: Age) -> float:
    """Return an age in seconds.

    Args:
        age: Seconds, a `timedelta`, or days, hours, minutes and seconds in words: `30d`, `2d8h5m20s`.

    Raises:
        InvalidInputError: It is none of these.

    Example:
        >>> seconds("1d12h")
        129600.0
    """
    if isinstance(age, timedelta):
        return age.total_seconds()
    if not isinstance(age, str):
        return float(age)
    parts = AGE.fullmatch(age.strip())
    try:
        days, hours, minutes, rest = [float(part or 0) for part in parts.groups()] if parts else []
    except ValueError:
        parts = None
    if not parts or not any(parts.groups()):
        raise InvalidInputError(f"age {age!r} is not valid: write 30d, 12h, 45m or 2d8h5m20s")
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=rest).total_seconds()


def _members(item: GarbageItem | SparedItem) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__match_args__}


def _row(item: GarbageItem) -> str:
    if not item.run_goes:
        return ""
    return ", and the run for good" if item.kind == "deleted run" else ", the run is marked as deleted"


def _size(files: int, count: float) -> str:
    size = "1 file" if files == 1 else f"{files:,} files"
    units = ["TB", "GB", "MB", "kB", "B"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop()
    return f"{size}, {count:.{0 if units[-1] == 'B' else 1}f} {units[-1]}"
