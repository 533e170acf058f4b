from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

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

class ConvNextLocalizationNet:
    """The native part of `heimdall_training.LocalizationNet`, which documents the settings.

    Args:
        backbone: Name of a ConvNeXt of torchvision.
        settings: A value for each setting; None is the default.
    """

    def __new__(cls, backbone: str, settings: dict[str, Any]) -> Self: ...
    @property
    def backbone_name(self) -> str:
        """Name of the backbone, as torchvision has it."""

    @property
    def num_features(self) -> int:
        """Width of the output of the backbone."""

    @property
    def origin(self) -> tuple[float, float]:
        """Latitude and longitude in degrees that east and north are counted from."""

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """The settings."""

    @property
    def num_parameters(self) -> int:
        """Number of learned parameters; those of a frozen backbone are not among them."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return all tensors by name. They are those of the network: who changes one, changes it.

        The tensors of the backbone have torchvision's names, below `backbone.`.
        """

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        """Take over all tensors.

        Args:
            state_dict: Every tensor of the network by name, and no other.

        Raises:
            InvalidInputError: One is missing, strange or of another shape; nothing was changed.
        """

    def named_parameters(self) -> list[tuple[str, torch.Tensor]]:
        """Return the learned tensors with their names and their gradients, as for an optimiser of torch."""

    def forward(self, spectrograms: torch.Tensor, train: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the network; gradients flow back to its parameters.

        Args:
            spectrograms: `[rows, 3, height, width]`, of single precision on the CPU.
            train: Enables dropout, the statistics of the batch and, unless the backbone is frozen,
                stochastic depth.

        Returns:
            Mean and standard deviation, each `[rows, 2]`, east and north in units of `position_scale_m`.

        Raises:
            InvalidInputError: The spectrograms have another shape, or there is one row in training.
            RuntimeError: The network is being trained.
        """

    def targets(self, positions: Sequence[tuple[float, float]]) -> torch.Tensor:
        """Return latitudes and longitudes in degrees as the mean that predicts them, `[rows, 2]`."""

    def predict(
        self, spectrograms: npt.ArrayLike | torch.Tensor
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Tell where transmitters are.

        Args:
            spectrograms: `[rows, 3, height, width]`.

        Returns:
            Latitude and longitude in degrees, `[rows, 2]`, and the standard deviation east and north in
            metres, `[rows, 2]`.

        Raises:
            InvalidInputError: The spectrograms have another shape.
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

class SignalWatch:
    """Notes Ctrl-C and SIGTERM from its making until `stop`."""

    def __init__(self) -> None: ...
    def received(self) -> int:
        """Return the number of the noted signal, or 0."""

    def stop(self) -> None:
        """Give the program its handlers back."""

def fit_module(job: Mapping[str, Any], /) -> dict[str, Any]:
    """Run the loop around a module of PyTorch. Called by the trainer."""

def position_metrics(
    batches: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    origin: tuple[float, float],
    position_scale_m: float,
    /,
) -> dict[str, float]:
    """Measure positions: mean and sigma of each batch, and the truth in degrees, each `[rows, 2]`."""

Normalisation = Literal["per_channel", "joint", "none"]

class RecordingDataset:
    """Recordings of a split as features, for a `DataLoader` of torch.

    The files are `<root>/<split>/<session>_iq.npy` (`(channels, samples)`, or one row of samples that
    stands for every channel), `<session>_label.npy` (`[latitude, longitude]` in degrees) and, where there
    is one, `<session>_meta.json`. Pickled metadata can run code and is refused.

    Args:
        root: The folder.
        split: Name of the split, a folder in it.
        sample_rate: Samples per second of the recordings whose metadata has no `sample_rate`.
        channels: Number of receivers.
        cache_dir: Folder that keeps the features, for any number of workers. Default: none.
        **settings: `n_fft`, `hop`, `bands`, `frames`, `normalisation` and `skip_empty_bands`, as those of
            `mel_spectrogram`.

    Raises:
        DatasetNotFoundError: The folder or a label does not exist.
        DatasetError: The folder has no recording, or pickled metadata.
        ConfigurationError: A setting is out of its range or unknown.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        sample_rate: float | None = None,
        channels: int = 3,
        cache_dir: str | Path | None = None,
        **settings: int | str | bool,
    ) -> None: ...
    @property
    def sessions(self) -> list[str]:
        """Names of the recordings, sorted."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Read one recording.

        Returns:
            Features `[channels, bands, frames]` and label `[latitude, longitude]`, both float32, and the
            metadata with `session` and `sample_rate`.

        Raises:
            IndexError: There is no such recording.
            DatasetError: A file breaks its format; the message names it.
        """

class BatchReader:
    """Batches of recordings, read by threads; see `RecordingLoader`."""

    def __init__(
        self,
        rows: Sequence[tuple[RecordingDataset, int]],
        batches: Sequence[Sequence[int]],
        workers: int,
        ahead: int,
    ) -> None: ...
    def __iter__(self) -> BatchReader: ...
    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]: ...
    def close(self) -> None:
        """End the threads."""

def mel_spectrogram(
    iq: npt.ArrayLike | torch.Tensor,
    sample_rate: float,
    *,
    n_fft: int = 2048,
    hop: int = 512,
    bands: int = 128,
    frames: int = 32,
    normalisation: Normalisation = "per_channel",
    skip_empty_bands: bool = False,
) -> torch.Tensor:
    """Compute the mel spectrogram of the magnitude of each channel.

    Args:
        iq: Samples, `(channels, samples)`, complex or real.
        sample_rate: Samples per second.
        n_fft: Points of the Fourier transform, an even number.
        hop: Samples between two frames.
        bands: Number of mel bands from 0 to half the sample rate.
        frames: Number of frames of the result: the middle, or a reflection of a shorter recording.
        normalisation: `"per_channel"` removes the level of each receiver, `"joint"` keeps the differences,
            `"none"` returns decibels.
        skip_empty_bands: Make bands that contain no frequency of the transform 0 and leave them out of the
            normalisation. They are constant, -90 dB; 4 of 128 at 192 kHz.

    Returns:
        Float32, `[channels, bands, frames]`.

    Raises:
        InvalidInputError: A recording is shorter than `n_fft` or has a value that is not finite.
        ConfigurationError: A setting is out of its range.

    Example:
        >>> import numpy as np
        >>> from heimdall_training import mel_spectrogram
        >>> iq = np.random.default_rng(0).normal(size=(3, 15_872, 2)).view(complex)[..., 0]
        >>> tuple(mel_spectrogram(iq, 12_000).shape)
        (3, 128, 32)
    """

def levels(iq: npt.ArrayLike | torch.Tensor, *, n_fft: int = 1024) -> list[tuple[float, float]]:
    """Measure level and signal-to-noise ratio of each channel, in decibels.

    The level is 10·log10(mean |x|²). The noise is taken for white, with the density of the median bin of
    the averaged periodograms of `n_fft` points, so the signal must be narrower than half the recorded band,
    and the receiver's filter must pass more than half of it: otherwise the ratio is too large. It is at
    least -30.

    Raises:
        InvalidInputError: A recording is shorter than `n_fft` or has a value that is not finite.
    """

def delays(
    iq: npt.ArrayLike | torch.Tensor,
    sample_rate: float,
    *,
    max_delay_s: float,
    band_hz: tuple[float, float] | None = None,
    weighting: Literal["none", "phat"] = "none",
) -> list[tuple[int, int, float, float, float]]:
    """Measure the delay between each pair of channels by generalised cross-correlation.

    Args:
        iq: Samples on one time base, `(channels, samples)`, complex or real.
        sample_rate: Samples per second.
        max_delay_s: The longest possible delay: distance of the receivers divided by the speed of light.
        band_hz: Frequencies that count, as distances from the middle of the recorded band. A lower bound
            above 0 leaves a carrier out, which has no delay that can be measured. Default: all.
        weighting: `"phat"` gives each frequency the same weight. It separates echoes, and suits only a
            band that the signal fills.

    Returns:
        For each pair: number of the first and of the second channel, time of arrival at the second less
        that at the first in seconds, phase of the second less that of the first at that delay in radians,
        and the magnitude of the correlation, 0 to 1.

    Raises:
        InvalidInputError: There are fewer than two channels, or a value is not finite.
        ConfigurationError: A setting is out of its range.
    """
