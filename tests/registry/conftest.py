"""A tracker and a stock client on each store, and models of a test alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from heimdall_tracking import MLflowTracker


@pytest.fixture
def tracker(
    store: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MLflowTracker]:
    monkeypatch.chdir(tmp_path)
    tracker = MLflowTracker(store, experiment_name=request.node.name)
    # MLflow itself resolves URIs by the same store.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker._uris()[0])
    yield tracker
    tracker.end_run()


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """The name of a model of this test alone, with what names may have: tests share the server."""
    name = request.node.name.replace("@", " at ")
    return f"é {re.sub('[/:]', '.', name)}"[:200]


@pytest.fixture
def run_id(tracker: MLflowTracker, tmp_path: Path) -> str:
    """A run with a model among its artifacts."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"onnx")
    with tracker.run("made it") as run:
        tracker.log_artifacts_dir(tmp_path / "model", "models/m")
        tracker.log_metrics({"val/loss": 0.25, "acc": 0.5}, step=1)
    tracker.flush()
    return run.run_id


@pytest.fixture
def version_facts() -> Callable[[Any], dict[str, object]]:
    """Return all that a version has but its aliases; it is one of the stock client's or one of ours."""

    def facts(version: Any) -> dict[str, object]:
        texts = ("description", "user_id", "source", "run_id", "run_link", "status", "status_message")
        return {
            "name": version.name,
            "version": int(version.version),
            "current_stage": version.current_stage,
            "creation_timestamp": version.creation_timestamp,
            "last_updated_timestamp": version.last_updated_timestamp,
            "tags": version.tags,
            **{name: getattr(version, name) or "" for name in texts},
        }

    return facts


@pytest.fixture
def model_facts(version_facts) -> Callable[[Any], dict[str, object]]:
    """Return all that a registered model has; it is one of the stock client's or one of ours."""

    def facts(model: Any) -> dict[str, object]:
        return {
            "name": model.name,
            "creation_timestamp": model.creation_timestamp,
            "last_updated_timestamp": model.last_updated_timestamp,
            "description": model.description or "",
            "tags": model.tags,
            "aliases": {alias: int(version) for alias, version in model.aliases.items()},
            "latest_versions": sorted(
                (version_facts(version) for version in model.latest_versions), key=lambda it: it["version"]
            ),
        }

    return facts
