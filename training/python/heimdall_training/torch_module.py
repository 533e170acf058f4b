"""The trained network once more as a module of torch: for TorchScript, ONNX and MLflow."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ._native import NOT_HEARD_DBM, RssLocalizationNet

# The value is that of `geo.rs`.
EARTH_RADIUS_M = 6_371_000.0
# The values are those of `rss_net.rs`.
SHARE_SCALE = 3.0
SMALLEST_POWER = torch.finfo(torch.float32).tiny


class RssLocalizationModule(nn.Module):
    """`RssLocalizationNet` with its weights: powers in, degrees and metres out.

    Its state dict is that of the network.

    Args:
        model: The network; its weights are copied.
    """

    # Names of the outputs, in order.
    output_names = ("positions", "uncertainties")
    input_name = "rss"

    def __init__(self, model: RssLocalizationNet) -> None:
        super().__init__()
        settings = model.hyper_parameters
        self.rss_scale_db: float = settings["rss_scale_db"]
        self.position_scale_m: float = settings["position_scale_m"]
        self.sigma_floor: float = settings["sigma_floor_m"] / self.position_scale_m
        latitude, longitude = model.origin
        north = math.radians(EARTH_RADIUS_M)
        metres = torch.tensor([north, north * math.cos(math.radians(latitude))], dtype=torch.float64)
        # The buffers are not persistent: they follow from the settings, and are no weights.
        origin = torch.tensor([latitude, longitude], dtype=torch.float64)
        degrees = torch.tensor([(lat, lon) for _, lat, lon in model.receivers], dtype=torch.float64)
        local = (degrees - origin) * metres / self.position_scale_m
        self.origin: Tensor
        self.degrees_per_unit: Tensor
        self.receivers: Tensor
        self.register_buffer("origin", origin, persistent=False)
        self.register_buffer("degrees_per_unit", self.position_scale_m / metres, persistent=False)
        self.register_buffer("receivers", local.flip(1).float(), persistent=False)

        width, layers = 3 * len(model.receivers) + 5, []
        for following in settings["hidden"]:
            layers += [nn.Linear(width, following), nn.LayerNorm(following)]
            layers += [nn.GELU(), nn.Dropout(settings["dropout"])]
            width = following
        self.trunk = nn.Sequential(*layers)
        self.position_head = head(width, *settings["head_dropout"])
        self.uncertainty_head = head(width, *settings["head_dropout"])
        self.load_state_dict(model.state_dict())
        self.eval()

    def example(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw powers as receivers may hear them, `[rows, receivers]` in dBm, the same at each call.

        Args:
            rows: Number of transmitters.
            generator: Source of the random numbers; default one of its own.
        """
        drawn = generator or torch.Generator().manual_seed(0)
        size = (rows, self.receivers.shape[0])
        powers = torch.rand(size, generator=drawn) * 60 - 100
        # One receiver in three hears nothing.
        return torch.where(torch.rand(size, generator=drawn) < 1 / 3, NOT_HEARD_DBM, powers)

    def forward(self, rss: Tensor) -> tuple[Tensor, Tensor]:
        """Tell where transmitters are.

        Args:
            rss: Powers in dBm, `[rows, receivers]`; NaN, or `NOT_HEARD_DBM` or less, where nothing was heard.

        Returns:
            Latitude and longitude in degrees, `[rows, 2]`, and the standard deviation east and north in
            metres, `[rows, 2]`, both of 64 bits.
        """
        rss = torch.where(torch.isnan(rss), NOT_HEARD_DBM, rss).float().clamp(min=NOT_HEARD_DBM)
        hidden = self.trunk(self._features(rss))
        mean = self.position_head(hidden).double()
        sigma = nn.functional.softplus(self.uncertainty_head(hidden)) + self.sigma_floor
        # East and north become latitude and longitude.
        positions = self.origin + mean[:, [1, 0]] * self.degrees_per_unit
        return positions, sigma.double() * self.position_scale_m

    def _features(self, rss: Tensor) -> Tensor:
        heard = (rss > NOT_HEARD_DBM).float()
        level = (rss - NOT_HEARD_DBM) / self.rss_scale_db * heard
        mean = level.sum(1, keepdim=True) / heard.sum(1, keepdim=True).clamp(min=1.0)
        power, root_power = self._shares(rss, heard, 1.0), self._shares(rss, heard, 3.0)
        centroids = [power @ self.receivers, root_power @ self.receivers]
        return torch.cat([(level - mean) * heard, heard, SHARE_SCALE * root_power, mean, *centroids], 1)

    def _shares(self, rss: Tensor, heard: Tensor, root: float) -> Tensor:
        power = torch.pow(10.0, rss / (10.0 * root)) * heard
        return power / power.sum(1, keepdim=True).clamp(min=SMALLEST_POWER)


def head(width: int, first: float, second: float) -> nn.Sequential:
    """Make a head with the layers and names of the native one."""
    return nn.Sequential(
        *(nn.Linear(width, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(first)),
        *(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(second)),
        nn.Linear(64, 2),
    )
