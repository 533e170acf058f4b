"""The training of a module with a loss, of batches of inputs and targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import _native, _native_parts
from ._modules import Steps
from .errors import InvalidInputError


class ModuleSteps(Steps):
    """The training of a module with a loss, of batches of an input and a target."""

    # None is the loss that the module is made for.
    loss: Callable[[Any, Any], torch.Tensor] | None = None

    def native(self) -> dict[str, Any] | None:
        """Return the layers and the loss, where the loop can run them itself."""
        return None if self.loss is None else _native_parts.layers(self.module, self.loss)

    def training_step(self, batch: Any) -> torch.Tensor:
        """Return the loss of a batch."""
        with self.place.autocast():
            loss, rows = self._step("train", batch)
        if isinstance(loss, torch.Tensor) and loss.numel() == 1:
            self.training_log.log("train/loss", loss, rows, None, True, "mean", False)
        # The loop refuses everything else.
        return self.place.scaled(loss)

    def validation_step(self, batch: Any) -> None:
        """Measure the loss of a batch."""
        with self.place.autocast():
            loss, rows = self._step(self.part, batch)
        self.validation_log.log(f"{self.part}/loss", loss, rows, None, None, "mean", False)

    def _step(self, part: str, batch: Any) -> tuple[torch.Tensor, int]:
        """Return the loss of a batch of the training or of the validation, and its rows."""
        inputs, target = _pair(batch)
        loss = self.loss
        assert loss is not None
        return loss(self.module(inputs), target), len(target)

    def trained(self) -> dict[str, float]:
        """Return the values of the training in this epoch."""
        values = super().trained()
        return {("train/loss" if name == "train/loss_epoch" else name): it for name, it in values.items()}


class LocalizationSteps(ModuleSteps):
    """The training of a network for spectrograms, of batches of spectrograms and positions in degrees."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._seen: dict[str, list[tuple[Any, ...]]] = {"train": [], "val": [], "test": []}

    def _step(self, part: str, batch: Any) -> tuple[torch.Tensor, int]:
        # A third part of a batch is what its rows are called.
        spectrograms, degrees = _pair(batch[:2] if isinstance(batch, (list, tuple)) else batch)
        degrees = torch.as_tensor(degrees, dtype=torch.float64)
        mean, sigma = self.module(spectrograms)
        if mean.dtype in (torch.bfloat16, torch.float16):
            # A loss of rounded positions is not accurate enough.
            mean, sigma = mean.float(), sigma.float()
        module: Any = self.module
        target = module.targets(degrees)
        if self.loss is not None:
            loss = self.loss((mean, sigma), target)
        else:
            loss = gaussian_nll(mean, sigma, target)
        seen = (mean.detach(), sigma.detach(), degrees)
        self._seen[part].append(seen if self.place.is_plain else tuple(it.cpu() for it in seen))
        return loss, len(degrees)

    def over_all(self, part: str) -> dict[str, float]:
        """Return the errors of all positions of a part, and begin anew."""
        seen = [it for one in self.world.gather(self._seen[part]) for it in one]
        self._seen[part] = []
        if not seen:
            return {}
        module: Any = self.module
        settings = module.hyper_parameters
        found = _native.position_metrics(seen, settings["origin"], settings["position_scale_m"])
        return {f"{part}/{name}": value for name, value in found.items()}


def gaussian_nll(mean: torch.Tensor, sigma: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean of `(y - mean)² / 2 sigma² + ln sigma` (Nix and Weigend, 1994), as the native loss."""
    standardised = (target - mean) / sigma
    return (standardised.square() * 0.5 + sigma.log()).mean()


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, (list, tuple)) and len(batch) == 2:
        return batch[0], batch[1]
    raise InvalidInputError(
        f"a batch must be a pair of inputs and targets, not {type(batch).__name__}"
        + (f" of {len(batch)}" if isinstance(batch, (list, tuple)) else "")
    )
