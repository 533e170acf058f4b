"""The network and the order of its rows once more, in plain PyTorch, to compare with."""

from __future__ import annotations

import math

import torch
from torch import nn

EARTH_RADIUS_M = 6_371_000.0


class TorchTwin(nn.Module):
    """`RssLocalizationNet` with its default scales."""

    def __init__(self, receivers, hidden=(128, 128), dropout=0.1, head_dropout=(0.3, 0.2)):
        super().__init__()
        degrees = torch.tensor([(lat, lon) for _, lat, lon in receivers], dtype=torch.float64)
        self.origin = degrees.mean(0)
        self.stations = self.to_local(degrees)
        width, layers = 3 * len(receivers) + 5, []
        for following in hidden:
            layers += [nn.Linear(width, following), nn.LayerNorm(following)]
            layers += [nn.GELU(), nn.Dropout(dropout)]
            width = following
        self.trunk = nn.Sequential(*layers)
        self.position_head = self.head(width, *head_dropout)
        self.uncertainty_head = self.head(width, *head_dropout)

    @staticmethod
    def head(width, first, second):
        return nn.Sequential(
            *(nn.Linear(width, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(first)),
            *(nn.Linear(128, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(second)),
            nn.Linear(64, 2),
        )

    def per_degree(self):
        north = math.radians(EARTH_RADIUS_M) / 1000
        return torch.tensor([north * math.cos(math.radians(self.origin[0])), north])

    def to_local(self, degrees):
        """Kilometres east and north."""
        return ((degrees - self.origin).flip(1) * self.per_degree()).float()

    def to_degrees(self, local):
        return self.origin + (local.double() / self.per_degree()).flip(1)

    def features(self, rss):
        heard = (rss > -101).float()
        level = (rss + 101) / 30 * heard
        mean = level.sum(1, keepdim=True) / heard.sum(1, keepdim=True).clamp(min=1)

        def shares(root):
            power = 10 ** (rss / (10 * root)) * heard
            return power / power.sum(1, keepdim=True)

        centroids = [shares(1) @ self.stations, shares(3) @ self.stations]
        return torch.cat([(level - mean) * heard, heard, 3 * shares(3), mean, *centroids], 1)

    def forward(self, rss):
        hidden = self.trunk(self.features(rss))
        sigma = 0.02 + nn.functional.softplus(self.uncertainty_head(hidden))
        return self.position_head(hidden), sigma


def gaussian_nll(estimate, truth):
    mean, sigma = estimate
    return ((truth - mean) ** 2 / (2 * sigma**2) + sigma.log()).mean()


def split_mix(state):
    """The next state and number of SplitMix64."""
    mask = 2**64 - 1
    state = (state + 0x9E3779B97F4A7C15) & mask
    z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return state, z ^ (z >> 31)


def epoch_order(rows, seed, epoch):
    """The order that the loop draws for an epoch."""
    state = split_mix((split_mix(seed)[1] + epoch) & (2**64 - 1))[1]
    order = list(range(rows))
    for last in range(rows - 1, 0, -1):
        state, number = split_mix(state)
        other = (number * (last + 1)) >> 64
        order[last], order[other] = order[other], order[last]
    return order
