"""The trainer that users call, with Lightning's names. The loop itself is native."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from . import _native, plots
from ._native import RssDataset, RssLocalizationNet, __version__
from .errors import TrainingError
from .models import save_model
from .tracking import Recorder, Tracker

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


def baselines(dataset: RssDataset) -> list[Baseline]:
    """Score the baselines that a network has to beat on the test rows.

    Args:
        dataset: The recordings. The baselines know the training and validation rows.

    Returns:
        `mean_position` (of all known rows), `power_centroid` (of the receivers, weighted by
        received milliwatts) and `nearest_neighbours` (mean of the 5 known rows that are closest in
        decibels).
    """
    return [Baseline(*scores) for scores in _native.baselines(dataset)]


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


class Trainer:
    """Trains a network and tests it, and records both.

    Args:
        tracker: Tracker that records parameters, metrics and files, with a run active while `fit` and
            `test` run; None records nothing. A failing tracker is reported once on the Python
            logger `heimdall_training` and never ends the training.
        max_epochs: Times the training rows are gone through, at most.
        batch_size: Rows in a batch, at least 2. Rows left over after the last whole batch sit the
            epoch out; they are others in each epoch.
        lr: Highest learning rate of AdamW.
        min_lr: Learning rate at the end of the cosine.
        warmup_steps: Steps in which the learning rate rises linearly; None is 5 % of all steps.
        weight_decay: Weight decay of matrices; biases and scales of normalisations do not decay.
        gradient_clip_val: Bound on the norm of the whole gradient; None is no bound.
        drop_receivers: Augmentation, mean share of receivers that go silent in a training row, 0…1.
        noise_db: Augmentation, standard deviation of noise on each power in dB.
        gain_db: Augmentation, standard deviation of a change that the powers of a row share, in dB.
        patience: Epochs without a better `val/loss` after which training stops; None never stops.
        save_top_k: Checkpoints to keep besides the last one, at least 1.
        seed: Decides the order of rows, dropout and augmentation (the first weights follow from the
            seed of the model). The same seed gives the same training bit by bit on one machine, as
            long as no other thread draws from torch's default generator, which is seeded with it.
        num_threads: Threads that share one operation. Operations of networks of this size are too
            short to be shared; more threads make them slower.
        default_root_dir: Folder in which each `fit` makes a folder `version_0`, `version_1`, … of
            its own.
        enable_progress_bar: Draw a bar on standard error if that is a terminal, and print a line
            per epoch.

    Example:
        >>> from heimdall_training import RssDataset, RssLocalizationNet, Trainer
        >>> dataset = RssDataset.load("examples/powder_rss_462mhz")
        >>> trainer = Trainer(max_epochs=1, enable_progress_bar=False, default_root_dir=folder)
        >>> result = trainer.fit(RssLocalizationNet(dataset.receivers), dataset)
        >>> sorted(path.name for path in result.best_k_models)
        ['epoch=0-step=29.ckpt']
    """

    def __init__(
        self,
        *,
        tracker: Tracker | None = None,
        max_epochs: int = 40,
        batch_size: int = 128,
        lr: float = 2e-3,
        min_lr: float = 0.0,
        warmup_steps: int | None = None,
        weight_decay: float = 0.01,
        gradient_clip_val: float | None = 1.0,
        drop_receivers: float = 0.03,
        noise_db: float = 0.0,
        gain_db: float = 0.0,
        patience: int | None = 20,
        save_top_k: int = 3,
        seed: int = 0,
        num_threads: int = 1,
        default_root_dir: str | Path = "outputs",
        enable_progress_bar: bool = True,
    ) -> None:
        self.hyper_parameters: dict[str, Any] = {
            "max_epochs": max_epochs,
            "batch_size": batch_size,
            "lr": lr,
            "min_lr": min_lr,
            "warmup_steps": warmup_steps,
            "weight_decay": weight_decay,
            "gradient_clip_val": gradient_clip_val,
            "drop_receivers": drop_receivers,
            "noise_db": noise_db,
            "gain_db": gain_db,
            "patience": patience,
            "save_top_k": save_top_k,
            "seed": seed,
            "num_threads": num_threads,
        }
        self.default_root_dir = Path(default_root_dir)
        self.enable_progress_bar = enable_progress_bar
        self._recorder = Recorder(tracker)
        self._fitted: tuple[RssLocalizationNet, RssDataset, FitResult] | None = None

    @property
    def log_dir(self) -> Path | None:
        """Folder of the files of the last `fit`, or None before the first."""
        return self._fitted[2].log_dir if self._fitted else None

    def fit(self, model: RssLocalizationNet, dataset: RssDataset) -> FitResult:
        """Train a network on the training rows of a dataset.

        Ctrl-C ends it with KeyboardInterrupt; the checkpoints written by then are recorded. Afterwards
        the network has the weights of the last epoch; `test` gives it those of the best.

        Recorded are the hyperparameters, the metrics of each epoch under the number of optimiser
        steps (`train/…` and `val/…`, `lr-AdamW` of its last step, `epoch`), the checkpoints and the
        loss curve.

        Args:
            model: The network, made for the receivers of the dataset.
            dataset: The recordings.

        Returns:
            The checkpoints and the metrics of each epoch.

        Raises:
            ConfigurationError: A setting cannot work.
            InvalidInputError: The network was made for other receivers.
            TrainingError: The loss is not finite (with epoch and step), or a checkpoint cannot be
                written.
        """
        log_dir = self._new_log_dir()
        self._recorder.log_params(self._params(model, dataset))
        checkpoint_dir = log_dir / "checkpoints"
        try:
            fitted = _native.fit(
                model,
                dataset,
                **self.hyper_parameters,
                checkpoint_dir=checkpoint_dir,
                log_metrics=self._recorder.log_metrics,
                print_line=print if self.enable_progress_bar else None,
            )
        finally:
            # A training that was interrupted or diverged has checkpoints, too.
            for path in sorted(checkpoint_dir.glob("*.ckpt")):
                self._recorder.log_artifact(path, "checkpoints")
        best = dict(fitted["best"])
        best_path, best_score = fitted["best"][0]
        result = FitResult(
            history=fitted["history"],
            best_model_path=best_path,
            best_model_score=best_score,
            best_k_models=best,
            last_model_path=fitted["last"],
            stopped=fitted["stopped"],
            seconds=fitted["seconds"],
            log_dir=log_dir,
        )
        self._fitted = (model, dataset, result)
        if result.stopped and self.enable_progress_bar:
            print(f"stopped: {result.stopped}")
        self._recorder.log_artifact(plots.loss_curve(log_dir / "loss.png", result.history), "plots")
        return result

    def test(self, ckpt_path: Literal["best", "last"] | str | Path = "best") -> TestResult:
        """Test the fitted network on the test rows, with the weights of a checkpoint.

        The network keeps these weights. Recorded are the metrics, `final_test_loss`,
        `final_test_mae` and `best_val_loss`, the predictions (`predictions.csv`), a map of them
        (`plots/map.png`) and the network (folder `model`, for `load_model`, for registering it and for
        MLflow).

        Args:
            ckpt_path: `"best"` (least `val/loss`), `"last"`, or the path of a checkpoint.

        Returns:
            Metrics and predictions; `print` it for a table beside the baselines.

        Raises:
            TrainingError: Nothing has been fitted.
            CheckpointNotFoundError: The checkpoint does not exist or cannot be read.
        """
        if self._fitted is None:
            raise TrainingError("there is nothing to test yet: call fit() first")
        model, dataset, fitted = self._fitted
        named = {"best": fitted.best_model_path, "last": fitted.last_model_path}
        checkpoint = named.get(str(ckpt_path), Path(ckpt_path))
        metrics, (positions, sigmas), errors = _native.evaluate(model, dataset, "test", ckpt_path=checkpoint)
        scored = baselines(dataset)
        for baseline in scored:
            metrics[f"test/baseline_{baseline.name}_median"] = baseline.median_m
            metrics[f"test/baseline_{baseline.name}_mean"] = baseline.mean_m
        result = TestResult(
            metrics=metrics,
            baselines=scored,
            positions=positions,
            sigmas=sigmas,
            errors=np.array(errors),
            split=dataset.hyper_parameters["test"],
            model_dir=save_model(model, fitted.log_dir / "model"),
        )
        self._record_test(model, dataset, fitted, result)
        return result

    def _record_test(
        self,
        model: RssLocalizationNet,
        dataset: RssDataset,
        fitted: FitResult,
        result: TestResult,
    ) -> None:
        summary = {
            "final_test_loss": result.metrics["test/loss"],
            "final_test_mae": result.metrics["test/mae"],
            "best_val_loss": fitted.best_model_score,
        }
        self._recorder.log_metrics({**result.metrics, **summary}, int(fitted.history[-1]["step"]))
        predictions = _write_predictions(fitted.log_dir / "predictions.csv", dataset, result)
        self._recorder.log_artifact(predictions, "predictions")
        median = result.metrics["test/position_error_median"]
        picture = plots.prediction_map(
            fitted.log_dir / "map.png",
            truth=dataset.positions("test"),
            predicted=result.positions,
            sigmas=result.sigmas,
            errors=result.errors,
            receivers=model.receivers,
            origin=model.origin,
            title=f"{result.split}: median error {median:.0f} m over {len(result.errors)} rows",
        )
        self._recorder.log_artifact(picture, "plots")
        self._recorder.log_model(model, result.model_dir, "model")

    def _new_log_dir(self) -> Path:
        self.default_root_dir.mkdir(parents=True, exist_ok=True)
        version = 0
        while True:
            folder = self.default_root_dir / f"version_{version}"
            try:
                folder.mkdir()
            except FileExistsError:
                version += 1
            else:
                return folder

    def _params(self, model: RssLocalizationNet, dataset: RssDataset) -> Mapping[str, Any]:
        return {
            **self.hyper_parameters,
            "optimizer": "AdamW",
            "model/name": type(model).__name__,
            **{f"model/{name}": value for name, value in model.hyper_parameters.items()},
            "model/receivers": len(model.receivers),
            "model/num_parameters": model.num_parameters,
            "data/path": str(dataset.path),
            **{f"data/{name}": value for name, value in dataset.hyper_parameters.items()},
            **{f"data/{part}_rows": len(dataset.rows(part)) for part in ("train", "val", "test")},
            "torch_version": torch.__version__,
            "heimdall_training_version": __version__,
        }


def _write_predictions(path: Path, dataset: RssDataset, result: TestResult) -> Path:
    columns = ["timestamp", "true_lat", "true_lon", "lat", "lon"]
    columns += ["sigma_east_m", "sigma_north_m", "error_m"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        truth = dataset.positions("test")
        rows = zip(
            dataset.timestamps("test"), truth, result.positions, result.sigmas, result.errors, strict=True
        )
        for timestamp, true, predicted, sigma, error in rows:
            degrees = [f"{value:.7f}" for value in (*true, *predicted)]
            writer.writerow([timestamp, *degrees, *(f"{value:.2f}" for value in (*sigma, error))])
    return path
