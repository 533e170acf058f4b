"""Scripts that record by a library's own integration, run by each of the doors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from support import libraries
from support.helpers import PATIENCE_S, clean_environment, rows
from support.stock import interpreter

HERE = Path(__file__).parent
SCRIPTS = HERE / "scripts"
EXPERIMENT = "of the environment"
PREFIX = "heimdall+"
# By a URI alone, with a tracker that the script has made, and in a run of that tracker.
DOORS = ("uri", "tracker", "run")
# What MLflow imports, which takes as long as a script. MLflow itself finds the environment of each.
OF_MLFLOW = (
    "alembic.command",
    "cryptography",
    "fastapi",
    "google.protobuf.message",
    "opentelemetry.sdk.trace",
    "pandas",
    "pydantic",
    "requests",
    "sqlalchemy.ext.mutable",
    "sqlalchemy.orm",
    "yaml",
)


@dataclass
class Recorded:
    """A run as the database has it."""

    run_id: str
    name: str
    status: str
    experiment: str
    params: dict[str, str]
    points: dict[str, list[tuple[int, float]]]
    tags: dict[str, str]

    @property
    def parent(self) -> str | None:
        return self.tags.get("mlflow.parentRunId")

    @property
    def steps(self) -> dict[str, list[int]]:
        return {key: [step for step, _ in points] for key, points in self.points.items()}


def the_only(runs: list[Recorded], name: str, experiment: str = EXPERIMENT) -> Recorded:
    """Return the one run that is meant: finished, with its name, in its experiment, below no other one."""
    assert [(run.name, run.status, run.experiment) for run in runs] == [(name, "FINISHED", experiment)]
    assert runs[0].parent is None
    return runs[0]


def recorded(db: Path) -> list[Recorded]:
    """Every run in a database, in the order in which they started."""
    found = rows(
        db,
        "SELECT run_uuid, r.name, status, e.name FROM runs r JOIN experiments e USING (experiment_id)"
        " ORDER BY start_time, r.rowid",
    )
    return [_recorded(db, *run) for run in found]


def _recorded(db: Path, run_id: str, name: str, status: str, experiment: str) -> Recorded:
    points: dict[str, list[tuple[int, float]]] = {}
    for key, step, value in rows(
        db, "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step", run_id
    ):
        points.setdefault(key, []).append((step, value))
    params, tags = (
        dict(rows(db, f"SELECT key, value FROM {table} WHERE run_uuid = ?", run_id))
        for table in ("params", "tags")
    )
    return Recorded(run_id, name, status, experiment, params, points, tags)


@pytest.fixture
def surroundings(uri: str, heimdall_dir: Path, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The environment of a script: without a tracker, the URI has the prefix."""

    def make(door: str = "uri", **more: object) -> dict[str, str]:
        given = {
            "MLFLOW_TRACKING_URI": PREFIX + uri if door == "uri" else uri,
            "MLFLOW_EXPERIMENT_NAME": EXPERIMENT,
            "HEIMDALL_DIR": heimdall_dir,
            "PAST_THE_JOURNAL": tmp_path / "past",
            "YOLO_CONFIG_DIR": tmp_path / "yolo",
        }
        found = clean_environment(**(_variables() | given | more))
        # Some libraries do not record within tests.
        return {name: value for name, value in found.items() if not name.startswith("PYTEST_")}

    return make


def _variables() -> dict[str, str]:
    found = libraries.variables()
    return found | {"PYTHONPATH": os.pathsep.join((str(HERE / "watched"), found["PYTHONPATH"]))}


@pytest.fixture
def result(db: Path, heimdall_dir: Path, tmp_path: Path) -> Callable[[], list[Recorded]]:
    """Everything that a script has recorded, all of it by the journal."""

    def read() -> list[Recorded]:
        past = tmp_path / "past"
        assert not past.exists(), f"the stock store was written to: {past.read_text().split()}"
        assert (heimdall_dir / "journal").is_dir()
        return recorded(db)

    return read


@pytest.fixture
def record(
    surroundings: Callable[..., dict[str, str]],
    result: Callable[[], list[Recorded]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., list[Recorded]]:
    """Run a script by a door, in a fork of an interpreter that has imported what takes long."""

    def run(
        script: str, door: str, *arguments: object, imports: Sequence[str] = (), **more: object
    ) -> list[Recorded]:
        monkeypatch.chdir(tmp_path)
        # A fork does not come to the handlers of the exit by itself.
        code = (HERE / "driver.py").read_text() + "\nimport atexit\natexit._run_exitfuncs()\n"
        known = _variables()
        interpreter(path=known.pop("PYTHONPATH"), **known).run(
            code,
            [door, str(SCRIPTS / script), *map(str, arguments)],
            surroundings(door, **more),
            [*OF_MLFLOW, *imports],
        )
        return result()

    return run


@pytest.fixture
def record_in_processes(
    surroundings: Callable[..., dict[str, str]], result: Callable[[], list[Recorded]], tmp_path: Path
) -> Callable[..., list[Recorded]]:
    """Run a Python program with processes of its own to its end."""

    def run(door: str, *command: object, code: int = 0, **more: object) -> list[Recorded]:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=tmp_path,
            env=surroundings(door, **more),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == code, done.stderr
        return result()

    return run
