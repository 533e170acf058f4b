from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch

__version__: str

EARTH_RADIUS_M: float
"""Radius of the sphere that distances and maps are computed on, in metres."""

NOT_HEARD_DBM: float
"""A power of this or less means that the receiver did not hear the transmitter, in dBm."""

Part = Literal["train", "val", "test"]

class RssDataset:
    """Powers of one transmitter at fixed receivers, read from disk and divided by place.

    Rows of the named published split test. Of the others, whole squares of the map validate, so
    that no place is on both sides; recordings a second apart are metres apart.
    """

    @staticmethod
    def load(
        path: str | Path,
        test: str = "grid_test",
        val_fraction: float = 0.125,
        square_m: float = 230.0,
        seed: int = 0,
    ) -> RssDataset:
        """Read a folder in the layout of the POWDER recordings.

        Args:
            path: Folder with `single_tx.csv`, `receivers.json` and `splits.json`.
            test: Name of the split in `splits.json` whose rows test.
            val_fraction: Share of the other rows that validates, 0…1 exclusive. Whole squares are
                taken until it is reached.
            square_m: Side of a square in metres.
            seed: Decides which squares validate.

        Returns:
            The recordings, with the 29 receivers of that data in the order of its columns.

        Raises:
            DatasetNotFoundError: The folder or one of its files does not exist.
            DatasetError: A file breaks the format (the message has file, line and value), there is
                no split of that name, or a part would be empty.
            ConfigurationError: `val_fraction` or `square_m` is out of range.

        Example:
            >>> from heimdall_training import RssDataset
            >>> RssDataset.load("examples/powder_rss_462mhz").rss("test").shape
            (666, 29)
        """

    @property
    def path(self) -> Path:
        """The folder."""

    @property
    def receivers(self) -> list[tuple[str, float, float]]:
        """Id, latitude and longitude in degrees of each receiver."""

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """Settings by which the rows were divided: `test`, `val_fraction`, `square_m`, `seed`."""

    def rows(self, part: Part) -> list[int]:
        """Rows of a part, as numbers of rows of the file from 0, ascending.

        Args:
            part: `"train"`, `"val"` or `"test"`.

        Raises:
            InvalidInputError: There is no such part.
        """

    def rss(self, part: Part) -> npt.NDArray[np.float32]:
        """Powers of a part in dBm, `[rows, receivers]`; `NOT_HEARD_DBM` where nothing was heard."""

    def positions(self, part: Part) -> npt.NDArray[np.float64]:
        """Latitude and longitude of the transmitter in degrees, `[rows, 2]`."""

    def timestamps(self, part: Part) -> list[str]:
        """Time stamp of each row of a part."""

    def __len__(self) -> int: ...

class RssLocalizationNet:
    """The position and uncertainty heads of the Heimdall networks on a small trunk for received powers.

    Each head is Linear(128) BatchNorm ReLU Dropout, Linear(64) BatchNorm ReLU Dropout, Linear(2);
    the trunk is Linear LayerNorm GELU Dropout for each width of `hidden`.

    Args:
        receivers: Id, latitude and longitude in degrees of each input, as `RssDataset.receivers`
            gives them. The middle of them is the origin of the network's map.
        hidden: Widths of the layers of the trunk; default 128 and 128.
        dropout: Dropout in the trunk, 0…1; default 0.1.
        head_dropout: Dropout after the first and the second layer of each head; default 0.3 and
            0.2.
        rss_scale_db: Decibels that make an input of 1; default 30.
        position_scale_m: Metres that make an output of 1; default 1,000. The loss is in this unit.
        sigma_floor_m: Smooth lower bound of sigma in metres; default 20.
        sigma_init_m: Sigma of the untrained network in metres; default 320.
        seed: Seed of the first weights; default 0.

    Raises:
        ConfigurationError: A setting makes no network.
    """

    def __init__(
        self,
        receivers: Sequence[tuple[str, float, float]],
        *,
        hidden: Sequence[int] | None = None,
        dropout: float | None = None,
        head_dropout: tuple[float, float] | None = None,
        rss_scale_db: float | None = None,
        position_scale_m: float | None = None,
        sigma_floor_m: float | None = None,
        sigma_init_m: float | None = None,
        seed: int | None = None,
    ) -> None: ...
    @property
    def receivers(self) -> list[tuple[str, float, float]]:
        """Id, latitude and longitude in degrees of each input."""

    @property
    def origin(self) -> tuple[float, float]:
        """Latitude and longitude in degrees that east and north are counted from."""

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """The settings, without the receivers."""

    @property
    def num_parameters(self) -> int:
        """Number of learned parameters."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Copy all tensors, under the names that the same network has in `torch.nn`."""

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Take over all tensors.

        Args:
            state_dict: Every tensor of the network by name, and no other.

        Raises:
            InvalidInputError: One is missing, strange or of another shape; nothing was changed.
        """

    def predict(
        self, rss: npt.ArrayLike | torch.Tensor
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Tell where transmitters are.

        Args:
            rss: Powers in dBm, `[rows, receivers]`, in the order of `receivers`; NaN, or
                `NOT_HEARD_DBM` or less, where nothing was heard.

        Returns:
            Latitude and longitude in degrees, `[rows, 2]`, and the standard deviation east and
            north in metres, `[rows, 2]`.

        Raises:
            InvalidInputError: The powers are not one row per transmitter and one column per
                receiver.
            RuntimeError: The network is being trained.
        """

class Fitted(TypedDict):
    """The result of `fit` for the trainer."""

    history: list[dict[str, float]]
    best: list[tuple[Path, float]]
    last: Path
    stopped: str | None
    seconds: float

def fit(
    model: RssLocalizationNet,
    dataset: RssDataset,
    *,
    max_epochs: int,
    batch_size: int,
    lr: float,
    min_lr: float,
    warmup_steps: int | None,
    weight_decay: float,
    gradient_clip_val: float | None,
    drop_receivers: float,
    noise_db: float,
    gain_db: float,
    seed: int,
    num_threads: int,
    patience: int | None,
    save_top_k: int,
    checkpoint_dir: Path,
    log_metrics: Callable[[dict[str, float], int], object],
    print_line: Callable[[str], object] | None,
) -> Fitted:
    """Run the loop. Called by `heimdall_training.Trainer.fit`, which documents the settings."""

def evaluate(
    model: RssLocalizationNet, dataset: RssDataset, part: Part, ckpt_path: Path | None = None
) -> tuple[dict[str, float], tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], list[float]]:
    """Score a network on the rows of a part, after loading a checkpoint into it if one is given.

    Returns:
        Metrics as `<part>/<name>`, the result of `predict` for the rows, and the great-circle errors
        in metres.
    """

def baselines(dataset: RssDataset) -> list[tuple[str, float, float]]:
    """Return name, median and mean error in metres of each baseline on the test rows."""
