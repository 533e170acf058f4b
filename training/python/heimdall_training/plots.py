"""Pictures of a training: where the transmitters were thought to be, and how the loss fell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.figure import Figure

from ._native import EARTH_RADIUS_M

_ELLIPSES = 60


def _local(positions: npt.NDArray[np.float64], origin: tuple[float, float]) -> npt.NDArray[np.float64]:
    """Degrees to kilometres east and north of the origin, as the model's own map."""
    per_degree = math.radians(EARTH_RADIUS_M) / 1000
    north = (positions[:, 0] - origin[0]) * per_degree
    east = (positions[:, 1] - origin[1]) * per_degree * math.cos(math.radians(origin[0]))
    return np.stack([east, north], axis=1)


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=140)
    return path


def prediction_map(
    path: Path,
    *,
    truth: npt.NDArray[np.float64],
    predicted: npt.NDArray[np.float64],
    sigmas: npt.NDArray[np.float64],
    errors: npt.NDArray[np.float64],
    receivers: Sequence[tuple[str, float, float]],
    origin: tuple[float, float],
    title: str,
) -> Path:
    """Draw truth and prediction on a map, joined by lines, with some of the 1-sigma ellipses.

    Args:
        path: File to write; its ending decides the format.
        truth: Latitude and longitude in degrees, `[n, 2]`.
        predicted: The same of the predictions.
        sigmas: Predicted standard deviation east and north in metres, `[n, 2]`.
        errors: Great-circle distance between the two in metres, `[n]`.
        receivers: Id, latitude and longitude of each receiver.
        origin: Latitude and longitude of the middle of the map.
        title: Line above the map.

    Returns:
        The file.
    """
    true_km, predicted_km = _local(truth, origin), _local(predicted, origin)
    receivers_km = _local(np.array([(lat, lon) for _, lat, lon in receivers]), origin)
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    axes = figure.add_subplot()
    lines = LineCollection(
        list(np.stack([true_km, predicted_km], axis=1)), colors="0.55", linewidths=0.4, alpha=0.6
    )
    axes.add_collection(lines)
    shown = np.linspace(0, len(truth) - 1, min(_ELLIPSES, len(truth))).astype(int)
    axes.add_collection(
        EllipseCollection(
            2 * sigmas[shown, 0] / 1000,
            2 * sigmas[shown, 1] / 1000,
            np.zeros(len(shown)),
            units="xy",
            offsets=predicted_km[shown],
            offset_transform=axes.transData,
            facecolors="none",
            edgecolors="tab:blue",
            linewidths=0.5,
            alpha=0.5,
        )
    )
    axes.scatter(true_km[:, 0], true_km[:, 1], s=8, color="black", label="truth", zorder=3)
    points = axes.scatter(
        predicted_km[:, 0],
        predicted_km[:, 1],
        s=10,
        c=errors,
        cmap="plasma",
        vmin=0,
        vmax=float(np.quantile(errors, 0.95)),
        label="prediction",
        zorder=4,
    )
    axes.scatter(
        receivers_km[:, 0],
        receivers_km[:, 1],
        s=45,
        marker="^",
        color="tab:green",
        label="receiver",
        zorder=5,
    )
    axes.plot([], [], color="tab:blue", linewidth=0.8, label=f"1 sigma ({len(shown)} of {len(truth)})")
    figure.colorbar(points, ax=axes, label="error in metres")
    axes.set(xlabel="kilometres east", ylabel="kilometres north", title=title, aspect="equal")
    axes.legend(loc="upper right", fontsize="small")
    axes.grid(alpha=0.2)
    return _save(figure, path)


def loss_curve(path: Path, history: Sequence[Mapping[str, float]]) -> Path:
    """Draw loss and position error of each epoch.

    Args:
        path: File to write; its ending decides the format.
        history: Metrics of each epoch, as in `FitResult.history`.

    Returns:
        The file.
    """
    figure = Figure(figsize=(7.5, 6), layout="constrained")
    loss, error = figure.subplots(2, 1, sharex=True)
    epochs = [epoch["epoch"] + 1 for epoch in history]
    best = min(history, key=lambda epoch: epoch["val/loss"])["epoch"] + 1
    for axes, name, label in (
        (loss, "loss", "loss (Gaussian NLL)"),
        (error, "position_error_mean", "mean error in metres"),
    ):
        for part, color in (("train", "tab:blue"), ("val", "tab:orange")):
            axes.plot(epochs, [epoch[f"{part}/{name}"] for epoch in history], color=color, label=part)
        axes.axvline(best, color="0.6", linestyle=":", label="best epoch")
        axes.set_ylabel(label)
        axes.grid(alpha=0.2)
    loss.legend()
    error.set_xlabel("epoch")
    return _save(figure, path)
