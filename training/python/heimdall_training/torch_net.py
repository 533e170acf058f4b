"""The heads of the Heimdall networks on a backbone that is a module of torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor, nn

from . import weights as weight_files
from .backbones import STRETCHED_TO, make_backbone
from .errors import ConfigurationError, InvalidInputError
from .model_config import BackboneArchitecture, get_backbone_info
from .torch_module import EARTH_RADIUS_M, head

# The values are those of `convnext.rs` and `localization_net.rs`.
STOCHASTIC_DEPTH = {"convnext_tiny": 0.1, "convnext_small": 0.4, "convnext_base": 0.5, "convnext_large": 0.5}
ORIGIN = (44.966, 8.161)
SMALLEST_INPUT = 32


class Outputs(NamedTuple):
    """Settings of the outputs: see `TorchLocalizationNet`."""

    head_dropout: tuple[float, float] = (0.3, 0.2)
    origin: tuple[float, float] = ORIGIN
    position_scale_m: float = 50_000.0
    sigma_floor_m: float = 20.0
    sigma_init_m: float = 20_000.0

    def check(self) -> None:
        """Raise ConfigurationError for a setting that is out of range."""
        latitude, longitude = self.origin
        if not (abs(latitude) <= 89 and abs(longitude) <= 180):
            form = "a latitude, -89…89, and a longitude, -180…180, in degrees"
            raise _refused("origin", self.origin, form)
        for name in ("position_scale_m", "sigma_floor_m"):
            if not 0 < getattr(self, name) < math.inf:
                raise _refused(name, getattr(self, name), "a number above 0")
        if not self.sigma_floor_m < self.sigma_init_m < math.inf:
            form = f"a length in metres above sigma_floor_m ({self.sigma_floor_m})"
            raise _refused("sigma_init_m", self.sigma_init_m, form)
        if not all(0 <= dropout < 1 for dropout in self.head_dropout):
            raise _refused("head_dropout", self.head_dropout, "two probabilities below 1")


class _Parts(nn.Module):
    """Backbone, heads and the map of their outputs."""

    output_names = ("positions", "uncertainties")
    input_name = "mel_spectrogram"

    def __init__(
        self,
        backbone: nn.Module,
        heads: Sequence[nn.Module],
        name: str | None,
        features: int,
        of: Outputs,
    ) -> None:
        super().__init__()
        self.backbone_name = name
        self.num_features = features
        self.settings = of
        self.position_scale_m = of.position_scale_m
        self.sigma_floor = of.sigma_floor_m / of.position_scale_m
        north = math.radians(EARTH_RADIUS_M)
        metres = [north, north * math.cos(math.radians(of.origin[0]))]
        per_unit = torch.tensor(metres, dtype=torch.float64, device="cpu").reciprocal() * of.position_scale_m
        # The buffers are not persistent: they follow from the settings, and are no weights.
        self.origin: Tensor
        self.degrees_per_unit: Tensor
        origin = torch.tensor(of.origin, dtype=torch.float64, device="cpu")
        self.register_buffer("origin", origin, persistent=False)
        self.register_buffer("degrees_per_unit", per_unit, persistent=False)
        self.backbone = backbone
        self.position_head, self.uncertainty_head = heads

    def _outputs(self, spectrograms: Tensor) -> tuple[Tensor, Tensor]:
        if not _is_traced():
            self._check(spectrograms)
        size = STRETCHED_TO.get(self.backbone_name or "")
        if size is not None:
            spectrograms = nn.functional.interpolate(spectrograms, size, mode="bilinear", align_corners=False)
        features = self.backbone(spectrograms)
        if not _is_traced() and features.shape[1:] != (self.num_features,):
            form = f"[rows, {self.num_features}]"
            raise InvalidInputError(f"the backbone must give {form}, not {[*features.shape]}")
        mean: Tensor = self.position_head(features)
        sigma = nn.functional.softplus(self.uncertainty_head(features)) + self.sigma_floor
        return mean, sigma

    def _check(self, spectrograms: Tensor) -> None:
        shape = spectrograms.shape
        is_picture = len(shape) == 4 and shape[1] == 3 and min(shape[2:]) >= SMALLEST_INPUT
        if self.backbone_name is not None and not is_picture:
            raise InvalidInputError(
                "spectrograms must be [rows, 3, height, width] with height and width of at least "
                f"{SMALLEST_INPUT}, not {[*shape]}"
            )
        if self.training and shape[0] == 1:
            raise InvalidInputError(
                "a batch in training must be at least 2 rows, because BatchNorm needs the variance of a "
                "batch, not 1 row"
            )

    def _in_degrees(self, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Turn east and north in units into latitude and longitude, and sigma into metres."""
        mean, sigma = outputs[0].double(), outputs[1].double()
        return self.origin + mean[:, [1, 0]] * self.degrees_per_unit, sigma * self.position_scale_m


class TorchLocalizationNet(_Parts):
    """The position and uncertainty heads of the Heimdall networks on a module of torch.

    Called with spectrograms, `[rows, 3, height, width]`, it gives east and north of `origin` and the standard
    deviation of each, both `[rows, 2]` in units of `position_scale_m`: the tensors that a loss needs.
    `predict` gives degrees and metres. `torch.compile` and optimisers of torch take it as any module.

    Args:
        backbone: A `BackboneArchitecture`, its name, or a module that gives `[rows, features]`. A vision
            transformer stretches each spectrogram to 224 x 224, the size that it has positions for.
        features: Width of the output of a module of yours; of a named backbone it is known.
        pretrained: Begin with torchvision's ImageNet weights, from torch's cache.
        freeze_backbone: Train the heads alone: the backbone gets no gradients and stays in evaluation mode,
            so that its batch statistics do not change either.
        weights: File to begin with: see `load_weights`.
        download: Let `pretrained` download what is not in the cache.
        stochastic_depth: Probability that a training row skips the last block of a ConvNeXt; default that of
            torchvision.
        head_dropout: Dropout after the first and the second layer of each head.
        origin: Latitude and longitude in degrees that east and north are counted from.
        position_scale_m: Metres that make an output of 1.
        sigma_floor_m: Smooth lower bound of sigma in metres.
        sigma_init_m: Sigma of the untrained network in metres.
        seed: Seed of the first weights; the state of torch's random numbers does not change.

    Raises:
        ConfigurationError: A setting makes no network.
        MissingPackageError: The backbone needs torchvision, which is not installed.
        PretrainedWeightsNotFoundError: The ImageNet weights are not in the cache.

    Example:
        >>> import torch
        >>> from heimdall_training import TorchLocalizationNet
        >>> mine = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 16))
        >>> positions, sigmas = TorchLocalizationNet(mine, features=16).predict(torch.zeros(2, 3, 32, 32))
        >>> sigmas.shape
        (2, 2)
    """

    def __init__(
        self,
        backbone: str | BackboneArchitecture | nn.Module,
        *,
        features: int | None = None,
        pretrained: bool = False,
        freeze_backbone: bool = False,
        weights: str | Path | None = None,
        download: bool = False,
        stochastic_depth: float | None = None,
        head_dropout: tuple[float, float] | None = None,
        origin: tuple[float, float] | None = None,
        position_scale_m: float | None = None,
        sigma_floor_m: float | None = None,
        sigma_init_m: float | None = None,
        seed: int | None = None,
    ) -> None:
        given: dict[str, Any] = {
            "head_dropout": head_dropout and tuple(head_dropout),
            "origin": origin and tuple(origin),
            "position_scale_m": position_scale_m,
            "sigma_floor_m": sigma_floor_m,
            "sigma_init_m": sigma_init_m,
        }
        settings = Outputs(**{name: it for name, it in given.items() if it is not None})
        settings.check()
        self_made, name, features = _described(backbone, features, pretrained)
        if name in STOCHASTIC_DEPTH and stochastic_depth is None:
            stochastic_depth = STOCHASTIC_DEPTH[name]
        if stochastic_depth is not None and (name not in STOCHASTIC_DEPTH or not 0 <= stochastic_depth < 1):
            raise _refused("stochastic_depth", stochastic_depth, "a probability below 1, of a ConvNeXt")
        file = weight_files.first_weights(name, pretrained, weights, download)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            module = self_made or make_backbone(name or "", stochastic_depth or 0.0)
            heads = [head(features, *settings.head_dropout) for _ in range(2)]
        super().__init__(module, heads, name, features, settings)
        raw = math.log(
            math.expm1((settings.sigma_init_m - settings.sigma_floor_m) / settings.position_scale_m)
        )
        nn.init.constant_(heads[1].get_parameter("8.bias"), raw)
        self.stochastic_depth = stochastic_depth
        self.seed = seed or 0
        self.freeze_backbone = freeze_backbone
        module.requires_grad_(not freeze_backbone)
        self.train()
        if file is not None:
            weight_files.load_weights(self, file)

    def train(self, mode: bool = True) -> TorchLocalizationNet:
        """Switch to training mode, or from it; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def forward(self, spectrograms: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation, each `[rows, 2]`, in units of `position_scale_m`.

        Raises:
            InvalidInputError: The spectrograms have another shape, or there is one row in training.
        """
        return self._outputs(spectrograms)

    def predict(self, spectrograms: npt.ArrayLike | Tensor) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Tell where transmitters are.

        Args:
            spectrograms: `[rows, 3, height, width]`.

        Returns:
            Latitude and longitude in degrees, `[rows, 2]`, and the standard deviation east and north in
            metres, `[rows, 2]`.

        Raises:
            InvalidInputError: The spectrograms have another shape.
        """
        device = next(self.parameters()).device
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                outputs = self(torch.as_tensor(spectrograms, dtype=torch.float32, device=device))
                positions, sigmas = self._in_degrees(outputs)
        finally:
            self.train(was_training)
        return positions.cpu().numpy(), sigmas.cpu().numpy()

    def targets(self, positions: npt.ArrayLike | Tensor) -> Tensor:
        """Return latitudes and longitudes in degrees, `[rows, 2]`, as the mean that predicts them."""
        degrees = torch.as_tensor(positions, dtype=torch.float64, device=self.origin.device)
        return ((degrees - self.origin) / self.degrees_per_unit).flip(1).float()

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """The settings."""
        return {
            "backbone": self.backbone_name or type(self.backbone).__name__,
            "freeze_backbone": self.freeze_backbone,
            "stochastic_depth": self.stochastic_depth,
            **self.settings._asdict(),
            "seed": self.seed,
        }

    @property
    def num_parameters(self) -> int:
        """Number of learned parameters."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


class LocalizationModule(_Parts):
    """A network for spectrograms as TorchScript, ONNX and MLflow need it: degrees and metres come out.

    Its state dict is that of the network, and its tensors are the same.

    Args:
        net: The network.
    """

    def __init__(self, net: TorchLocalizationNet) -> None:
        heads = [net.position_head, net.uncertainty_head]
        super().__init__(net.backbone, heads, net.backbone_name, net.num_features, net.settings)
        self.eval()

    def example(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw spectrograms, `[rows, 3, 128, 32]`, the same at each call.

        Args:
            rows: Number of transmitters.
            generator: Source of the random numbers; default one of its own.
        """
        drawn = generator or torch.Generator().manual_seed(0)
        return torch.randn((rows, 3, 128, 32), generator=drawn)

    def forward(self, mel_spectrogram: Tensor) -> tuple[Tensor, Tensor]:
        """Tell where transmitters are.

        Args:
            mel_spectrogram: `[rows, 3, height, width]`.

        Returns:
            Latitude and longitude in degrees, `[rows, 2]`, and the standard deviation east and north in
            metres, `[rows, 2]`, both of 64 bits.
        """
        return self._in_degrees(self._outputs(mel_spectrogram))


def _is_traced() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _described(
    backbone: str | BackboneArchitecture | nn.Module, features: int | None, pretrained: bool
) -> tuple[nn.Module | None, str | None, int]:
    """Return the module or the name of a backbone, and its width."""
    if not isinstance(backbone, nn.Module):
        name = BackboneArchitecture.of(backbone).value
        width = get_backbone_info(name).features
        if features not in (None, width):
            raise _refused("features", features, f"{width}, the width of {name}, or None")
        return None, name, width
    if isinstance(features, bool) or not isinstance(features, int) or features < 1:
        raise _refused("features", features, "the width of the output of the given module, at least 1")
    if pretrained:
        raise _refused("pretrained", pretrained, "False for a module of yours: give its file by weights=…")
    return backbone, None, features


def _refused(name: str, value: Any, form: str) -> ConfigurationError:
    return ConfigurationError(f"{name}={value!r} cannot be used: it must be {form}")
