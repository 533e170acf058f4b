"""The stores that the tests of the collection share, and its command."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from support.garbage import (
    Bucket,
    Disk,
)


@pytest.fixture(params=["sqlite-disk", "postgres-disk", "sqlite-s3", "postgres-s3"])
def place(request, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A store of runs and a store of artifacts."""
    # The experiment Default of a PostgreSQL has its artifacts below the working directory.
    monkeypatch.chdir(tmp_path)
    runs, artifacts = request.param.split("-")
    if runs == "postgres":
        uri = request.getfixturevalue("postgres_uri")
    if artifacts == "s3":
        bucket = request.getfixturevalue("s3_bucket")
        return SimpleNamespace(uri=uri, artifacts=Bucket(request.getfixturevalue("s3_server"), bucket))
    return SimpleNamespace(uri=uri, artifacts=Disk(tmp_path / "artifacts"))


@pytest.fixture
def disk(tmp_path: Path, uri: str) -> SimpleNamespace:
    """SQLite and a local folder, where it does not matter what the stores are."""
    return SimpleNamespace(uri=uri, artifacts=Disk(tmp_path / "artifacts"))
