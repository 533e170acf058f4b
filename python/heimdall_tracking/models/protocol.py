"""The part of a tracker that models are logged, loaded and exported by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .._native import BestRun, ModelVersion, Run, Status


class Downloader(Protocol):
    """An object that downloads artifacts, such as a tracker."""

    def download_artifacts(
        self, source: str | PathLike[str], path: str = "", dst: str | PathLike[str] | None = None
    ) -> str:
        """Download artifacts, and return their local path."""


class ModelLogger(Downloader, Protocol):
    """The members of `MLflowTracker` that `log_model` uses; its documentation is theirs too."""

    @property
    def experiment_name(self) -> str:
        """Name of the experiment."""

    @property
    def active_run_id(self) -> str | None:
        """Id of the active run."""

    def set_tag(self, key: str, value: Any, run_id: str | None = None) -> None:
        """Set a tag."""

    def log_metrics(
        self,
        metrics: Mapping[str, float],
        step: int | None = None,
        timestamp: int | None = None,
        run_id: str | None = None,
    ) -> None:
        """Log metrics."""

    def log_artifacts_dir(
        self,
        local_dir: str | PathLike[str],
        artifact_path: str | None,
        immutable: bool = False,
        run_id: str | None = None,
    ) -> object:
        """Log a folder."""

    def status(self) -> Status:
        """Return the state of the delivery."""

    def get_run(self, run_id: str) -> Run:
        """Read a run."""

    def get_best_run(self, metric: str, compare_fn: Callable[..., Any]) -> BestRun | None:
        """Find the best run."""

    def get_model_version(self, name: str, version: str | int) -> ModelVersion:
        """Read a version."""

    def get_model_version_by_alias(self, name: str, alias: str) -> ModelVersion:
        """Read the version of an alias."""

    def get_latest_versions(self, name: str, stages: Sequence[str] | None = None) -> list[ModelVersion]:
        """Read the newest version in each stage."""

    def register_model(
        self,
        model_name: str,
        model_uri: str | PathLike[str],
        description: str = "",
        tags: Mapping[str, Any] | None = None,
    ) -> str:
        """Register a version, and return its number."""

    def transition_model_stage(self, model_name: str, version: str | int, stage: str) -> None:
        """Put a version into a stage."""

    def _check_artifact_file(self, artifact_file: str) -> None: ...
    def _before(self, run_id: str) -> Run | None: ...


class ModelTracker(ModelLogger, Protocol):
    """The members of `MLflowTracker` that this package uses; its documentation is theirs too."""

    def run(
        self,
        run_name: str | None = None,
        tags: Mapping[str, Any] | None = None,
        nested: bool = False,
        parent_run_id: str | None = None,
    ) -> AbstractContextManager[object]:
        """Run for a `with` block."""
