"""Averages of the weights over the steps of a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Averages:
    """Exponential moving averages of the parameters of a module: `decay * average + (1 - decay) * weight`.

    Buffers, such as the statistics of a BatchNorm, are taken as they are.

    Args:
        module: The module.
        decay: Share of the old average in the new one, 0…1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights: list[torch.Tensor] = [it for it in module.parameters() if it.requires_grad]
        self._names = [name for name, it in module.named_parameters() if it.requires_grad]
        self._averages = [it.detach().clone() for it in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights after a step."""
        torch._foreach_lerp_(self._averages, list(self._weights), 1 - self._decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the module the averages, and its own weights back at the end."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and weights."""
        for average, weight in zip(self._averages, self._weights, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the averages by the names of their parameters."""
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the averages of a checkpoint."""
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state[name])
