"""The results of a training and of a test."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_BASELINE_TITLES = {
    "mean_position": "mean position",
    "power_centroid": "power-weighted centroid",
    "nearest_neighbours": "5 nearest neighbours",
}


class Baseline(NamedTuple):
    """Errors of a baseline on the test rows, as great-circle distances in metres."""

    name: str
    median_m: float
    mean_m: float


@dataclass(frozen=True)
class FitResult:
    """Result of a training.

    Attributes:
        history: Metrics of each epoch, and its `epoch` (from 0) and `step` (optimiser steps done).
        best_model_path: Checkpoint of the epoch with the least `val/loss`.
        best_model_score: Loss of that epoch.
        best_k_models: The kept checkpoints and their losses, best first.
        last_model_path: Checkpoint of the last epoch.
        stopped: Reason for an end before `max_epochs`, or None.
        seconds: Duration of the training.
        log_dir: Folder of the files that were written.
    """

    history: list[dict[str, float]] = field(repr=False)
    best_model_path: Path
    best_model_score: float
    best_k_models: dict[Path, float] = field(repr=False)
    last_model_path: Path
    stopped: str | None
    seconds: float
    log_dir: Path


@dataclass(frozen=True)
class TestResult:
    """Scores of a network on the test rows. `print` it for a table.

    Attributes:
        metrics: `test/loss`, `test/mae`, `test/position_error_mean`, `_std`, `_median`,
            `test/sigma_mean` (all but the loss in metres), `test/within_1_sigma`,
            `test/within_2_sigma` (shares) and `test/baseline_…`.
        baselines: See `baselines`.
        positions: Predicted latitude and longitude in degrees, `[n, 2]`.
        sigmas: Predicted standard deviation east and north in metres, `[n, 2]`.
        errors: Great-circle distance to the truth in metres, `[n]`.
        split: Name of the published split that the rows are.
        model_dir: Folder of the tested network, for `load_model`.
    """

    __test__ = False  # not a test case, whatever its name makes pytest think

    metrics: dict[str, float]
    baselines: list[Baseline]
    positions: npt.NDArray[np.float64] = field(repr=False)
    sigmas: npt.NDArray[np.float64] = field(repr=False)
    errors: npt.NDArray[np.float64] = field(repr=False)
    split: str
    model_dir: Path

    def __str__(self) -> str:
        """Return a table of the network and the baselines."""
        rows = [(_BASELINE_TITLES[name], median, mean) for name, median, mean in self.baselines]
        network = self.metrics["test/position_error_median"], self.metrics["test/position_error_mean"]
        rows.append(("this network", *network))
        table = [f"{f'error on {self.split} ({len(self.errors)} rows)':<34}{'median':>10}{'mean':>10}"]
        table += [f"  {title:<32}{median:>8.0f} m{mean:>8.0f} m" for title, median, mean in rows]
        table.append(
            f"truth within 1 sigma: {self.metrics['test/within_1_sigma']:.0%}, "
            f"within 2 sigma: {self.metrics['test/within_2_sigma']:.0%} "
            f"(a true Gaussian: 39%, 86%); mean sigma {self.metrics['test/sigma_mean']:.0f} m"
        )
        return "\n".join(table)


@dataclass(frozen=True)
class ModuleFitResult:
    """Result of the training of a module.

    Attributes:
        history: Metrics of each epoch, with its `epoch` (from 0), `step` (optimiser steps done) and `lr`.
        metrics: The newest value of everything that was logged.
        best_model_path: Checkpoint of the best epoch by the monitored metric; None where there is none.
        best_model_score: That metric.
        best_k_models: The kept checkpoints and their scores, best first.
        last_model_path: Checkpoint of the last epoch.
        stopped: Reason for an end before `max_epochs`, or None.
        seconds: Duration of the training.
        log_dir: Folder of the files that were written.
    """

    history: list[dict[str, float]] = field(repr=False)
    metrics: dict[str, float]
    best_model_path: Path | None
    best_model_score: float | None
    best_k_models: dict[Path, float] = field(repr=False)
    last_model_path: Path
    stopped: str | None
    seconds: float
    log_dir: Path
