"""Stores to collect garbage in, what is logged to them and what is left."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psycopg

from heimdall_tracking import (
    MLflowTracker,
    lifecycle,
)
from support.helpers import clean_environment

EXPERIMENT = "collected"


class Disk:
    """Artifacts in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = str(root)

    def files(self) -> list[str]:
        return sorted(p.relative_to(self.root).as_posix() for p in self.root.rglob("*") if p.is_file())

    def put(self, path: str, content: bytes = b"x") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)


class Bucket:
    """Artifacts in an S3 store, below a prefix that wants to be escaped."""

    def __init__(self, server, bucket: str) -> None:
        self.server, self.bucket, self.prefix = server, bucket, "pre fix/é+&"
        self.uri = f"s3://{bucket}/{self.prefix}"

    def files(self) -> list[str]:
        keys = self.server.keys(self.bucket, self.prefix)
        return [key.removeprefix(self.prefix + "/") for key in keys]

    def put(self, path: str, content: bytes = b"x") -> None:
        self.server.client().put_object(Bucket=self.bucket, Key=f"{self.prefix}/{path}", Body=content)


def started(place: SimpleNamespace, experiment: str = EXPERIMENT) -> MLflowTracker:
    return MLflowTracker(place.uri, artifact_uri=place.artifacts.uri, experiment_name=experiment)


def logged(tracker: MLflowTracker, **metrics: float) -> str:
    """A run with everything that a run can have."""
    with tracker.run() as run:
        tracker.log_params({"lr": 0.1})
        tracker.log_metrics(metrics or {"loss": 0.5}, step=1)
        tracker.log_text("weights", "model/weights.txt")
        tracker.log_text("notes", "notes.txt")
    tracker.flush()
    return run.run_id


def stock(place: SimpleNamespace):
    from mlflow import MlflowClient

    return MlflowClient(place.uri, place.uri)


def stock_files(client, run_id: str, folder: str | None = None) -> list[str]:
    """Files of a run as stock MLflow lists them; SeaweedFS shows folders for a while that have none."""
    files = []
    for item in client.list_artifacts(run_id, folder):
        files += stock_files(client, run_id, item.path) if item.is_dir else [item.path]
    return files


def location_of(place: SimpleNamespace, experiment: str = EXPERIMENT) -> str:
    return stock(place).get_experiment_by_name(experiment).artifact_location


def found(report: lifecycle.GarbageReport) -> list[tuple[str, str | None]]:
    return [(item.kind, item.run_id) for item in report.items]


def spared(report: lifecycle.GarbageReport) -> dict[str | None, str]:
    return {item.run_id: item.reason for item in report.spared}


def rows_of(uri: str, run_id: str) -> dict[str, int]:
    """Return the number of rows that name a run, for each table."""
    if uri.startswith("sqlite"):
        connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        tables = [
            (table, column)
            for (table,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            ).fetchall()
            for (_, column, *_) in connection.execute(f"PRAGMA table_info({table})").fetchall()
        ]
        mark = "?"
    else:
        connection = psycopg.connect(uri)
        tables = connection.execute(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' "
            "AND data_type IN ('character varying', 'text')"
        ).fetchall()
        mark = "%s"
    with connection:
        counts = {}
        for table, column in tables:
            query = f'SELECT count(*) FROM {table} WHERE "{column}" = {mark}'
            (count,) = connection.execute(query, (run_id,)).fetchone()
            if count:
                counts[f"{table}.{column}"] = count
    connection.close()
    return counts


def mlflow_gc(uri: str) -> str:
    """Run `mlflow gc`, which must end well, and return what it prints."""
    command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", uri, "--tracking-uri", uri]
    # The variables of the artifact store are those of the test.
    s3 = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "MLFLOW_S3"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=clean_environment(**s3))
    assert done.returncode == 0, done.stderr
    return done.stdout
